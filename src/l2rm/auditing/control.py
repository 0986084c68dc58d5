"""What matched pairs teach about mismatched ones: they are a control group, whose right images are known.

Put in a row with its candidates, the right image of a matched caption shows how much a difference of scores means (the
temperature), and what the candidates of a caption look like with its right image among them and without it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import expit, logsumexp

Floats = NDArray[np.floating]

FEWEST = 20
_SHARPEST = 0.02  # a temperature below this share of the candidates' range is one-hot anyway


@dataclass(frozen=True, kw_only=True)
class Control:
    """Scores of matched captions.

    Attributes:
        own: `(c,)`; with the given image.
        others: `(c, k)`; with the best other images, best first.
    """

    own: Floats
    others: Floats

    @property
    def is_enough(self) -> bool:
        """Something can be learned from it."""
        return len(self.own) >= FEWEST and self.others.shape[1] >= 2

    def temperature(self) -> float:
        """The tau at which `softmax([own, others] / tau)` is likeliest to choose the own image.

        Temperature scaling: Guo et al., "On calibration of modern neural networks", 2017. A model that has learned its
        matched pairs by heart makes it somewhat too small.
        """
        rows = np.concatenate([self.own[:, None], self.others], axis=1).astype(np.float64)
        wide = float((rows.max(1) - rows.min(1)).mean())
        if not wide > 0:
            return 1.0

        def loss(log_tau: float) -> float:
            scaled = rows / np.exp(log_tau)
            return float((logsumexp(scaled, axis=1) - scaled[:, 0]).mean())

        bounds = (np.log(_SHARPEST * wide), np.log(10 * wide))
        return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))

    def present(self, best: Floats) -> Floats:
        """Probability that the right image of each caption is among its best ones, if beforehand it is 1 in 2.

        By logistic regression on how far the best image stands out from the others, in their standard deviations, over
        the control with its own image among the best, and without it. Where the two look alike it stays near 1/2.

        Args:
            best: `(q, k)`; scores of the best images, best first.
        """
        k = self.others.shape[1]
        inside = -np.sort(-np.concatenate([self.own[:, None], self.others], axis=1), axis=1)[:, :k]
        among = self.own >= self.others[:, -1]  # else it is in none of the two
        features = np.concatenate([_standing_out(inside[among]), _standing_out(self.others[among])])
        if not among.any() or features.std() == 0:
            return np.full(len(best), 0.5)
        centre, spread = features.mean(), features.std()
        slope = _logistic((features - centre) / spread, np.repeat([1.0, 0.0], int(among.sum())))
        probability: Floats = expit(slope[0] + slope[1] * (_standing_out(best) - centre) / spread)
        return probability


def _standing_out(best: Floats) -> Floats:
    """How far the first of each row stands out, in standard deviations of the row."""
    deviation = best.std(axis=1)
    found: Floats = (best[:, 0] - best.mean(axis=1)) / np.where(deviation > 0, deviation, 1.0)
    return found


def _logistic(feature: Floats, label: Floats) -> tuple[float, float]:
    """Intercept and slope, the slope at least 0, by Newton's method with a slight pull to 0."""
    design = np.stack([np.ones_like(feature), feature], axis=1).astype(np.float64)
    weight = np.zeros(2)
    for _ in range(50):
        chance = expit(design @ weight)
        gradient = design.T @ (chance - label) + weight
        hessian = (design * (chance * (1 - chance))[:, None]).T @ design + np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        weight -= step
        if np.abs(step).max() < 1e-9:
            break
    return (float(weight[0]), float(weight[1])) if weight[1] > 0 else (0.0, 0.0)
