"""The Beta mixture against known draws, a direct maximisation by scipy, and its own laws."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import beta as beta_distribution

from l2rm.errors import InputError
from l2rm.rematching.division import BetaMixture


def draws(
    matched: int,
    mismatched: int,
    *,
    seed: int = 0,
    low: tuple[float, float] = (2, 12),
    high: tuple[float, float] = (8, 4),
) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(np.concatenate([rng.beta(*low, matched), rng.beta(*high, mismatched)]))


def scaled(losses: torch.Tensor) -> np.ndarray:
    x = ((losses - losses.min()) / (losses.max() - losses.min())).double().numpy()
    return np.where(x >= 1, 1 - 1e-3, np.where(x <= 0, 1e-3, x))


def log_likelihood(parameters: np.ndarray, x: np.ndarray) -> float:
    a0, b0, a1, b1 = np.exp(parameters[:4])
    w = 1 / (1 + math.exp(-parameters[4]))
    return float(
        np.logaddexp(
            math.log(w) + beta_distribution.logpdf(x, a0, b0), math.log1p(-w) + beta_distribution.logpdf(x, a1, b1)
        ).sum()
    )


def test_recovers_a_known_mixture() -> None:
    losses = draws(6000, 4000)
    losses = torch.cat([losses, torch.tensor([0.0, 1.0], dtype=torch.float64)])  # so that scaling changes nothing
    mixture = BetaMixture.fit(losses)
    assert mixture.degenerate is None
    assert mixture.converged
    assert torch.allclose(mixture.alpha, torch.tensor([2.0, 8.0], dtype=torch.float64), rtol=0.1)
    assert torch.allclose(mixture.beta, torch.tensor([12.0, 4.0], dtype=torch.float64), rtol=0.1)
    assert mixture.mismatch_ratio == pytest.approx(0.4, abs=0.02)
    matched = mixture.match_probability(losses)[:10_000] > 0.5
    truth = torch.arange(10_000) < 6000
    assert float((matched == truth).double().mean()) > 0.97


def test_agrees_with_direct_maximisation() -> None:
    losses = draws(90, 60, seed=3)
    mixture = BetaMixture.fit(losses, tolerance=1e-13, max_iterations=5000)
    x = scaled(losses)
    found = np.log([mixture.alpha[0], mixture.beta[0], mixture.alpha[1], mixture.beta[1], 1.0])
    found[4] = math.log(float(mixture.weight[0] / mixture.weight[1]))
    assert mixture.log_likelihood == pytest.approx(log_likelihood(found, x), abs=1e-7)
    start = np.log([1.5, 8.0, 5.0, 3.0, 1.0])
    best = minimize(lambda p: -log_likelihood(p, x), start, method="BFGS", options={"gtol": 1e-7})
    assert mixture.log_likelihood == pytest.approx(-best.fun, abs=1e-5)
    assert np.allclose(found, best.x, atol=1e-2)


def test_moments_of_each_component_are_those_of_its_share_of_the_losses() -> None:
    losses = draws(600, 400)
    mixture = BetaMixture.fit(losses, estimator="moments", one_mode="mixture", tolerance=1e-13)
    x = scaled(losses)
    low = mixture.match_probability(losses, monotone=False).numpy()
    for k, share in enumerate((low, 1 - low)):
        expected = beta_distribution(float(mixture.alpha[k]), float(mixture.beta[k]))
        mean = np.average(x, weights=share)
        assert float(mixture.weight[k]) == pytest.approx(share.mean(), abs=1e-5)
        assert expected.mean() == pytest.approx(mean, abs=1e-5)
        assert expected.var() == pytest.approx(np.average((x - mean) ** 2, weights=share), abs=1e-5)


def test_moments_divide_where_a_pile_at_0_draws_the_likeliest_shapes_onto_itself() -> None:
    """Hinge losses after triplet training: most matched ones and some mismatched ones are exactly 0."""
    middling = draws(600, 1200, low=(0.3, 30), high=(0.6, 0.8))
    losses = torch.cat([torch.zeros(4200), middling, torch.zeros(450), draws(0, 3550, high=(26, 3.5))])
    right = {}
    for estimator in ("likelihood", "moments"):
        found = BetaMixture.fit(losses, estimator=estimator).match_probability(losses).numpy() > 0.5
        right[estimator] = (found == (np.arange(10_000) < 6000)).mean()
    assert right["moments"] > 0.9
    assert right["likelihood"] < 0.85


def test_likelihood_never_falls() -> None:
    losses = draws(300, 200, seed=1, low=(2, 5), high=(4, 3))
    path = [
        BetaMixture.fit(losses, one_mode="mixture", max_iterations=k, tolerance=1e-300).log_likelihood
        for k in (1, 2, 3, 6, 19, 20, 21, 40, 80)
    ]
    assert all(after >= before - 1e-8 for before, after in pairwise(path))
    assert path[-1] > path[0]


def test_a_weight_is_a_number_of_repetitions() -> None:
    losses = draws(60, 50, seed=2)
    weights = torch.ones(110)
    weights[::3], weights[5] = 2.0, 0.0
    repeated = losses.repeat_interleave(weights.long())
    one, other = BetaMixture.fit(losses, weights=weights), BetaMixture.fit(repeated)
    assert torch.allclose(one.alpha, other.alpha, rtol=1e-6)
    assert torch.allclose(one.weight, other.weight, rtol=1e-6)
    assert one.log_likelihood == pytest.approx(other.log_likelihood)


def test_scale_shift_and_order_do_not_matter() -> None:
    losses = draws(200, 150, seed=4)
    probability = BetaMixture.fit(losses).match_probability(losses)
    moved = losses * 37.0 - 5.0
    assert torch.allclose(BetaMixture.fit(moved).match_probability(moved), probability, atol=1e-6)
    order = torch.randperm(350, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(
        BetaMixture.fit(losses[order]).match_probability(losses[order]), probability[order], atol=1e-6
    )


def two(alpha: list[float], beta: list[float], weight: list[float]) -> BetaMixture:
    wide = torch.float64
    return BetaMixture(
        alpha=torch.tensor(alpha, dtype=wide),
        beta=torch.tensor(beta, dtype=wide),
        weight=torch.tensor(weight, dtype=wide),
        lower=0.0,
        upper=1.0,
        converged=True,
        iterations=1,
        log_likelihood=0.0,
    )


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [
        ([0.5, 8.0], [0.9, 8.0]),
        ([3.0, 1.5], [30.0, 2.0]),
        ([2.0, 8.0], [12.0, 4.0]),
        ([2.0, 5.0], [4.0, 4.0]),
        ([3.0, 3.0], [9.0, 2.0]),
    ],
    ids=["rises at the end", "rises at the start", "falls everywhere", "one beta", "one alpha"],
)
def test_probability_never_rises_with_the_loss(alpha: list[float], beta: list[float]) -> None:
    mixture = two(alpha, beta, [0.6, 0.4])
    losses = torch.linspace(0, 1, 999, dtype=torch.float64)
    probability, raw = mixture.match_probability(losses), mixture.match_probability(losses, monotone=False)
    assert bool((probability.diff() <= 1e-12).all())
    x = scaled(losses)
    densities = [w * beta_distribution.pdf(x, a, b) for w, a, b in zip((0.6, 0.4), alpha, beta, strict=True)]
    assert np.allclose(raw.numpy(), densities[0] / (densities[0] + densities[1]), atol=1e-9)
    falling = raw.diff() < 0
    same = (probability - raw).abs() < 1e-12
    assert bool((same[1:] | same[:-1])[falling].all())  # only the rising part is changed


def test_losses_next_to_the_least_are_no_likelier_to_match() -> None:
    losses = torch.tensor([0.0, 1e-52, 0.125, 1.0], dtype=torch.float64)
    probability = BetaMixture.fit(losses, one_mode="mixture").match_probability(losses)
    assert bool((probability.diff() <= 1e-12).all())


def test_density_integrates_to_the_weights() -> None:
    losses = draws(500, 300, seed=5) * 4 + 2
    mixture = BetaMixture.fit(losses)
    grid = torch.linspace(1, 7, 20_001, dtype=torch.float64)
    mass = torch.trapezoid(mixture.density(grid), grid)
    assert torch.allclose(mass, mixture.weight, atol=1e-3)
    assert not mixture.density(torch.tensor([1.0, 9.0])).any()


def test_a_single_heap_is_matched_altogether() -> None:
    rng = np.random.default_rng(6)
    heaps = [rng.beta(2, 8, 1000), rng.gamma(2, 1, 1000), rng.normal(size=1000), rng.exponential(size=1000)]
    for heap in map(torch.from_numpy, heaps):
        mixture = BetaMixture.fit(heap)
        assert mixture.degenerate == "one mode"
        assert mixture.mismatch_ratio == 0.0
        assert bool((mixture.match_probability(heap) == 1).all())
        published = BetaMixture.fit(heap, one_mode="mixture")
        assert published.degenerate is None
        assert published.mismatch_ratio > 0


@pytest.mark.parametrize("wide", [(0.4, 0.45), (0.6, 0.6), (1.0, 0.8)], ids=["U", "shallow U", "slope"])
@pytest.mark.parametrize("seed", range(3))
def test_a_wide_heap_around_a_narrow_one_is_matched_altogether(wide: tuple[float, float], seed: int) -> None:
    """Two components fit better than one, but the one of the least losses has the greatest ones too."""
    losses = draws(60, 240, seed=seed, low=wide, high=(12, 25))
    published = BetaMixture.fit(losses, one_mode="mixture")
    means = published.alpha / (published.alpha + published.beta)
    assert means[0] >= means[1] or (published.alpha[0] < 1 and published.beta[0] < 1)
    assert BetaMixture.fit(losses[:60]).degenerate == BetaMixture.fit(losses[60:]).degenerate == "one mode"
    mixture = BetaMixture.fit(losses)
    assert mixture.degenerate == "one mode"
    assert bool((mixture.match_probability(losses) == 1).all())


@pytest.mark.parametrize("heap", ["beta", "gamma", "hinges", "mostly zero"])
@pytest.mark.parametrize("pairs", [100, 200, 400])
def test_small_matched_data_never_end_in_a_component_of_the_greatest_losses(heap: str, pairs: int) -> None:
    for seed in range(8):
        rng = np.random.default_rng(seed)
        losses = torch.from_numpy(
            {
                "beta": rng.beta(0.7, 0.9, pairs),
                "gamma": rng.gamma(1.5, 1, pairs),
                "hinges": np.clip(0.2 + 0.2 * rng.normal(size=(pairs, 30)) - 0.3, 0, None).mean(1),
                "mostly zero": np.clip(rng.normal(-0.5, 1, pairs), 0, None),
            }[heap]
        )
        mixture = BetaMixture.fit(losses)
        if mixture.degenerate is None:
            means = mixture.alpha / (mixture.alpha + mixture.beta)
            assert means[0] < means[1]
            assert mixture.alpha[0] >= 1 or mixture.beta[0] >= 1


def test_constant_losses_and_tiny_samples() -> None:
    constant = BetaMixture.fit(torch.full((50,), 0.3))
    assert constant.degenerate == "constant"
    assert bool((constant.match_probability(torch.full((50,), 0.3)) == 1).all())
    assert not constant.density(torch.tensor([0.3])).any()
    noise = 0.3 * (1 + 1e-7 * torch.rand(50, generator=torch.Generator().manual_seed(0)))
    assert BetaMixture.fit(noise).degenerate == "constant"
    for losses in ([1.0], [1.0, 2.0], [1.0, 1.0, 1.0, 9.0], [1.0, 2.0, 3.0, 3.0]):
        mixture = BetaMixture.fit(torch.tensor(losses))
        assert mixture.degenerate in ("constant", "too few")
        assert mixture.match_probability(torch.tensor(losses)).tolist() == [1.0] * len(losses)


def test_shape_and_dtype_are_kept() -> None:
    losses = draws(64, 36).float().reshape(10, 10)
    probability = BetaMixture.fit(losses).match_probability(losses)
    assert probability.shape == (10, 10)
    assert probability.dtype == torch.float32
    assert float(probability.min()) >= 0
    assert float(probability.max()) <= 1


@settings(max_examples=40, deadline=None)
@given(
    losses=st.lists(
        st.one_of(st.floats(0, 1), st.sampled_from([0.0, 1.0, 0.5]), st.floats(-1e6, 1e6)), min_size=1, max_size=30
    ),
    one_mode=st.sampled_from(["matched", "mixture"]),
    monotone=st.booleans(),
)
def test_always_a_probability(losses: list[float], one_mode: str, monotone: bool) -> None:
    given_losses = torch.tensor(losses, dtype=torch.float64)
    mixture = BetaMixture.fit(given_losses, one_mode=one_mode, max_iterations=60)
    probability = mixture.match_probability(given_losses, monotone=monotone)
    assert bool(((probability >= 0) & (probability <= 1)).all())
    assert float(mixture.weight.sum()) == pytest.approx(1)
    assert math.isfinite(mixture.log_likelihood)
    if monotone:
        ordered = probability[given_losses.argsort()]
        assert bool((ordered.diff() <= 1e-9).all())


@pytest.mark.parametrize(
    ("losses", "options", "words"),
    [
        ([0.1, math.nan, 0.2], {}, "number 1 is nan"),
        ([0.1, math.inf], {}, "number 1 is inf"),
        ([], {}, "none"),
        ([0.1, 0.2], {"weights": torch.tensor([1.0, -1.0])}, "negative"),
        ([0.1, 0.2], {"weights": torch.tensor([1.0])}, "shape"),
        ([0.1, 0.2], {"weights": torch.zeros(2)}, "none"),
        ([0.1, 0.2], {"one_mode": "split"}, "one_mode"),
        ([0.1, 0.2], {"estimator": "median"}, "estimator"),
        ([0.1, 0.2], {"max_iterations": 0}, "max_iterations"),
    ],
)
def test_bad_arguments(losses: list[float], options: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        BetaMixture.fit(torch.tensor(losses), **options)
    assert "\n" not in str(caught.value)


def test_losses_to_judge_must_be_finite() -> None:
    with pytest.raises(InputError, match="number 0"):
        BetaMixture.fit(draws(50, 50)).match_probability(torch.tensor([math.nan]))
