"""L2RM: find mismatched image–text pairs, rematch them, and learn retrieval that they cannot spoil.

Every public name is imported when it is first used, so `import l2rm` is quick and imports no torch.

Example:
    >>> import l2rm
    >>> pairs = l2rm.Pairs.read("pairs.csv", image_root="images/")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from l2rm.auditing.audit import Audit as Audit
    from l2rm.auditing.audit import audit as audit
    from l2rm.auditing.audit import audit_scores as audit_scores
    from l2rm.auditing.rematch import Rematched as Rematched
    from l2rm.auditing.rematch import rematch as rematch
    from l2rm.auditing.rematch import rematch_scores as rematch_scores
    from l2rm.data.features import Features as Features
    from l2rm.data.mismatch import Mismatched as Mismatched
    from l2rm.data.mismatch import inject_mismatches as inject_mismatches
    from l2rm.data.mismatch import read_index as read_index
    from l2rm.data.mismatch import write_index as write_index
    from l2rm.data.pairs import Pairs as Pairs
    from l2rm.data.vocabulary import Vocabulary as Vocabulary
    from l2rm.encoders.image import encode as encode
    from l2rm.encoders.sentences import encode_captions as encode_captions
    from l2rm.errors import InputError as InputError
    from l2rm.evaluation.evaluate import evaluate as evaluate
    from l2rm.evaluation.metrics import Metrics as Metrics
    from l2rm.evaluation.metrics import evaluate_scores as evaluate_scores
    from l2rm.evaluation.scores import MatrixScores as MatrixScores
    from l2rm.rematching.candidates import EmbeddingScores as EmbeddingScores
    from l2rm.rematching.dataset import SparsePlan as SparsePlan
    from l2rm.rematching.dataset import sparse_transport as sparse_transport
    from l2rm.rematching.division import BetaMixture as BetaMixture
    from l2rm.rematching.settings import RematchingConfig as RematchingConfig
    from l2rm.rematching.transport import TransportPlan as TransportPlan
    from l2rm.rematching.transport import partial_transport as partial_transport
    from l2rm.search.index import Index as Index
    from l2rm.search.queries import Hit as Hit
    from l2rm.search.queries import Query as Query
    from l2rm.similarity.model import RetrievalModel as RetrievalModel
    from l2rm.similarity.settings import ModelConfig as ModelConfig
    from l2rm.training.interrupt import Interrupted as Interrupted
    from l2rm.training.run import Run as Run
    from l2rm.training.run import load as load
    from l2rm.training.run import load_run as load_run
    from l2rm.training.settings import TrainConfig as TrainConfig
    from l2rm.training.train import train as train

__version__ = "0.1.0"

_HOMES = {
    "auditing.audit": ("Audit", "audit", "audit_scores"),
    "auditing.rematch": ("Rematched", "rematch", "rematch_scores"),
    "data.features": ("Features",),
    "data.mismatch": ("Mismatched", "inject_mismatches", "read_index", "write_index"),
    "data.pairs": ("Pairs",),
    "data.vocabulary": ("Vocabulary",),
    "encoders.image": ("encode",),
    "encoders.sentences": ("encode_captions",),
    "errors": ("InputError",),
    "evaluation.evaluate": ("evaluate",),
    "evaluation.metrics": ("Metrics", "evaluate_scores"),
    "evaluation.scores": ("MatrixScores",),
    "rematching.candidates": ("EmbeddingScores",),
    "rematching.dataset": ("SparsePlan", "sparse_transport"),
    "rematching.division": ("BetaMixture",),
    "rematching.settings": ("RematchingConfig",),
    "rematching.transport": ("TransportPlan", "partial_transport"),
    "search.index": ("Index",),
    "search.queries": ("Hit", "Query"),
    "similarity.model": ("RetrievalModel",),
    "similarity.settings": ("ModelConfig",),
    "training.interrupt": ("Interrupted",),
    "training.run": ("Run", "load", "load_run"),
    "training.settings": ("TrainConfig",),
    "training.train": ("train",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
