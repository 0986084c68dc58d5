"""What a batch teaches: ranking losses for given pairs, divergences for soft alignments.

Every function takes the similarities of a batch, `S (images, captions)`, and returns a scalar (a vector where it says
so). `P` is the row softmax of `S / tau`, `Q` that of `Sᵀ / tau`; each formula is taken in both directions, image to
caption and caption to image, and the two are summed. Hard objectives read the diagonal as the given pairs, so they want
`S` square, and take `weights (B,)`: what each given pair counts for as the one to be learned (as a negative of the
others it always counts in full); soft ones take targets `T` of the shape of `S`.

Shapes below: I images, C captions, B of each where the batch is square.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from l2rm.rematching.settings import HardObjective

TARGET_FLOOR = 1e-10
"""Targets are floored here before they are normalised, so that a row without mass becomes uniform, not NaN."""

REVERSE_FLOOR = 1e-7
"""`log` of an impossible pair in the reversed cross entropy is `log(1e-7) ≈ -16.1`."""


def hinges(S: Tensor, margin: float | Tensor = 0.2) -> tuple[Tensor, Tensor]:
    """`[margin + S_ij - S_ii]₊` (image to caption) and `[margin + S_ij - S_jj]₊`, both (B, B), zero on the diagonal.

    A margin (B,) is one a pair: that of i in the first, of j in the second.
    """
    own = S.diagonal()
    apart = ~torch.eye(len(S), dtype=torch.bool, device=S.device)
    of_row, of_column = (margin[:, None], margin[None, :]) if isinstance(margin, Tensor) else (margin, margin)
    to_caption = (of_row + S - own[:, None]).clamp(min=0) * apart
    to_image = (of_column + S - own[None, :]).clamp(min=0) * apart
    return to_caption, to_image


def max_violation(S: Tensor, margin: float = 0.2, weights: Tensor | None = None) -> Tensor:
    """Triplet loss with the hardest negative, summed over the batch (VSE++, Faghri et al. 2018).

    `Σ_i max_{j≠i} [m + S_ij − S_ii]₊ + Σ_j max_{i≠j} [m + S_ij − S_jj]₊`.

    Example:
        >>> max_violation(torch.eye(4))
        tensor(0.)
    """
    to_caption, to_image = hinges(S, margin)
    return _weighted(to_caption.amax(1) + to_image.amax(0), weights).sum()


def mean_violation(S: Tensor, margin: float = 0.2, weights: Tensor | None = None) -> Tensor:
    """Triplet loss over all negatives: the mean over a row (its own pair counts as 0), summed over the batch."""
    return _weighted(pair_loss(S, margin), weights).sum()


def pair_loss(S: Tensor, margin: float = 0.2) -> Tensor:
    """The loss of each pair, (B,), by which the sample division tells matched from mismatched ones.

    `1/B Σ_j [m + S_ij − S_ii]₊ + 1/B Σ_j [m + S_ji − S_ii]₊`: the share of `mean_violation` that pair i bears.
    """
    to_caption, to_image = hinges(S, margin)
    return to_caption.mean(1) + to_image.mean(0)


def infonce(S: Tensor, tau: float = 0.05, weights: Tensor | None = None) -> Tensor:
    """`mean_i −log P_ii + mean_i −log Q_ii` (InfoNCE, van den Oord et al. 2018)."""
    return _weighted(_surprise(S, tau), weights).mean()


def symmetric_cross_entropy(S: Tensor, tau: float = 0.05, weights: Tensor | None = None) -> Tensor:
    """Half cross entropy, half its reverse, which a wrong pair cannot blow up: the warm-up objective of L2RM.

    `½ (mean_i −log P_ii + mean_i −Σ_j log(I_ij + 1e-7) P_ij)`, both directions summed (Wang et al. 2019).

    Example:
        >>> bool(symmetric_cross_entropy(torch.eye(4)) < symmetric_cross_entropy(torch.zeros(4, 4)))
        True
    """
    log_identity = (torch.eye(len(S), dtype=S.dtype, device=S.device) + REVERSE_FLOOR).log()
    reverse_to_caption = -(log_identity * (S / tau).softmax(1)).sum(1)
    reverse_to_image = -(log_identity * (S.T / tau).softmax(1)).sum(1)
    return _weighted(0.5 * (_surprise(S, tau) + reverse_to_caption + reverse_to_image), weights).mean()


def named(name: HardObjective, *, margin: float, tau: float) -> Callable[..., Tensor]:
    """The objective for given pairs that a configuration names, with its parameter filled in.

    It takes `S (B, B)` and, by keyword, `weights (B,)`, and gives a scalar.

    Example:
        >>> named("max_violation", margin=0.5, tau=0.05)(torch.zeros(2, 2))
        tensor(2.)
    """
    return {
        "max_violation": partial(max_violation, margin=margin),
        "mean_violation": partial(mean_violation, margin=margin),
        "infonce": partial(infonce, tau=tau),
        "symmetric_cross_entropy": partial(symmetric_cross_entropy, tau=tau),
    }[name]


def soft_infonce(S: Tensor, T: Tensor, tau: float = 0.05) -> Tensor:
    """InfoNCE against soft targets: `mean_i −Σ_j A_ij log P_ij`, with `A` the floored, row-normalised `T`."""
    return _both_ways(lambda log_a, log_p: -(log_a.exp() * log_p).sum(1).mean(), S, T, tau)


def kl(S: Tensor, T: Tensor, tau: float = 0.05) -> Tensor:
    """`KL(A‖P)`, the mean over rows, both directions."""
    return _both_ways(_divergence, S, T, tau)


def symmetric_kl(S: Tensor, T: Tensor, tau: float = 0.05) -> Tensor:
    """`½ (KL(A‖P) + KL(P‖A))`, the mean over rows, both directions: how L2RM learns from a transport plan `T`.

    Example:
        >>> symmetric_kl(torch.zeros(2, 3), torch.ones(2, 3))
        tensor(0.)
    """
    return _both_ways(lambda log_a, log_p: 0.5 * (_divergence(log_a, log_p) + _divergence(log_p, log_a)), S, T, tau)


def transported(S: Tensor, plan: Tensor, tau: float = 0.05) -> Tensor:
    """Cross entropy where mass moves and nowhere else: `Σ_ij π_ij (−log P_ij − log Q_ij) / Σ_ij π_ij`.

    Unlike the soft objectives above it does not normalise rows, so that a row which transports nothing is no target.

    Example:
        >>> plan = torch.tensor([[0.1, 0.0], [0.0, 0.0]])
        >>> transported(torch.zeros(2, 2), plan)  # log 2 in either direction
        tensor(1.3863)
    """
    surprise = -(S / tau).log_softmax(1) - (S / tau).log_softmax(0)
    return (plan * surprise).sum() / plan.sum()


def js(S: Tensor, T: Tensor, tau: float = 0.05) -> Tensor:
    """Jensen–Shannon in the form of the public code, whose divergences are reversed.

    `½ (KL(M‖P) + KL(M‖A))` with `M = ½ (P + A)`; the usual one is `½ (KL(P‖M) + KL(A‖M))`.
    """

    def one_way(log_a: Tensor, log_p: Tensor) -> Tensor:
        log_m = (0.5 * (log_a.exp() + log_p.exp())).log()
        return 0.5 * (_divergence(log_m, log_p) + _divergence(log_m, log_a))

    return _both_ways(one_way, S, T, tau)


def _surprise(S: Tensor, tau: float) -> Tensor:
    """`−log P_ii − log Q_ii` of each pair."""
    own = torch.arange(len(S), device=S.device)
    return F.cross_entropy(S / tau, own, reduction="none") + F.cross_entropy(S.T / tau, own, reduction="none")


def _weighted(losses: Tensor, weights: Tensor | None) -> Tensor:
    return losses if weights is None else losses * weights


def _both_ways(one_way: Callable[[Tensor, Tensor], Tensor], S: Tensor, T: Tensor, tau: float) -> Tensor:
    """`one_way(log A, log P)` for images to captions plus the same for captions to images."""
    return one_way(_log_targets(T), (S / tau).log_softmax(1)) + one_way(_log_targets(T.T), (S.T / tau).log_softmax(1))


def _log_targets(T: Tensor) -> Tensor:
    floored = (T.float() if T.dtype.itemsize < 4 else T).clamp(min=TARGET_FLOOR)  # half types hold no such floor
    return (floored / floored.sum(1, keepdim=True)).log()


def _divergence(log_a: Tensor, log_b: Tensor) -> Tensor:
    """`mean_i Σ_j A_ij (log A_ij − log B_ij)`."""
    return F.kl_div(log_b, log_a, log_target=True, reduction="batchmean")
