"""Sample division: from the loss of every given pair to the probability that the pair is matched.

Pairs that belong together are learned first, so after the warm-up their losses are small and those of mismatched pairs
large. A mixture of two Beta distributions is fitted to the losses, min-max scaled to [0, 1]; the posterior of its low
component is the match probability (L2RM, CVPR 2024; the mixture goes back to Arazo et al., ICML 2019).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from scipy.special import betaln, digamma, zeta
from torch import Tensor

from l2rm.errors import InputError

Degenerate = Literal["constant", "too few", "one mode"]
Estimator = Literal["likelihood", "moments"]

_EDGE = 1e-3  # scaled losses at 0 and 1 are moved here, where a Beta density is finite; also where matched is decided
_BOUNDS = (1e-2, 1e4)  # of every alpha and beta: no component shrinks onto a single loss
_LEAST_SUM = 1e-4  # of alpha and beta, by moments: a component may heap up at both ends
_FEWEST = 4  # distinct losses that a division needs
_REACH = (0.0, 0.02, 0.1, 0.5, 2.0, 10.0)  # how far the range of a single Beta may reach beyond the scaled losses
_LEAST_GAIN = 0.004  # mean log-likelihood by which two components must beat one, however many losses there are
_TRIAL = 20  # iterations before the best start is chosen


@dataclass(frozen=True, kw_only=True, eq=False)
class BetaMixture:
    """Two Beta distributions fitted to losses; component 0 is the matched one.

    With `x = clip((loss - lower) / (upper - lower))`, the density of `x` is
    `sum_k weight_k x^(alpha_k - 1) (1 - x)^(beta_k - 1) / B(alpha_k, beta_k)`.

    Attributes:
        alpha, beta, weight: `(2,)` float64 on the CPU.
        lower, upper: the smallest and largest loss fitted.
        converged: whether the likelihood settled before `max_iterations`.
        iterations: EM iterations from the start that was chosen.
        log_likelihood: of the scaled losses, each counted by its weight.
        degenerate: None, or why there is nothing to divide: "constant" (all losses are equal), "too few" (fewer than
            four distinct losses), "one mode" (a single Beta explains the losses as well, or the two do not tell low
            losses from high ones). All pairs are then matched, because nothing speaks against any of them; alpha and
            beta are those of the single Beta, 1 if there is none.

    Example:
        >>> losses = torch.cat([torch.linspace(0.0, 0.3, 60), torch.linspace(0.7, 1.0, 40)])
        >>> mixture = BetaMixture.fit(losses)
        >>> int((mixture.match_probability(losses) > 0.5).sum())
        60
    """

    alpha: Tensor
    beta: Tensor
    weight: Tensor
    lower: float
    upper: float
    converged: bool
    iterations: int
    log_likelihood: float
    degenerate: Degenerate | None = None

    @classmethod
    @torch.no_grad()
    def fit(
        cls,
        losses: Tensor,
        *,
        weights: Tensor | None = None,
        one_mode: Literal["matched", "mixture"] = "matched",
        estimator: Estimator = "likelihood",
        max_iterations: int = 1000,
        tolerance: float = 1e-8,
    ) -> BetaMixture:
        """Fits the mixture by EM, from three starts of which the likeliest is carried on.

        Args:
            losses: any shape, one loss a pair. The work is done in float64 on their device (float32 on MPS).
            weights: same shape, not negative; a pair of weight 2 counts as two pairs.
            one_mode: what to do where one Beta, on a range of its own, explains the losses as well as two do (by BIC
                for three parameters, or to 0.004 of mean log-likelihood): "matched" takes all pairs as matched, since
                two components fitted to a single heap call any share of it mismatched, up to 99 %; so it does where
                the matched component, that of the least losses, has not the lower mean or heaps the greatest losses up
                too. "mixture" divides all the same, as published.
            estimator: what EM takes for the shapes of a component. "likelihood": the likeliest ones. "moments": those
                with its mean and variance, from one start only, the slopes of Arazo et al.; where many losses are
                exactly 0, as those of a triplet loss become, the likeliest shapes shrink onto them, moments do not.
            max_iterations: of EM, for the start that is chosen.
            tolerance: EM stops when an iteration changes the mean log-likelihood of a pair by less.

        Raises:
            InputError: no losses, losses or weights that are not finite, negative weights, a shape that differs.
        """
        if one_mode not in ("matched", "mixture"):
            raise InputError(f'one_mode: "{one_mode}" is unknown; take "matched" or "mixture"')
        if estimator not in ("likelihood", "moments"):
            raise InputError(f'estimator: "{estimator}" is unknown; take "likelihood" or "moments"')
        if max_iterations < 1:
            raise InputError(f"max_iterations: {max_iterations} is less than 1; try 1000")
        values, counts = _checked(losses, weights)
        if len(values) == 0:
            raise InputError("losses: there are none of positive weight; give one loss a pair")
        lower, upper = (float(value) for value in torch.aminmax(values))
        rounding = 4 * torch.finfo(losses.dtype if losses.is_floating_point() else values.dtype).eps
        if upper - lower <= rounding * max(abs(lower), abs(upper)):
            return cls._all_matched("constant", lower, upper)
        if len(torch.unique(values)) < _FEWEST:
            return cls._all_matched("too few", lower, upper)
        x = _scaled(values, lower, upper)
        if one_mode == "matched" or estimator == "likelihood":
            data = _Data(x, counts, "likelihood")
            best = _likeliest(data, max_iterations, tolerance)
            if one_mode == "matched":
                alone, elsewhere = data.single()
                needed = max(1.5 * math.log(max(data.total, 1.0)), _LEAST_GAIN * data.total)
                if best.likelihood - elsewhere < needed or not _is_low(*best.shapes):
                    return cls._all_matched("one mode", lower, upper, *alone)
        if estimator == "moments":
            best = _expectation_maximisation(_Data(x, counts, "moments"), _SLOPES, max_iterations, tolerance).ordered()
        return cls(
            alpha=_pair([shape[0] for shape in best.shapes]),
            beta=_pair([shape[1] for shape in best.shapes]),
            weight=_pair(list(best.weight)),
            lower=lower,
            upper=upper,
            converged=best.converged,
            iterations=best.iterations,
            log_likelihood=best.likelihood,
        )

    @classmethod
    def _all_matched(
        cls, why: Degenerate, lower: float, upper: float, alpha: float = 1.0, beta: float = 1.0, likelihood: float = 0.0
    ) -> BetaMixture:
        return cls(
            alpha=_pair([alpha, alpha]),
            beta=_pair([beta, beta]),
            weight=_pair([1.0, 0.0]),
            lower=lower,
            upper=upper,
            converged=True,
            iterations=0,
            log_likelihood=likelihood,
            degenerate=why,
        )

    @property
    def mismatch_ratio(self) -> float:
        """The estimated share of mismatched pairs: the weight of their component, 0 where nothing could be divided."""
        return 0.0 if self.degenerate else float(self.weight[1])

    @torch.no_grad()
    def match_probability(self, losses: Tensor, *, monotone: bool = True) -> Tensor:
        """The posterior of the matched component for each loss; a pair counts as matched above 0.5.

        Args:
            losses: any shape; beyond `lower` and `upper` they count as these.
            monotone: two Beta densities of different spread cross twice, so that beyond its turning point the posterior
                gives a higher loss a higher probability. True holds it at its value at the turning point; False is
                the raw posterior, as published.

        Returns:
            Probabilities in [0, 1], of the shape, device and (floating) dtype of `losses`.

        Raises:
            InputError: a loss is not finite.
        """
        values, _ = _checked(losses, None)
        dtype = losses.dtype if losses.is_floating_point() else torch.get_default_dtype()
        if self.degenerate:
            return torch.ones(losses.shape, dtype=dtype, device=losses.device)
        x = _scaled(values, self.lower, self.upper)
        (a0, a1), (b0, b1) = self.alpha.tolist(), self.beta.tolist()
        if monotone:  # the published scaling moves the least loss past those just above it, and the largest likewise
            x = x.clamp(_EDGE, 1 - _EDGE)
            # The log-odds turn where (a0 - a1)(1 - x) = (b0 - b1) x, at most once inside (0, 1).
            if (a0 - a1) * (b0 - b1) > 0:
                turn = (a0 - a1) / (a0 - a1 + b0 - b1)
                x = x.clamp(min=turn) if a0 > a1 else x.clamp(max=turn)
            elif a0 > a1 or b0 < b1:  # rising all the way: a component sits on losses nearer to the least than the edge
                x = torch.full_like(x, _EDGE)
        w0, w1 = self.weight.tolist()
        constant = _log(w0) - _log(w1) - float(betaln(a0, b0)) + float(betaln(a1, b1))
        odds = (a0 - a1) * x.log() + (b0 - b1) * torch.log1p(-x) + constant
        return torch.sigmoid(odds).reshape(losses.shape).to(dtype)

    @torch.no_grad()
    def density(self, losses: Tensor) -> Tensor:
        """`(2, *shape)`: density of each component times its weight, on the scale of the losses, 0 outside their range.

        Each integrates to its weight. Constant losses have no density; it is given as 0.
        """
        values, _ = _checked(losses, None)
        width = self.upper - self.lower
        if width <= 0:
            return torch.zeros((2, *losses.shape), dtype=values.dtype, device=values.device)
        inside = (values >= self.lower) & (values <= self.upper)
        x = ((values - self.lower) / width).clamp(1e-6, 1 - 1e-6)
        parts = [
            torch.exp((a - 1) * x.log() + (b - 1) * torch.log1p(-x) - float(betaln(a, b))) * w * inside / width
            for a, b, w in zip(self.alpha.tolist(), self.beta.tolist(), self.weight.tolist(), strict=True)
        ]
        return torch.stack(parts).reshape(2, *losses.shape)


@dataclass(frozen=True, kw_only=True)
class _State:
    """Parameters between two EM iterations; `likelihood` is theirs."""

    shapes: tuple[tuple[float, float], tuple[float, float]]
    weight: tuple[float, float]
    likelihood: float = -math.inf
    iterations: int = 0
    converged: bool = False

    def ordered(self) -> _State:
        """The same with the matched component first: the one likelier at the least losses."""
        if _log_beta(_EDGE, *self.shapes[0]) >= _log_beta(_EDGE, *self.shapes[1]):
            return self
        return replace(self, shapes=self.shapes[::-1], weight=self.weight[::-1])


_SLOPES = _State(shapes=((1.0, 2.0), (2.0, 1.0)), weight=(0.5, 0.5))
"""Where EM starts in Arazo et al.: one density falls all the way, the other rises."""


class _Data:
    """Scaled losses as EM sees them: a density needs only log x and log(1 - x), moments only x and its square."""

    def __init__(self, x: Tensor, counts: Tensor, estimator: Estimator) -> None:
        self.x, self.counts, self.estimator = x, counts, estimator
        self.statistics = torch.stack([torch.ones_like(x), x.log(), torch.log1p(-x)])
        self.powers = torch.stack([torch.ones_like(x), x, x.square()])
        self.total = float(counts.sum())

    def single(self) -> tuple[tuple[float, float, float], float]:
        """alpha, beta and log-likelihood of the likeliest single Beta on [0, 1]; the likelihood of one on any range.

        Min-max scaling puts the ends of the range at the extreme losses, where a single heap seldom has its own: on
        [0, 1] two components fit any heap better than one. So the single Beta may reach beyond, by `_REACH`.
        """
        low = [float((self.counts * (self.x + reach).log()).sum()) / self.total for reach in _REACH]
        high = [float((self.counts * (1 - self.x + reach).log()).sum()) / self.total for reach in _REACH]
        alpha, beta = _maximise(low[0], high[0], (1.0, 1.0))
        best = -math.inf
        for p, before in zip(low, _REACH, strict=True):
            for q, beyond in zip(high, _REACH, strict=True):
                width = math.log(1 + before + beyond)
                shape = _maximise(p - width, q - width, (alpha, beta))
                best = max(best, _mean_likelihood(*shape, p - width, q - width) - width)
        return (alpha, beta, self.total * _mean_likelihood(alpha, beta, low[0], high[0])), best * self.total

    def starts(self) -> list[_State]:
        """The two slopes; and losses split at their (weighted) median and at half of their range."""
        values, order = self.x.sort()
        median = values[torch.searchsorted(self.counts[order].cumsum(0), self.total / 2).clamp(max=len(values) - 1)]
        states = [_SLOPES]
        for cut in (float(median), 0.5):
            low = torch.where(self.x <= cut, 0.95, 0.05)
            states.append(self.maximised(low, _SLOPES))
        return states

    def expectation(self, state: _State) -> tuple[Tensor, float]:
        """Responsibility of component 0 for each loss, and the log-likelihood of `state`."""
        rows = [
            [_log(w) - float(betaln(a, b)), a - 1, b - 1] for (a, b), w in zip(state.shapes, state.weight, strict=True)
        ]
        _, log_x, log_rest = self.statistics
        first, second = (constant + a * log_x + b * log_rest for constant, a, b in rows)
        likelihood = float((self.counts * torch.logaddexp(first, second)).sum())
        return torch.sigmoid(first - second), likelihood

    def maximised(self, low: Tensor, state: _State) -> _State:
        """The estimator's parameters given the responsibilities; `state` is where a search for the likeliest begins."""
        shares = torch.stack([self.counts * low, self.counts * (1 - low)])
        by_moments = self.estimator == "moments"
        sums = (shares[:, None] * (self.powers if by_moments else self.statistics)).sum(2).tolist()
        weights = [max(row[0] / self.total, 1e-300) for row in sums]
        shapes = [
            shape
            if row[0] <= 1e-12 * self.total
            else (
                _of_moments(row[1] / row[0], row[2] / row[0])
                if by_moments
                else _maximise(row[1] / row[0], row[2] / row[0], shape)
            )
            for row, shape in zip(sums, state.shapes, strict=True)
        ]
        return _State(shapes=(shapes[0], shapes[1]), weight=(weights[0], weights[1]))


def _likeliest(data: _Data, limit: int, tolerance: float) -> _State:
    """EM from every start, carried on from the one that is likeliest after a few iterations."""
    trials = [_expectation_maximisation(data, start, min(_TRIAL, limit), tolerance) for start in data.starts()]
    best = max(trials, key=lambda state: state.likelihood)
    if not best.converged:
        best = _expectation_maximisation(data, best, limit, tolerance)
    return best.ordered()


def _expectation_maximisation(data: _Data, state: _State, limit: int, tolerance: float) -> _State:
    """EM from `state` until the likelihood settles, or `limit` iterations in all."""
    low, likelihood = data.expectation(state)
    done = state.iterations
    while done < limit:
        state = data.maximised(low, state)
        before = likelihood
        low, likelihood = data.expectation(state)
        done += 1
        if abs(likelihood - before) <= tolerance * data.total:
            return _State(
                shapes=state.shapes, weight=state.weight, likelihood=likelihood, iterations=done, converged=True
            )
    return _State(shapes=state.shapes, weight=state.weight, likelihood=likelihood, iterations=done)


def _maximise(p: float, q: float, start: tuple[float, float]) -> tuple[float, float]:
    """alpha and beta of the likeliest Beta for mean log x = `p` and mean log(1 - x) = `q`, within bounds.

    Newton's method on digamma(alpha) - digamma(alpha + beta) = p and its mirror image, from the likelier of `start` and
    a guess by moments; the likelihood is concave, and steps are halved until it does not fall.
    """
    alpha, beta = max((start, _guess(p, q)), key=lambda shape: _mean_likelihood(shape[0], shape[1], p, q))
    value = _mean_likelihood(alpha, beta, p, q)
    for _ in range(50):
        both, curve = float(digamma(alpha + beta)), _trigamma(alpha + beta)
        slope_a, slope_b = p - float(digamma(alpha)) + both, q - float(digamma(beta)) + both
        aa, bb = _trigamma(alpha) - curve, _trigamma(beta) - curve
        determinant = aa * bb - curve * curve
        if determinant <= 0:
            break
        step_a = (bb * slope_a + curve * slope_b) / determinant
        step_b = (curve * slope_a + aa * slope_b) / determinant
        share = 1.0
        for _ in range(40):
            new_a, new_b = _bounded(alpha + share * step_a, alpha), _bounded(beta + share * step_b, beta)
            new = _mean_likelihood(new_a, new_b, p, q)
            if new >= value:
                break
            share /= 2
        else:
            break
        moved = max(abs(new_a / alpha - 1), abs(new_b / beta - 1))
        alpha, beta, value = new_a, new_b, new
        if moved < 1e-10:
            break
    return alpha, beta


def _of_moments(mean: float, square: float) -> tuple[float, float]:
    """alpha and beta of the Beta with this mean of x and of its square; within bounds, where the mean is kept."""
    both = mean * (1 - mean) / max(square - mean * mean, 1e-300) - 1
    both = min(max(both, _LEAST_SUM), _BOUNDS[1] / max(mean, 1 - mean))
    return mean * both, (1 - mean) * both


def _guess(p: float, q: float) -> tuple[float, float]:
    """A start for Newton: with digamma(z) ~ log(z - 1/2), exp(p) and exp(q) fix the two parameters."""
    low, high = math.exp(p), math.exp(q)
    rest = max(2 * (1 - low - high), 1e-12)
    lowest, highest = _BOUNDS
    return (
        min(max(0.5 + low / rest, lowest), highest),
        min(max(0.5 + high / rest, lowest), highest),
    )


def _bounded(value: float, before: float) -> float:
    """`value` within the bounds, and never less than a tenth of what it was."""
    lowest, highest = _BOUNDS
    return min(max(value, 0.1 * before, lowest), highest)


def _trigamma(value: float) -> float:
    return float(zeta(2, value))  # many times faster on a single number than polygamma(1, value)


def _mean_likelihood(alpha: float, beta: float, p: float, q: float) -> float:
    return (alpha - 1) * p + (beta - 1) * q - float(betaln(alpha, beta))


def _log_beta(x: float, alpha: float, beta: float) -> float:
    return _mean_likelihood(alpha, beta, math.log(x), math.log1p(-x))


def _log(value: float) -> float:
    return math.log(max(value, 1e-300))


def _is_low(matched: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether the matched Beta (alpha, beta) has the lower mean and no second peak, at the greatest losses."""
    (a0, b0), (a1, b1) = matched, other
    return a0 * b1 < a1 * b0 and (a0 >= 1 or b0 >= 1)


def _pair(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _scaled(values: Tensor, lower: float, upper: float) -> Tensor:
    """Min-max scaled to [0, 1]; then only what lies at or beyond the ends is moved to the edge, as published."""
    x = (values - lower) / (upper - lower)
    return torch.where(x >= 1, 1 - _EDGE, torch.where(x <= 0, _EDGE, x))


def _checked(losses: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Losses of positive weight and their weights, flat, in the working precision."""
    if not isinstance(losses, Tensor) or losses.dtype == torch.bool or losses.is_complex():
        raise InputError("losses: want a tensor of real numbers, one a pair")
    wide = torch.float32 if losses.device.type == "mps" else torch.float64
    values = losses.detach().reshape(-1).to(wide)
    finite = values.isfinite()
    if not bool(finite.all()):
        at = int((~finite).nonzero()[0])
        raise InputError(f"losses: number {at} is {float(values[at])}; find out why training gave it")
    if weights is None:
        return values, torch.ones_like(values)
    if not isinstance(weights, Tensor) or weights.shape != losses.shape:
        raise InputError(f"weights: want a tensor of the losses' shape {tuple(losses.shape)}")
    counts = weights.detach().reshape(-1).to(values)
    if not bool((counts.isfinite() & (counts >= 0)).all()):
        raise InputError("weights: they must be finite and not negative")
    return values[counts > 0], counts[counts > 0]
