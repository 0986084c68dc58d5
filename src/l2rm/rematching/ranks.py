"""Sample division by ranks: where a mismatched pair stands among other pairs is pure chance, so it is uniform.

Hold a caption against the image that it is given and against others, by a model that has seen none of them. The share
of images that score at least as high is a p-value: uniform on (0, 1) if the given image is as good as any other, small
if it belongs. The density of all p-values is `f(p) = π + (1 − π) g(p)`, with π the share of mismatched pairs and g
falling. Neither takes a shape to be chosen: f is the likeliest falling density (Grenander, 1956), and π is read where
matched pairs are rare, at large p (Storey, Taylor & Siegmund, JRSS B 2004). A pair is matched with probability
`1 − π / f(p)`, one minus its local false discovery rate (Efron et al., JASA 2001).
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression
from torch import Tensor

from l2rm.errors import InputError

Floats = NDArray[np.float64]

_CUTS = np.arange(0.5, 0.91, 0.05)


@dataclass(frozen=True, kw_only=True, eq=False)
class RankMixture:
    """P-values of matched and of mismatched pairs, told apart.

    Attributes:
        mismatch_ratio: π, the share of mismatched pairs.
        edges: `(k,)` ascending, the last 1: where the steps of f end.
        heights: `(k,)` f on each step, falling.

    Example:
        >>> mixture = RankMixture(mismatch_ratio=0.4, edges=np.array([0.1, 1.0]), heights=np.array([6.4, 0.4]))
        >>> mixture.match_probability(torch.tensor([0.05, 0.1, 0.7]))
        tensor([0.9375, 0.9375, 0.0000])
    """

    mismatch_ratio: float
    edges: Floats
    heights: Floats

    @classmethod
    def fit(cls, p_values: Tensor, *, weights: Tensor | None = None) -> "RankMixture":
        """The likeliest falling density, and the share of mismatched pairs.

        π is the share of p-values above λ divided by 1 − λ, for the λ of 0.5 to 0.9 whose mean squared error against
        the median of all these estimates is estimated to be least: a large λ has few p-values, a small one
        counts matched pairs in.

        Args:
            p_values: any shape, in (0, 1].
            weights: same shape, not negative; a p-value of weight 2 counts as two.

        Raises:
            InputError: no p-values, some outside (0, 1], or weights that are negative or all 0.
        """
        p = p_values.detach().flatten().cpu().double().numpy()
        if not len(p) or not ((p > 0) & (p <= 1)).all():
            raise InputError("p-values: give at least one, all above 0 and at most 1")
        count = np.ones_like(p) if weights is None else weights.detach().flatten().cpu().double().numpy()
        if count.shape != p.shape or not (count >= 0).all() or not count.sum() > 0:
            raise InputError("weights: give one a p-value, none negative and not all 0")
        edges, place = np.unique(np.append(p, 1.0), return_inverse=True)
        share = np.bincount(place, np.append(count, 0.0)) / count.sum()
        widths = np.diff(edges, prepend=0.0)
        heights = isotonic_regression(share / widths, weights=widths, increasing=False).x
        last = np.append(np.diff(heights) != 0, True)
        return cls(mismatch_ratio=_share_of_chance(edges, share, len(p)), edges=edges[last], heights=heights[last])

    def density(self, p_values: Tensor) -> Tensor:
        """`(2, *shape)`: density of the matched and of the mismatched pairs, each times its share."""
        everything = self._everything(p_values)
        mismatched = torch.full_like(everything, self.mismatch_ratio)
        return torch.stack([(everything - mismatched).clamp(min=0), mismatched])

    def match_probability(self, p_values: Tensor) -> Tensor:
        """`1 − π / f(p)`, at least 0: never rising with p; shape, device and dtype of `p_values`."""
        everything = self._everything(p_values)
        return torch.where(everything > self.mismatch_ratio, 1 - self.mismatch_ratio / everything, 0.0)

    def _everything(self, p_values: Tensor) -> Tensor:
        """f(p)."""
        edges = torch.from_numpy(self.edges).to(p_values)
        return torch.from_numpy(self.heights).to(p_values)[
            torch.searchsorted(edges, p_values).clamp(max=len(edges) - 1)
        ]


def _share_of_chance(edges: Floats, share: Floats, number: int) -> float:
    """π from the distinct p-values `edges`, a `share` of all `number` at each."""
    above = np.array([share[edges > cut].sum() for cut in _CUTS])
    estimates = np.minimum(1.0, above / (1 - _CUTS))
    variance = above * (1 - above) / (number * (1 - _CUTS) ** 2)
    error = variance + (estimates - np.median(estimates)) ** 2
    return float(estimates[error.argmin()])
