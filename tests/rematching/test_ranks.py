"""The mixture of ranks against known draws, the formula of the least concave majorant, and its own laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2rm.errors import InputError
from l2rm.rematching.ranks import RankMixture


def draws(number: int, *, uniform: float, shape: float, seed: int = 0) -> torch.Tensor:
    """P-values of `f(p) = u + (1 − u) a p^(a−1)`."""
    rng = np.random.default_rng(seed)
    p = np.where(rng.random(number) < uniform, rng.random(number), rng.beta(shape, 1, number))
    return torch.from_numpy(np.maximum(p, 1e-12))


@pytest.mark.parametrize(("uniform", "shape"), [(0.4, 0.02), (0.2, 0.05), (0.7, 0.03)])
def test_recovers_a_known_share(uniform: float, shape: float) -> None:
    mixture = RankMixture.fit(draws(40_000, uniform=uniform, shape=shape))
    assert mixture.mismatch_ratio == pytest.approx(uniform + (1 - uniform) * shape, abs=0.02)


@pytest.mark.parametrize("seed", range(3))
def test_the_density_is_the_slope_of_the_least_concave_majorant(seed: int) -> None:
    """Grenander's estimator by its min-max formula over all pairs of points, ties and weights included."""
    p = draws(25, uniform=0.4, shape=0.15, seed=seed).numpy().round(1).clip(0.05)
    weights = np.random.default_rng(seed).integers(0, 4, len(p)) + (p == p.max())
    x = np.unique(np.append(p, 1.0))
    total = np.array([weights[p <= point].sum() for point in x]) / weights.sum()
    x, total = np.append(0.0, x), np.append(0.0, total)
    wanted = [
        min(max((total[j] - total[i]) / (x[j] - x[i]) for j in range(k, len(x))) for i in range(k))
        for k in range(1, len(x))
    ]
    found = RankMixture.fit(torch.from_numpy(p), weights=torch.from_numpy(weights))
    assert found.heights[np.searchsorted(found.edges, x[1:])] == pytest.approx(wanted)
    assert (np.diff(found.edges, prepend=0.0) * found.heights).sum() == pytest.approx(1)
    assert (np.diff(found.heights) < 0).all()


@pytest.mark.parametrize("seed", range(4))
def test_where_every_rank_is_chance_nothing_is_matched(seed: int) -> None:
    p = draws(1000, uniform=1, shape=1, seed=seed)
    mixture = RankMixture.fit(p)
    assert mixture.mismatch_ratio > 0.9
    assert float(mixture.match_probability(p).mean()) < 0.1
    assert float(mixture.match_probability(p[p > 0.05]).mean()) < 0.1


def test_all_ones_and_a_single_value() -> None:
    assert RankMixture.fit(torch.ones(20)).mismatch_ratio == pytest.approx(1)
    assert not RankMixture.fit(torch.ones(20)).match_probability(torch.ones(20)).any()
    assert RankMixture.fit(torch.tensor([1e-3])).mismatch_ratio < 0.2


def mixed(matched: tuple[float, float], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """P-values of 2,000 mismatched pairs, by chance, and 3,000 matched ones, by a Beta; and which are matched."""
    rng = np.random.default_rng(seed)
    p = np.concatenate([rng.random(2000), rng.beta(*matched, 3000)])
    return torch.from_numpy(np.maximum(p, 1e-12)), torch.arange(5000) >= 2000


@pytest.mark.parametrize("matched", [(0.02, 1.0), (0.5, 8.0), (1.0, 20.0)], ids=["steepest", "steep", "no steep one"])
@pytest.mark.parametrize("seed", range(3))
def test_finds_the_share_of_mismatched_pairs(matched: tuple[float, float], seed: int) -> None:
    p_values, truth = mixed(matched, seed)
    mixture = RankMixture.fit(p_values)
    assert mixture.mismatch_ratio == pytest.approx(0.4, abs=0.05)
    probability = mixture.match_probability(p_values)
    assert float(truth[probability > 0.8].double().mean()) > 0.9


@pytest.mark.parametrize("seed", range(3))
def test_probabilities_come_true(seed: int) -> None:
    p_values, truth = mixed((0.5, 8.0), seed)
    probability = RankMixture.fit(p_values).match_probability(p_values)
    assert float(probability.mean()) == pytest.approx(0.6, abs=0.06)
    for low in (0.0, 0.2, 0.4, 0.6, 0.8):
        some = (probability >= low) & (probability < low + 0.2 + 1e-9)
        assert int(some.sum()) > 100
        assert float(truth[some].double().mean()) == pytest.approx(float(probability[some].mean()), abs=0.12)


def test_finds_the_share_where_matched_pairs_always_come_first() -> None:
    rng = np.random.default_rng(0)
    above = np.concatenate([rng.integers(0, 501, 2000), np.zeros(3000)])
    assert RankMixture.fit(torch.from_numpy((above + 0.5) / 501)).mismatch_ratio == pytest.approx(0.4, abs=0.05)


def test_the_share_is_right_on_average_where_p_values_are_few() -> None:
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        p = np.concatenate([rng.random(160), rng.beta(0.5, 12, 240)])
        found.append(RankMixture.fit(torch.from_numpy(np.maximum(p, 1e-12))).mismatch_ratio)
    assert np.mean(found) == pytest.approx(0.4, abs=0.015)


@settings(max_examples=40, deadline=None)
@given(p_values=st.lists(st.floats(1e-300, 1) | st.sampled_from([1.0, 0.5]), min_size=1, max_size=30))
def test_always_a_probability_that_never_rises_with_the_rank(p_values: list[float]) -> None:
    p = torch.tensor(p_values, dtype=torch.float64)
    mixture = RankMixture.fit(p)
    assert 0 <= mixture.mismatch_ratio <= 1
    probability = mixture.match_probability(torch.linspace(1e-4, 1, 500, dtype=torch.float64))
    assert bool(((probability >= 0) & (probability <= 1)).all())
    assert bool((probability.diff() <= 1e-12).all())


def test_shape_dtype_and_order() -> None:
    p = draws(60, uniform=0.4, shape=0.1).float().reshape(6, 10)
    mixture = RankMixture.fit(p)
    assert mixture.match_probability(p).shape == (6, 10)
    assert mixture.match_probability(p).dtype == torch.float32
    backwards = RankMixture.fit(p.flatten().flip(0))
    assert backwards.mismatch_ratio == mixture.mismatch_ratio
    assert np.array_equal(backwards.heights, mixture.heights)


@pytest.mark.parametrize("p_values", [[], [0.0, 0.5], [0.5, 1.01], [-0.1], [0.5, math.nan]])
def test_what_is_no_p_value_is_refused(p_values: list[float]) -> None:
    with pytest.raises(InputError, match="above 0 and at most 1") as caught:
        RankMixture.fit(torch.tensor(p_values))
    assert "\n" not in str(caught.value)


def test_densities_are_the_steps_less_the_share_of_chance() -> None:
    mixture = RankMixture(mismatch_ratio=0.4, edges=np.array([0.1, 0.5, 1.0]), heights=np.array([6.0, 0.7, 0.24]))
    p = torch.tensor([[0.01, 0.1], [0.3, 0.5], [0.6, 1.0]])
    found = mixture.density(p)
    torch.testing.assert_close(found[0], torch.tensor([[5.6, 5.6], [0.3, 0.3], [0.0, 0.0]]))
    torch.testing.assert_close(found[1], torch.full((3, 2), 0.4))
    torch.testing.assert_close(mixture.match_probability(p), found[0] / found.sum(0))


@pytest.mark.parametrize("seed", range(3))
def test_the_share_of_chance_by_plain_loops(seed: int) -> None:
    """The λ of the least estimated error against the median of the estimates of all."""
    p = draws(300, uniform=0.5, shape=0.3, seed=seed).tolist()
    cuts = [0.5 + 0.05 * turn for turn in range(9)]
    shares = [sum(one > cut for one in p) / len(p) for cut in cuts]
    estimates = [min(1.0, share / (1 - cut)) for share, cut in zip(shares, cuts, strict=True)]
    middle = sorted(estimates)[4]
    errors = [
        share * (1 - share) / (len(p) * (1 - cut) ** 2) + (estimate - middle) ** 2
        for share, cut, estimate in zip(shares, cuts, estimates, strict=True)
    ]
    wanted = estimates[errors.index(min(errors))]
    assert RankMixture.fit(torch.tensor(p, dtype=torch.float64)).mismatch_ratio == pytest.approx(wanted)
