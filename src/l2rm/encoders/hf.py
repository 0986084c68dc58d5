"""Two-tower models of transformers (CLIP, SigLIP and their kin), frozen: images and captions to one space."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

from l2rm.data.pairs import Pairs
from l2rm.encoders.captions import embed_captions
from l2rm.encoders.filling import BATCH, Embed, Read
from l2rm.encoders.image import encode_files
from l2rm.encoders.pretrained import Reading, identity, load_towers, vectors
from l2rm.encoders.store import FeatureStore
from l2rm.files import cache_folder

VERSION = 1
"""Raise it when the same model and file would give other embeddings: it is a part of the cache's key."""
GPU_BATCH = 64
"""Images at a time, where they are not encoded on a processor."""


def encode_both(
    pairs: Pairs,
    model: str,
    *,
    skip_bad: bool = False,
    progress: bool = True,
    device: torch.device | str = "cpu",
) -> Pairs:
    """Give pairs embeddings of images and of captions, unit vectors of one space: their cosine is how well they fit.

    Both are kept in `cache_folder()/features/`, one growing file each for a model (and image folder): what was embedded
    once never is again, and a killed run goes on where it stopped. Safetensors weights only; code of a model's own is
    never run.

    Args:
        pairs: the table; every image needs a file.
        model: a folder that transformers saved, or a name on the hub, OWNER/MODEL, which it may download.
        skip_bad: leave out rows whose image does not decode; see `Pairs.left_out`.
        progress: tell on standard error how far it has come.
        device: where the model runs.

    Returns:
        The pairs with `features` (N, D) and `caption_features` (rows, D), float16, memory-mapped.

    Raises:
        InputError: transformers is not installed; no such model, or not one of two towers; an image that does not
            decode (without `skip_bad`).

    Example:
        >>> encode_both(pairs, "openai/clip-vit-base-patch32").caption_features.shape  # doctest: +SKIP
        (5000, 512)
    """
    towers = TwoTowers(model, device)

    def network() -> tuple[Read, Embed]:
        return towers.pixels, towers.images

    store = FeatureStore(_store_path("images", towers, str(pairs.image_root)), (towers.dim,))
    batch = BATCH if torch.device(device).type == "cpu" else GPU_BATCH
    pairs = encode_files(pairs, store, network, skip_bad=skip_bad, progress=progress, batch=batch)
    captions = FeatureStore(_store_path("captions", towers, ""), (towers.dim,))
    embedded = embed_captions(pairs.captions, captions, towers.texts, progress=progress)
    return replace(pairs, caption_features=embedded)


class TwoTowers:
    """A frozen model with its preprocessing.

    Args:
        name: folder or name on the hub.
        device: where it runs.

    Raises:
        InputError: transformers is not installed, no such model, or one without towers for images and texts.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        self.name, self.device = name, torch.device(device)
        self._model: Any = load_towers(name).requires_grad_(False).to(self.device)
        self._reading = Reading.open(name)
        self.identity = identity(name, self._model.config)
        self.dim = int(self.texts(["a"]).shape[1])

    def pixels(self, path: Path) -> NDArray[np.float32]:
        """(3, H, W) of a file, resized, cropped and scaled as the model learned it.

        Raises:
            UndecodableImageError: it does not decode.
        """
        return self._reading.pixels(path)

    @torch.inference_mode()
    def images(self, pixels: NDArray[Any]) -> torch.Tensor:
        """(B, 3, H, W) to unit vectors (B, D) float32 on the CPU."""
        return _unit(self._model.get_image_features(pixel_values=torch.from_numpy(pixels).to(self.device)))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Texts to unit vectors (B, D) float32 on the CPU; what is beyond the model's longest text is not read."""
        ids = [torch.tensor(one) for one in self._reading.encode_all(texts)]
        tokens = pad_sequence(ids, batch_first=True).to(self.device)
        known = self._reading.text_inputs(tokens, torch.tensor([len(one) for one in ids]))
        return _unit(self._model.get_text_features(**known))


def _store_path(what: str, towers: TwoTowers, root: str) -> Path:
    key = hashlib.sha256(f"{VERSION}\0{towers.identity}\0{root}".encode()).hexdigest()[:16]
    return cache_folder() / "features" / f"{Path(towers.name).name}-{what}-{key}.npy"


def _unit(found: Any) -> torch.Tensor:
    return normalize(vectors(found).float(), dim=-1).cpu()
