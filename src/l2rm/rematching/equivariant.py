"""A learnable cost that knows the row and the column of a cell, and the order and number of neither."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FEATURES, HIDDEN = 8, 4
SHARP = 0.25
"""The sharper of the two temperatures, as a share of tau: near it, a log mean exp is all but the maximum."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """Some similarities that others are held against, a row of them an item: `(items, n)`.

    Attributes:
        mean: `(items,)`; of each item.
        level: `(2, items)`; `t log mean exp(s / t)` of each item at t = tau and at t = SHARP tau, which lies between
            the mean and the maximum.
        ordered: `(items, n)`; the similarities, ascending.
    """

    mean: Tensor
    level: Tensor
    ordered: Tensor

    @classmethod
    def of(cls, S: Tensor, tau: float) -> Context:
        """Of similarities (items, n)."""
        level = [t * ((S / t).logsumexp(1) - math.log(S.shape[1])) for t in (tau, SHARP * tau)]
        return cls(mean=S.mean(1), level=torch.stack(level), ordered=S.detach().sort(dim=1).values.contiguous())

    def take(self, items: Tensor) -> Context:
        """Some of the items, one or more times."""
        return Context(mean=self.mean[items], level=self.level[:, items], ordered=self.ordered[items])

    def features(self, s: Tensor) -> list[Tensor]:
        """Of similarities (items, k): three of that shape, none of which falls as a similarity rises.

        How far each stands above the two levels of its item, and `−log` of the share of the item's similarities that
        are at least as large (equal ones count half).
        """
        values = s.detach().contiguous()
        below = torch.searchsorted(self.ordered, values)
        up_to = torch.searchsorted(self.ordered, values, right=True)
        n = self.ordered.shape[1]
        share = 1 - (below + up_to).to(s) / (2 * n)
        return [s - self.level[0][:, None], s - self.level[1][:, None], -share.clamp(min=0.5 / n).log()]


class EquivariantCost(nn.Module):
    """`C_ij = σ(−f(x_ij))`: how likely image i and caption j do not belong together, in [0, 1]; 49 numbers are learned.

    `x_ij` are the similarity; the same less the means of its row and of its column, plus that of all; and what
    `Context.features` tells of it in its row and in its column: how far it stands above the others, which is less where
    there is a peak elsewhere, and which quantile it is. Similarities are in units of tau. `f` is a network of positive
    weights, `b + u·x + Σ_h v_h tanh(w_h·x + c_h)`. So, by construction, whatever is learned:

    - images and captions in another order have the same costs in that order;
    - a batch that is repeated, images or captions or both, has the same costs, and no weight belongs to a batch size;
    - where a similarity rises and all others stay, its cost does not rise. (As no feature falls: a cell's share in the
      log mean exp of its row is at most 1, and less the means it keeps `(1 − 1/I)(1 − 1/C)` of a rise.)

    (Positive weights: Sill, "Monotonic networks", NIPS 1997.)

    Args:
        tau: temperature of similarities.

    Example:
        >>> cost = EquivariantCost(tau=0.1)(torch.tensor([[0.9, 0.1], [0.1, 0.2]]))
        >>> bool((cost[0, 0] < cost[1, 1]) & (cost[1, 1] < cost[0, 1]))
        True
    """

    def __init__(self, tau: float) -> None:
        super().__init__()
        self.tau = tau
        start = torch.full((1 + HIDDEN, FEATURES), -3.0)
        start[0, 0] = -1.5
        start[1:] += torch.linspace(-0.5, 0.5, HIDDEN * FEATURES).reshape(HIDDEN, FEATURES)
        self.inward = nn.Parameter(start)
        self.shift = nn.Parameter(torch.linspace(-1.5, 1.5, HIDDEN))
        self.outward = nn.Parameter(torch.full((HIDDEN,), -0.5))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, S: Tensor) -> Tensor:
        """(images, captions) similarities -> costs of the same shape."""
        return torch.sigmoid(-self.log_odds(S))

    def log_odds(self, S: Tensor) -> Tensor:
        """`f`: how likely each image and caption belong together, `log(1 − C) − log C`."""
        return self.judged(self.features(S))

    def features(self, S: Tensor) -> Tensor:
        """`x`, (images, captions, 8), of the similarities of a batch; nothing in it is learned."""
        rows, columns = Context.of(S, self.tau), Context.of(S.T, self.tau)
        centred = S - rows.mean[:, None] - columns.mean[None, :] + S.mean()
        return self.joined(S, centred, rows.features(S), [part.T for part in columns.features(S.T)])

    def joined(self, s: Tensor, centred: Tensor, in_row: list[Tensor], in_column: list[Tensor]) -> Tensor:
        """`x` of similarities, the same less the means, and what `Context.features` tells of them; all of one shape."""
        scaled = [part / self.tau for part in (s, centred, *in_row[:2], *in_column[:2])]
        return torch.stack([*scaled, in_row[2], in_column[2]], dim=-1)

    def judged(self, x: Tensor) -> Tensor:
        """`f(x)`, of features (…, 8)."""
        through = x @ F.softplus(self.inward).T
        hidden = torch.tanh(through[..., 1:] + self.shift) @ F.softplus(self.outward)
        found: Tensor = self.bias + through[..., 0] + hidden
        return found


def known_pairs_loss(log_odds: Tensor, matched: Tensor, others: Tensor) -> Tensor:
    """Logistic loss of cells known to match and of cells known not to, half of the weight each.

    `½ mean_matched −log(1 − C) + ½ mean_others −log C`. A cost of 0 everywhere makes the second part infinite, one of
    1 the first; not knowing anything, `C = ½`, has loss log 2.

    Args:
        log_odds: `log(1 − C) − log C` of each cell, any shape.
        matched: of that shape, not negative: how far each is known to match.
        others: likewise, how far not to match.

    Example:
        >>> round(float(known_pairs_loss(torch.zeros(2, 2), torch.eye(2), 1 - torch.eye(2))), 4)
        0.6931
    """
    missed = -(matched * F.logsigmoid(log_odds)).sum() / matched.sum().clamp(min=1e-12)
    false = -(others * F.logsigmoid(-log_odds)).sum() / others.sum().clamp(min=1e-12)
    return 0.5 * (missed + false)
