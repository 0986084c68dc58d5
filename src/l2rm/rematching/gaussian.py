"""Sample division by two Gaussians, as NCR does it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from l2rm.errors import InputError


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianMixture:
    """Two Gaussians fitted to losses by EM; component 0, of the lower mean, is the matched one.

    With `x = (loss - lower) / (upper - lower)`, the density of `x` is `Σ_k weight_k N(x; mean_k, variance_k)`.
    (Co-dividing by Gaussians: Li et al., DivideMix, ICLR 2020; Huang et al., NCR, NeurIPS 2021.)

    Attributes:
        mean, variance, weight: `(2,)` float64 on the CPU.
        lower, upper: the smallest and largest loss fitted.
        converged: whether the likelihood settled before `max_iterations`.

    Example:
        >>> losses = torch.cat([torch.linspace(0.0, 0.3, 60), torch.linspace(0.7, 1.0, 40)])
        >>> mixture = GaussianMixture.fit(losses)
        >>> int((mixture.match_probability(losses) > 0.5).sum())
        60
    """

    mean: Tensor
    variance: Tensor
    weight: Tensor
    lower: float
    upper: float
    converged: bool

    @classmethod
    def fit(
        cls, losses: Tensor, *, max_iterations: int = 100, tolerance: float = 1e-4, floor: float = 5e-4
    ) -> GaussianMixture:
        """Fit by expectation maximisation from the halves below and above the median.

        Args:
            losses: `(pairs,)`, at least two different ones.
            max_iterations: EM iterations.
            tolerance: gain in mean log-likelihood at which it stops.
            floor: added to every variance, so that no component shrinks onto a single loss (NCR: 5e-4).

        Raises:
            InputError: a loss is not finite, or all are equal.
        """
        values = losses.detach().double().cpu().flatten()
        if not values.isfinite().all():
            raise InputError(f"losses: loss {int((~values.isfinite()).nonzero()[0])} is not finite")
        lower, upper = (float(edge) for edge in values.aminmax())
        if lower == upper:
            raise InputError(f"losses: all {len(values)} are equal, so nothing tells pairs apart")
        x = (values - lower) / (upper - lower)
        above = x > x.median()
        if not above.any():
            above = x == x.max()
        low = torch.where(above, 0.0, 1.0).double()
        likelihood, converged = -math.inf, False
        for _ in range(max_iterations):
            share = torch.stack([low, 1 - low])
            total = share.sum(1).clamp(min=1e-12)
            mean = share @ x / total
            variance = (share * (x - mean[:, None]) ** 2).sum(1) / total + floor
            weight = total / len(x)
            log_density = _log_density(x, mean, variance, weight)
            low = (log_density[0] - log_density.logsumexp(0)).exp()
            before, likelihood = likelihood, float(log_density.logsumexp(0).mean())
            if likelihood - before < tolerance:
                converged = True
                break
        order = mean.argsort()
        return cls(
            mean=mean[order],
            variance=variance[order],
            weight=weight[order],
            lower=lower,
            upper=upper,
            converged=converged,
        )

    @property
    def mismatch_ratio(self) -> float:
        """The weight of the mismatched component."""
        return float(self.weight[1])

    def match_probability(self, losses: Tensor) -> Tensor:
        """The posterior of the matched component, of the shape of `losses`, in float64 on the CPU."""
        x = (losses.detach().double().cpu() - self.lower) / (self.upper - self.lower)
        log_density = _log_density(x, self.mean, self.variance, self.weight)
        return (log_density[0] - log_density.logsumexp(0)).exp()


def _log_density(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor) -> Tensor:
    """(2, …) `log weight_k N(x; mean_k, variance_k)`."""
    shape = (2, *([1] * x.dim()))
    mean, variance, weight = (part.reshape(shape) for part in (mean, variance, weight))
    return weight.log() - 0.5 * ((x - mean) ** 2 / variance + (2 * math.pi * variance).log())
