"""Scores in two passes: a cheap score shortlists, the similarity ranks the shortlist."""

import torch
from torch import Tensor

from l2rm.encoders.towers import l2_normalise
from l2rm.errors import InputError
from l2rm.similarity.first_pass import FirstPass
from l2rm.similarity.model import Encoded, RetrievalModel, evaluating
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
    if not 0 < share < 1:
        raise InputError(f"shortlist: {share} is no share of the pairs; give one between 0 and 1")
    if not isinstance(model, SimilarityVectors):
        raise InputError("shortlist: this model compares pooled vectors only, so there is nothing to shorten")
    S = pooled(images, captions) if first_pass is None else first_pass.score(images, captions)
    listed = torch.zeros_like(S, dtype=torch.bool)
    for dim in (0, 1):
        best = S.topk(max(1, min(S.shape[dim], round(share / 2 * S.shape[dim]))), dim).indices
        listed.scatter_(dim, best, True)
    S -= S.max() - model.range[0] + 1
    row, column = listed.nonzero(as_tuple=True)
    with evaluating(model):
        S[row, column] = model.score_listed(images, captions, row, column).to(S.dtype)
    return S


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
