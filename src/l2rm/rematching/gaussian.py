"""Sample division by two Gaussians: as NCR does it, or in the place of two Betas."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from l2rm.errors import InputError

_LEAST_GAIN = 0.004  # mean log-likelihood by which two components must beat one, as for two Betas


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianMixture:
    """Two Gaussians fitted to losses by EM; component 0, of the lower mean, is the matched one.

    With `x = (loss - lower) / (upper - lower)`, the density of `x` is `Σ_k weight_k N(x; mean_k, variance_k)`.
    (Co-dividing by Gaussians: Li et al., DivideMix, ICLR 2020; Huang et al., NCR, NeurIPS 2021.)

    Attributes:
        mean, variance, weight: `(2,)` float64 on the CPU.
        lower, upper: the smallest and largest loss fitted.
        converged: whether the likelihood settled before `max_iterations`.
        degenerate: None, or why there is nothing to divide: "constant" (all losses are equal), "one mode" (a single
            Gaussian explains the losses as well). All pairs are then matched.

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
    degenerate: Literal["constant", "one mode"] | None = None

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        losses: Tensor,
        *,
        one_mode: Literal["matched", "mixture"] = "mixture",
        max_iterations: int = 100,
        tolerance: float = 1e-4,
        floor: float = 5e-4,
    ) -> GaussianMixture:
        """Fit by expectation maximisation from the halves below and above the median.

        Args:
            losses: any shape, one loss a pair.
            one_mode: what to do where one Gaussian explains the losses as well as two do (by BIC for three parameters,
                or to 0.004 of mean log-likelihood). "matched" takes all pairs as matched; "mixture" divides all the
                same, as published. A single heap with a tail, such as that of triplet losses, is no single Gaussian.
            max_iterations: EM iterations.
            tolerance: gain in mean log-likelihood at which it stops.
            floor: added to every variance, so that no component shrinks onto a single loss (NCR: 5e-4).

        Raises:
            InputError: no losses, or one that is not finite.
        """
        values = losses.detach().cpu().double().flatten()
        if not len(values):
            raise InputError("losses: there are none; give one loss a pair")
        if not values.isfinite().all():
            raise InputError(f"losses: loss {int((~values.isfinite()).nonzero()[0])} is not finite")
        lower, upper = (float(edge) for edge in values.aminmax())
        rounding = 4 * torch.finfo(losses.dtype if losses.is_floating_point() else values.dtype).eps
        if upper - lower <= rounding * max(abs(lower), abs(upper)):
            return cls._all_matched("constant", lower, upper)
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
        needed = max(1.5 * math.log(len(x)) / len(x), _LEAST_GAIN)
        alone = float(x.var(correction=0)) + floor
        single = -0.5 * (float(x.var(correction=0)) / alone + math.log(2 * math.pi * alone))
        if one_mode == "matched" and likelihood - single < needed:
            return cls._all_matched("one mode", lower, upper)
        order = mean.argsort()
        return cls(
            mean=mean[order],
            variance=variance[order],
            weight=weight[order],
            lower=lower,
            upper=upper,
            converged=converged,
        )

    @classmethod
    def _all_matched(cls, why: Literal["constant", "one mode"], lower: float, upper: float) -> GaussianMixture:
        nothing = torch.zeros(2, dtype=torch.float64)
        return cls(
            mean=nothing,
            variance=nothing + 1,
            weight=torch.tensor([1.0, 0.0], dtype=torch.float64),
            lower=lower,
            upper=upper,
            converged=True,
            degenerate=why,
        )

    @property
    def mismatch_ratio(self) -> float:
        """The weight of the mismatched component."""
        return float(self.weight[1])

    def match_probability(self, losses: Tensor, *, monotone: bool = False) -> Tensor:
        """The posterior of the matched component, of the shape of `losses`, in float64 on the CPU.

        Args:
            losses: any shape.
            monotone: two Gaussians of different spread cross twice, so that beyond its turning point the posterior
                gives a higher loss a higher probability. True holds it at its value there; False is the raw
                posterior, as published.
        """
        if self.degenerate:
            return torch.ones(losses.shape, dtype=torch.float64)
        x = (losses.detach().cpu().double() - self.lower) / (self.upper - self.lower)
        (m0, m1), (v0, v1) = self.mean.tolist(), self.variance.tolist()
        if monotone and v0 != v1:  # log-odds turn where (x - m0) / v0 = (x - m1) / v1, outside (m0, m1)
            turn = (m0 * v1 - m1 * v0) / (v1 - v0)
            x = x.clamp(min=turn) if v1 > v0 else x.clamp(max=turn)
        log_density = _log_density(x, self.mean, self.variance, self.weight)
        return (log_density[0] - log_density.logsumexp(0)).exp()


def _log_density(x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor) -> Tensor:
    """(2, …) `log weight_k N(x; mean_k, variance_k)`."""
    shape = (2, *([1] * x.dim()))
    mean, variance, weight = (part.reshape(shape) for part in (mean, variance, weight))
    return weight.log() - 0.5 * ((x - mean) ** 2 / variance + (2 * math.pi * variance).log())
