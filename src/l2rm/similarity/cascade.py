"""Scores in two passes: a cheap score shortlists, the similarity ranks the shortlist."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.encoders.towers import l2_normalise
from l2rm.errors import InputError
from l2rm.similarity.first_pass import FirstPass, compare
from l2rm.similarity.model import Encoded, RetrievalModel, evaluating
from l2rm.similarity.scoring import ENCODE_CHUNK, ModelScores, joined
from l2rm.similarity.sgraf import SimilarityVectors


@torch.no_grad()
def cascade(
    model: RetrievalModel, images: Encoded, captions: Encoded, share: float, first_pass: FirstPass | None = None
) -> Tensor:
    """Similarities (N, M), exact for at most a `share` of the pairs and below all of those for the rest.

    A pair is scored if it is among the best `share / 2` of its image or of its caption by the first pass; the rest
    follow in the order of the first pass. What is ranked first is right as far as the shortlist holds it: measure that
    on dev data, as benchmarks/cascade.py does, before relying on it.

    Args:
        model: one with regions and words, such as SGR; a cosine is cheap as it is.
        images: N encoded images.
        captions: M encoded captions.
        share: part of the pairs that may be scored, in (0, 1).
        first_pass: what `l2rm.training.distil` made for this model; `pooled`, which needs no training and a list
            several times as long, where there is none.

    Raises:
        InputError: `share` is out of range, or the model has no local vectors.

    Example:
        >>> S = cascade(model, images, captions, share=0.06, first_pass=first_pass)  # doctest: +SKIP
    """
    model = _slow(model)
    S = pooled(images, captions) if first_pass is None else first_pass.score(images, captions)
    row, column = shortlist(S, share).nonzero(as_tuple=True)
    S -= S.max() - model.range[0] + 1
    with evaluating(model):
        S[row, column] = model.score_listed(images, captions, row, column).to(S.dtype)
    return S


class CascadeScores:
    """The cascade's scores of a whole data set, in the memory of the matrix and of a block's encodings.

    Made at once, and kept: 4 bytes a pair. Encoded images and captions are those of `scores`, block by block.

    Args:
        scores: the model's, of all images against all captions.
        share: as `cascade` takes it.
        first_pass: what `l2rm.training.distil` made for this model.

    Raises:
        InputError: what `cascade` raises.

    Example:
        >>> scores = CascadeScores(ModelScores(model, pairs), 0.05, first_pass)  # doctest: +SKIP
        >>> evaluate_scores(scores, pairs.image_of).rsum  # doctest: +SKIP
        312.4
    """

    @torch.no_grad()
    def __init__(self, scores: ModelScores, share: float, first_pass: FirstPass) -> None:
        model = _slow(scores.model)
        images = _shortened(first_pass, scores.encoded_images, scores.n_images)
        S = compare(images, _shortened(first_pass, scores.encoded_captions, scores.n_captions))
        listed = shortlist(S, share)
        self.scored = float(listed.float().mean())
        S -= S.max() - model.range[0] + 1
        for columns in np.array_split(np.arange(scores.n_captions), -(-scores.n_captions // (2 * ENCODE_CHUNK))):
            captions = scores.encoded_captions(columns)
            for rows in np.array_split(np.arange(scores.n_images), -(-scores.n_images // ENCODE_CHUNK)):
                some = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
                row, column = listed[some].nonzero(as_tuple=True)
                with evaluating(model):
                    found = model.score_listed(scores.encoded_images(rows), captions, row, column)
                S[some][row, column] = found.to(S.dtype)
        self._S = S

    @property
    def n_images(self) -> int:
        """Rows of the whole matrix."""
        return len(self._S)

    @property
    def n_captions(self) -> int:
        """Columns of the whole matrix."""
        return self._S.shape[1]

    def block(self, images: NDArray[np.int64], captions: NDArray[np.int64]) -> Tensor:
        """Scores (len(images), len(captions))."""
        return self._S[torch.from_numpy(images)[:, None], torch.from_numpy(captions)]


def _shortened(first_pass: FirstPass, encoded: Callable[[NDArray[np.int64]], Encoded], total: int) -> Encoded:
    chunks = np.array_split(np.arange(total), -(-total // ENCODE_CHUNK))
    return joined([first_pass.shorten(encoded(chunk)) for chunk in chunks])


def _slow(model: RetrievalModel) -> SimilarityVectors:
    if not isinstance(model, SimilarityVectors):
        raise InputError("shortlist: this model compares pooled vectors only, so there is nothing to shorten")
    return model


def shortlist(cheap: Tensor, share: float) -> Tensor:
    """Which of the pairs (N, M) are among the best `share / 2` of their image or of their caption.

    Raises:
        InputError: `share` is out of range.
    """
    if not 0 < share < 1:
        raise InputError(f"shortlist: {share} is no share of the pairs; give one between 0 and 1")
    listed = torch.zeros_like(cheap, dtype=torch.bool)
    for dim in (0, 1):
        best = cheap.topk(max(1, min(cheap.shape[dim], round(share / 2 * cheap.shape[dim]))), dim).indices
        listed.scatter_(dim, best, True)
    return listed


def pooled(images: Encoded, captions: Encoded) -> Tensor:
    """A cheap score (N, M): the cosines of pooled vectors and of mean local vectors, each standardised both ways.

    Standardising along images and along captions takes away what makes some images or captions near to everything.
    """
    assert images.local is not None
    assert captions.local is not None
    pairs = (
        (images.whole, captions.whole),
        (l2_normalise(images.local.float().mean(1)), l2_normalise(captions.local.float().sum(1))),
    )
    total = torch.zeros(len(images), len(captions), device=images.whole.device)
    for image, caption in pairs:
        cosine = image.float() @ caption.float().T
        for dim in (0, 1):
            deviation, mean = torch.std_mean(cosine, dim, correction=0, keepdim=True)
            total += (cosine - mean) / deviation.clamp(min=torch.finfo(cosine.dtype).tiny)
    return total
