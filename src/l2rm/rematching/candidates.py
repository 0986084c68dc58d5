"""Which images may a caption be rematched with? Its exact nearest neighbours, found block by block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.errors import InputError
from l2rm.progress import track

BLOCK_IMAGES = 4096
BLOCK_CAPTIONS = 1024


class Blocks(Protocol):
    """What is asked of scores: `l2rm.evaluation.scores.Scores` are such."""

    @property
    def n_images(self) -> int: ...

    @property
    def n_captions(self) -> int: ...

    def block(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Tensor: ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """The best images of each caption asked about, best first.

    Attributes:
        captions: `(q,)` int64; which captions.
        images: `(q, k)` int32; −1 where a caption has fewer candidates than k.
        scores: `(q, k)` float32; −inf there.
    """

    captions: NDArray[np.int64]
    images: NDArray[np.int32]
    scores: NDArray[np.float32]

    @property
    def cells(self) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float32]]:
        """Place in `captions`, image and score of every candidate, for `sparse_transport`."""
        there = self.images >= 0
        place = np.repeat(np.arange(len(self.captions), dtype=np.int32), there.sum(1))
        return place, self.images[there], self.scores[there]


class EmbeddingScores:
    """Cosines of image and caption embeddings, on the device of the embeddings.

    Args:
        images: `(N, D)`, an array or a tensor, no row all zero; computed in float32.
        captions: `(M, D)`, likewise.

    Raises:
        InputError: other shapes, or an embedding that is zero or not finite.

    Example:
        >>> scores = EmbeddingScores(np.eye(2), np.array([[3.0, 4.0]]))
        >>> scores.block(np.array([0, 1]), np.array([0])).T.tolist()
        [[0.6000000238418579, 0.800000011920929]]
    """

    def __init__(self, images: NDArray[np.floating] | Tensor, captions: NDArray[np.floating] | Tensor) -> None:
        if images.ndim != 2 or captions.ndim != 2 or images.shape[1] != captions.shape[1]:
            raise InputError(
                f"embeddings: images {tuple(images.shape)}, captions {tuple(captions.shape)}; give (N, D) and (M, D)"
            )
        self._images, self._captions = _unit("image", images), _unit("caption", captions)

    @property
    def n_images(self) -> int:
        """Images."""
        return len(self._images)

    @property
    def n_captions(self) -> int:
        """Captions."""
        return len(self._captions)

    def block(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Tensor:
        """Cosines (len(images), len(captions))."""
        return (_rows(self._captions, captions) @ _rows(self._images, images).T).T


def nearest_images(
    scores: Blocks,
    *,
    candidates: int = 64,
    captions: NDArray[np.integer] | None = None,
    images: NDArray[np.integer] | None = None,
    forbidden: NDArray[np.integer] | None = None,
    block_images: int = BLOCK_IMAGES,
    block_captions: int = BLOCK_CAPTIONS,
    progress: bool = False,
    what: str = "finding candidates",
) -> Candidates:
    """The exact k best-scoring images of each caption, in the memory of a block.

    Args:
        scores: images × captions, higher is better; blocks are asked for once each, all images for some captions.
        candidates: k.
        captions: `(q,)` which captions to ask about; None for all.
        images: which images may be given, each once (those with spare capacity, say); None for all.
        forbidden: `(q,)` an image that each of these captions must not get, −1 for none: the one that it is given.
        block_images, block_captions: size of a block; the result does not depend on it.
        progress, what: tell on standard error how far it is, and with what.

    Equal scores are listed in the order of the images; which of those equal to the last one are listed is not said.

    Raises:
        InputError: k below 1, a caption or image that is not there, or a score that is NaN.

    Example:
        >>> found = nearest_images(EmbeddingScores(np.eye(3), np.eye(3)), candidates=1)
        >>> found.images.ravel().tolist()
        [0, 1, 2]
    """
    asked = _places("caption", captions, scores.n_captions)
    allowed = np.unique(_places("image", images, scores.n_images))
    if candidates < 1:
        raise InputError(f"candidates: {candidates} is less than 1; try 64")
    if forbidden is not None and len(forbidden) != len(asked):
        raise InputError(
            f"forbidden: {len(forbidden)} images for {len(asked)} captions; give one a caption, −1 for none"
        )
    keep = min(candidates, len(allowed))
    found = np.full((len(asked), keep), -1, dtype=np.int32)
    score = np.full((len(asked), keep), -np.inf, dtype=np.float32)
    starts = range(0, len(asked), block_captions)
    for start in track(starts, total=len(starts), what=what, enabled=progress):
        some = slice(start, start + block_captions)
        shut = None if forbidden is None else np.asarray(forbidden)[some]
        score[some], found[some] = _best(scores, asked[some], allowed, shut, keep, block_images)
    found[np.isneginf(score)] = -1
    return Candidates(captions=asked, images=found, scores=score)


@torch.no_grad()
def _best(
    scores: Blocks,
    captions: NDArray[np.int64],
    images: NDArray[np.int64],
    forbidden: NDArray[np.integer] | None,
    keep: int,
    block_images: int,
) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """The best `keep` of `images` for each of these captions, one block of images after the other."""
    top: Tensor | None = None
    place: Tensor | None = None
    for start in range(0, len(images), block_images):
        some = images[start : start + block_images]
        block = scores.block(some, captions).T.float()
        if forbidden is not None:
            where = np.searchsorted(some, forbidden)
            hit = np.flatnonzero((where < len(some)) & (some[np.minimum(where, len(some) - 1)] == forbidden))
            if len(hit):
                block = block.contiguous()
                block[
                    torch.from_numpy(hit).to(block.device), torch.from_numpy(where[hit]).to(block.device)
                ] = -torch.inf
        best, index = block.topk(min(keep, len(some)), dim=1)
        if bool(torch.isnan(best[:, 0]).any()):  # topk takes NaN for the largest of all
            row = int(torch.isnan(best[:, 0]).nonzero()[0])
            raise InputError(
                f"scores: NaN for image {int(some[int(index[row, 0])])} and caption {int(captions[row])}; "
                "check the features or the similarity matrix, or train with a smaller learning rate"
            )
        index += start
        if top is not None and place is not None:
            best, index = torch.cat([top, best], 1), torch.cat([place, index], 1)
            best, order = best.topk(min(keep, best.shape[1]), dim=1)
            index = index.gather(1, order)
        top, place = best, index
    assert top is not None
    assert place is not None
    place, order = place.sort(dim=1)
    top, order = top.gather(1, order).sort(dim=1, descending=True, stable=True)
    return top.cpu().numpy(), images[place.gather(1, order).cpu().numpy()].astype(np.int32)


def _places(name: str, given: NDArray[np.integer] | None, total: int) -> NDArray[np.int64]:
    places = np.arange(total) if given is None else np.asarray(given).astype(np.int64)
    wrong = np.flatnonzero((places < 0) | (places >= total))
    if len(wrong):
        raise InputError(f"{name}s: {places[wrong[0]]} at {wrong[0]}, but there are {total}; count from 0")
    if name == "image" and not len(places):
        raise InputError("images: none may be given; allow at least one")
    return places


def _unit(name: str, vectors: NDArray[np.floating] | Tensor) -> Tensor:
    tensor = torch.as_tensor(vectors).detach().float()
    length = torch.linalg.vector_norm(tensor, dim=1, keepdim=True)
    wrong = (~((length > 0) & length.isfinite()))[:, 0].nonzero()
    if len(wrong):
        raise InputError(f"embeddings: that of {name} {int(wrong[0])} is zero or not finite; leave it out or mend it")
    unit: Tensor = tensor / length
    return unit


def _rows(vectors: Tensor, places: NDArray[np.int64]) -> Tensor:
    """Some rows; a view where they follow one another."""
    if len(places) and int(places[-1]) - int(places[0]) + 1 == len(places) and bool((np.diff(places) == 1).all()):
        return vectors[int(places[0]) : int(places[-1]) + 1]
    return vectors[torch.from_numpy(places).to(vectors.device)]
