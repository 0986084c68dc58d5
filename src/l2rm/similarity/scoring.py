"""A model's scores of all images against all captions of some pairs, block by block."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.data.batches import Batches
from l2rm.data.pairs import Pairs
from l2rm.similarity.model import Encoded, RetrievalModel, evaluating

ENCODE_CHUNK = 512


class ModelScores:
    """Every image and caption is encoded once, in evaluation mode; a block then costs its score alone.

    Example:
        >>> scores = ModelScores(model, pairs)  # doctest: +SKIP
        >>> evaluate_scores(scores, pairs.image_of).rsum  # doctest: +SKIP
        312.4
    """

    @torch.no_grad()
    def __init__(self, model: RetrievalModel, pairs: Pairs) -> None:
        self.model = model
        batches = Batches(pairs, model.vocabulary, next(model.parameters()).device)
        with evaluating(model):
            self.images = _joined(
                [model.encode_images(batches.images(index)) for index in _chunks(pairs.n_images, ENCODE_CHUNK)]
            )
            self.captions = _joined(
                [model.encode_captions(*batches.captions(index)) for index in _chunks(len(pairs), ENCODE_CHUNK)]
            )

    @property
    def n_images(self) -> int:
        """Distinct images."""
        return len(self.images)

    @property
    def n_captions(self) -> int:
        """Captions, one a row of the pairs."""
        return len(self.captions)

    @torch.no_grad()
    def block(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Tensor:
        """Scores (len(images), len(captions))."""
        with evaluating(self.model):
            return self.model.score(
                self.images.take(torch.from_numpy(images)), self.captions.take(torch.from_numpy(captions))
            )


def _chunks(total: int, size: int) -> list[NDArray[np.int64]]:
    return [np.arange(start, min(start + size, total)) for start in range(0, total, size)]


def _joined(parts: list[Encoded]) -> Encoded:
    """One after the other, words padded to the longest caption of all."""
    local = None
    if parts[0].local is not None:
        pieces = [part.local for part in parts if part.local is not None]
        longest = max(piece.shape[1] for piece in pieces)
        local = pieces[0].new_zeros(sum(map(len, pieces)), longest, pieces[0].shape[2])
        start = 0
        for piece in pieces:
            local[start : start + len(piece), : piece.shape[1]] = piece
            start += len(piece)
    lengths = None
    if parts[0].lengths is not None:
        lengths = torch.cat([part.lengths for part in parts if part.lengths is not None])
    return Encoded(torch.cat([part.whole for part in parts]), local, lengths)
