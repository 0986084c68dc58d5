"""Learning from few pairs of a batch, where an objective looks at few."""

from collections.abc import Callable

import torch
from torch import Tensor

from l2rm.similarity.model import Encoded, RetrievalModel


def few_pairs(
    model: RetrievalModel, images: Encoded, captions: Encoded, objective: Callable[[Tensor], Tensor]
) -> Tensor:
    """`objective(S)` of all similarities, with the gradient of those pairs alone that it depends on.

    The hardest-negative triplet depends on some 3B of the B² similarities of a batch. All are computed without
    gradient, those few once more with it: the same value and the same gradient, up to rounding, for a third of the
    work. An objective that depends on all pairs costs more this way.

    Args:
        model: one whose pairs stand alone in its present mode.
        images: N encoded images, with gradient.
        captions: M encoded captions, with gradient.
        objective: similarities (N, M) -> a scalar.

    Example:
        >>> loss = few_pairs(model, images, captions, max_violation)  # doctest: +SKIP
        >>> loss.backward()  # doctest: +SKIP
    """
    with torch.no_grad():
        S = model.score(images.detach(), captions.detach())
    S.requires_grad_()
    loss = objective(S)
    (gradient,) = torch.autograd.grad(loss, S)
    row, column = gradient.nonzero(as_tuple=True)
    if not len(row):  # one pair, so that every parameter is told zero, as by all of them
        row = column = torch.zeros(1, dtype=torch.long, device=S.device)
    scores = model.score_pairs(images.take(row), captions.take(column))
    return loss.detach() + (gradient[row, column] * (scores - scores.detach())).sum()
