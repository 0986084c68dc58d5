"""Sample division by ranks: where a mismatched pair stands among other pairs is pure chance, so it is uniform.

Hold a caption against the image that it is given and against others, by a model that has seen none of them. The share
of images that score at least as high is a p-value: uniform on (0, 1) if the given image is as good as any other, small
if it belongs. All p-values together follow a Beta–uniform mixture (Pounds & Morris, Bioinformatics 2003),
`f(p) = u + (1 − u) a p^(a−1)`, 0 < a ≤ 1, whose largest uniform part, `f(1) = u + (1 − u) a`, is the share of
mismatched pairs. No threshold is chosen and the ratio need not be known.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from l2rm.errors import InputError

_SMALLEST_SHAPE = 1e-3


@dataclass(frozen=True, kw_only=True)
class RankMixture:
    """A Beta–uniform mixture: `uniform` is u, `shape` is a.

    Example:
        >>> import torch
        >>> mixture = RankMixture(uniform=0.0, shape=0.25)
        >>> mixture.mismatch_ratio
        0.25
        >>> mixture.match_probability(torch.tensor([1.0, 0.0625]))
        tensor([0.0000, 0.8750])
    """

    uniform: float
    shape: float

    @classmethod
    def fit(
        cls,
        p_values: Tensor,
        *,
        weights: Tensor | None = None,
        max_iterations: int = 1000,
        tolerance: float = 1e-10,
    ) -> "RankMixture":
        """Maximum likelihood by EM: the shape has the closed form `−Σ w / Σ w log p`.

        Args:
            p_values: any shape, in (0, 1].
            weights: same shape, not negative; a p-value of weight 2 counts as two.
            max_iterations: of EM.
            tolerance: EM stops when neither parameter moves by more.

        Raises:
            InputError: no p-values, some outside (0, 1], or weights that are negative or all 0.
        """
        p = p_values.detach().flatten().double().cpu()
        if not len(p) or not bool(((p > 0) & (p <= 1)).all()):
            raise InputError("p-values: give at least one, all above 0 and at most 1")
        count = torch.ones_like(p) if weights is None else weights.detach().flatten().double().cpu()
        if count.shape != p.shape or not bool((count >= 0).all()) or not bool(count.sum() > 0):
            raise InputError("weights: give one a p-value, none negative and not all 0")
        logs = p.log()
        uniform, shape = 0.5, 0.5
        for _ in range(max_iterations):
            beta = (1 - uniform) * shape * ((shape - 1) * logs).exp()
            share = beta / (beta + uniform)
            share = count * share
            surprise = float((share * logs).sum())
            before = uniform, shape
            uniform = float(1 - share.sum() / count.sum())
            shape = min(1.0, max(_SMALLEST_SHAPE, -float(share.sum()) / surprise)) if surprise else 1.0
            if max(abs(uniform - before[0]), abs(shape - before[1])) < tolerance:
                break
        return cls(uniform=uniform, shape=shape)

    @property
    def mismatch_ratio(self) -> float:
        """The share of mismatched pairs, `f(1)`: the most that can be uniform."""
        return self.uniform + (1 - self.uniform) * self.shape

    def density(self, p_values: Tensor) -> Tensor:
        """`(2, *shape)`: density of the matched and of the mismatched pairs, each times its share."""
        everything = self.uniform + (1 - self.uniform) * self.shape * p_values ** (self.shape - 1)
        mismatched = torch.full_like(everything, self.mismatch_ratio)
        return torch.stack([(everything - mismatched).clamp(min=0), mismatched])

    def match_probability(self, p_values: Tensor) -> Tensor:
        """`1 − f(1) / f(p)`: 0 at p = 1, never rising with p; shape, device and dtype of `p_values`."""
        density = self.uniform + (1 - self.uniform) * self.shape * p_values ** (self.shape - 1)
        return (1 - self.mismatch_ratio / density).clamp(0, 1)
