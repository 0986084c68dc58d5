"""What the control group teaches, by plain loops, by a general minimiser, and where there is nothing to learn."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize

from l2rm.rematching.control import Control


def drawn(seed: int, ahead: float, captions: int = 60, k: int = 6) -> Control:
    """Scores by chance; the own image is `ahead` of them."""
    rng = np.random.default_rng(seed)
    others = -np.sort(-rng.normal(size=(captions, k)), axis=1)
    return Control(own=rng.normal(size=captions) + ahead, others=others)


def standing_out(row: list[float]) -> float:
    mean = sum(row) / len(row)
    deviation = math.sqrt(sum((one - mean) ** 2 for one in row) / len(row))
    return (row[0] - mean) / (deviation or 1.0)


def present_by_loops(control: Control, best: np.ndarray) -> list[float]:
    with_own, without = [], []
    for own, others in zip(control.own.tolist(), control.others.tolist(), strict=True):
        if own >= others[-1]:
            with_own.append(standing_out(sorted([own, *others], reverse=True)[:-1]))
            without.append(standing_out(others))
    feature, label = np.array(with_own + without), np.array([1] * len(with_own) + [0] * len(without))
    centre, spread = feature.mean(), feature.std()
    x = (feature - centre) / spread

    def loss(w: np.ndarray) -> float:
        odds = w[0] + w[1] * x
        return float(np.sum(np.logaddexp(0, odds) - label * odds) + w @ w / 2)

    w = minimize(loss, np.zeros(2), options={"gtol": 1e-9}).x
    return [1 / (1 + math.exp(-w[0] - w[1] * (standing_out(row) - centre) / spread)) for row in best.tolist()]


@pytest.mark.parametrize("seed", range(3))
def test_present_is_the_logistic_regression_by_a_general_minimiser(seed: int) -> None:
    control, best = drawn(seed, 1.5), drawn(seed + 10, 0).others
    best[0] = 0.7  # no deviation
    found = control.present(best)
    np.testing.assert_allclose(found, present_by_loops(control, best), atol=1e-5)
    assert found.std() > 0.05


def test_present_is_a_half_where_there_is_nothing_to_learn() -> None:
    rng = np.random.default_rng(0)
    others = -np.sort(-rng.normal(size=(40, 5)), axis=1)
    best = others[:7]
    never_among = Control(own=np.full(40, -9.0), others=others)
    all_alike = Control(own=np.zeros(40), others=np.zeros((40, 5)))
    stands_out_less = Control(own=others[:, 0] - 1e-3, others=others)  # a second best makes the first stand out less
    for control in (never_among, all_alike, stands_out_less):
        assert control.present(best).tolist() == [0.5] * 7


@pytest.mark.parametrize(("seed", "ahead"), [(0, 0.5), (1, 1.5), (2, 3.0)])
def test_temperature_is_the_likeliest_of_many(seed: int, ahead: float) -> None:
    control = drawn(seed, ahead, captions=200)
    rows = np.concatenate([control.own[:, None], control.others], axis=1)

    def loss(tau: float) -> float:
        return float(np.mean([np.log(np.exp(row / tau).sum()) - row[0] / tau for row in rows]))

    grid = np.geomspace(0.08, 30, 400)
    assert control.temperature() == pytest.approx(grid[np.argmin([loss(tau) for tau in grid])], rel=0.02)


def test_temperature_has_limits_in_the_range_of_the_scores() -> None:
    others = np.tile([1.0, 0.5, 0.0], (30, 1))
    assert Control(own=np.full(30, 2.0), others=others).temperature() == pytest.approx(0.02 * 2, rel=0.01)
    assert Control(own=np.full(30, -3.0), others=others).temperature() == pytest.approx(10 * 4, rel=0.01)
    assert Control(own=np.ones(30), others=np.ones((30, 4))).temperature() == 1.0


@pytest.mark.parametrize(("captions", "k", "enough"), [(20, 2, True), (19, 2, False), (20, 1, False), (500, 64, True)])
def test_what_is_enough(captions: int, k: int, enough: bool) -> None:
    assert Control(own=np.zeros(captions), others=np.zeros((captions, k))).is_enough is enough
