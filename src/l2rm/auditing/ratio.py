"""How many pairs are mismatched, and how sure that is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2rm.rematching.division import BetaMixture
from l2rm.rematching.ranks import RankMixture

BINS = 400
"""Losses are counted in bins before mixtures are fitted to them again and again."""
DRAWS = 100


@dataclass(frozen=True, kw_only=True)
class MismatchRatio:
    """An estimated share of mismatched pairs with its bootstrap interval.

    Attributes:
        estimate: of all pairs.
        low, high: ends of the interval.
        level: what share of such intervals would hold the estimator's own expectation.
        method: what was estimated, in a few words.
    """

    estimate: float
    low: float
    high: float
    level: float
    method: str

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dict(self.__dict__)


def mismatch_ratio(
    image_of: NDArray[np.int64],
    *,
    losses: NDArray[np.float64] | None = None,
    p_values: NDArray[np.float64] | None = None,
    match_probability: NDArray[np.float64] | None = None,
    level: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> MismatchRatio | None:
    """The share of mismatched pairs and an interval for it, by the bootstrap over images.

    Images are drawn with replacement `draws` times, each with all of its pairs, since the captions of an image go wrong
    together; the estimate is made anew from every draw, and the interval runs between its percentiles (Efron &
    Tibshirani, 1993). What is estimated, by the one argument that is given:

    * `p_values`: `RankMixture.mismatch_ratio`, fitted anew;
    * `losses`: the weight of the mismatched component of a `BetaMixture`, fitted anew (losses counted in 400 bins);
    * `match_probability`: the mean of 1 − probability. Nothing is fitted, so what made the probabilities is taken as
      true.

    The interval tells how much the estimate would vary with other pairs of the same kind. It knows nothing of a model
    that cannot tell pairs apart, nor of a mixture whose shape is wrong: where matched and mismatched pairs overlap, the
    estimate itself may be off by more than the interval is wide. `tests/auditing/test_ratio.py` checks its coverage
    where the mixture is right; `benchmarks/results/audit.json` holds a case in which the truth is known.

    Returns:
        None where the losses do not fall into two groups, so that they tell no ratio.

    Example:
        >>> p = np.concatenate([np.full(600, 0.001), (np.arange(400) + 0.5) / 400])
        >>> ratio = mismatch_ratio(np.arange(1000), p_values=p)
        >>> round(ratio.estimate, 1), ratio.low < ratio.estimate < ratio.high
        (0.4, True)
    """
    if p_values is not None:
        method, values, estimate = "rank mixture", p_values, _of_ranks
    elif losses is not None:
        method, values, estimate = "Beta mixture of losses", _binned(losses), _of_losses
    elif match_probability is not None:
        method, values, estimate = "mean of 1 − match probability", 1 - match_probability, _of_mean
    else:
        raise ValueError("nothing to estimate from: give p_values, losses or match_probability")
    distinct, place = np.unique(values, return_inverse=True)
    counts: NDArray[np.float64] = np.bincount(place).astype(np.float64)
    if losses is not None and p_values is None and _has_one_mode(distinct, counts):
        return None
    whole = estimate(distinct, counts)
    generator = np.random.default_rng(seed)
    images = int(image_of.max()) + 1
    present = np.unique(image_of)
    found = []
    for _ in range(draws):
        times = np.bincount(generator.choice(present, len(present)), minlength=images)[image_of]
        drawn = np.bincount(place, weights=times, minlength=len(distinct)).astype(np.float64)
        found.append(estimate(distinct, drawn))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return MismatchRatio(
        estimate=whole, low=float(min(low, whole)), high=float(max(high, whole)), level=level, method=method
    )


Estimate = Callable[[NDArray[np.float64], NDArray[np.float64]], float]


def _of_ranks(values: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    mixture = RankMixture.fit(torch.from_numpy(values), weights=torch.from_numpy(counts))
    return mixture.mismatch_ratio


def _of_losses(values: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    there = counts > 0
    mixture = BetaMixture.fit(
        torch.from_numpy(values[there]),
        weights=torch.from_numpy(counts[there]),
        one_mode="mixture",  # that there are two was settled on all pairs; a draw on the edge is no reason to say 0
        tolerance=1e-6,
        max_iterations=200,
    )
    return mixture.mismatch_ratio


def _has_one_mode(values: NDArray[np.float64], counts: NDArray[np.float64]) -> bool:
    return BetaMixture.fit(torch.from_numpy(values), weights=torch.from_numpy(counts)).degenerate is not None


def _of_mean(values: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    return float(values @ counts / counts.sum())


def _binned(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each loss as the middle of its bin; the least and the largest, the ends of the mixture's range, stay."""
    low, high = float(losses.min()), float(losses.max())
    if high <= low:
        return losses
    width = (high - low) / BINS
    middle = low + (np.minimum((losses - low) // width, BINS - 1) + 0.5) * width
    return np.where((losses == low) | (losses == high), losses, middle)
