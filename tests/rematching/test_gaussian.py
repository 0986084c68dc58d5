"""Two Gaussians against the plain EM formulas, and what no fit can divide."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from l2rm.errors import InputError
from l2rm.rematching.gaussian import GaussianMixture


def drawn(seed, share=0.4, pairs=4000):
    generator = np.random.default_rng(seed)
    mismatched = generator.random(pairs) < share
    losses = np.where(mismatched, generator.normal(0.8, 0.1, pairs), generator.normal(0.3, 0.06, pairs))
    return torch.from_numpy(losses), mismatched


def test_it_finds_the_components_that_losses_were_drawn_from():
    losses, mismatched = drawn(0)
    mixture = GaussianMixture.fit(losses)
    span = mixture.upper - mixture.lower
    np.testing.assert_allclose(mixture.mean * span + mixture.lower, [0.3, 0.8], atol=0.01)
    np.testing.assert_allclose(mixture.variance.sqrt() * span, [0.06, 0.1], atol=0.02)
    assert mixture.mismatch_ratio == pytest.approx(mismatched.mean(), abs=0.01)
    assert ((mixture.match_probability(losses).numpy() < 0.5) == mismatched).mean() > 0.99


def test_posterior_is_that_of_scipys_densities():
    losses, _ = drawn(1)
    mixture = GaussianMixture.fit(losses)
    x = (losses.numpy() - mixture.lower) / (mixture.upper - mixture.lower)
    each = [
        w * norm.pdf(x, m, v**0.5)
        for w, m, v in zip(mixture.weight.tolist(), mixture.mean.tolist(), mixture.variance.tolist(), strict=True)
    ]
    expected = each[0] / (each[0] + each[1])
    np.testing.assert_allclose(mixture.match_probability(losses), expected, atol=1e-9)


@given(scale=st.floats(0.1, 50), shift=st.floats(-10, 10), seed=st.integers(0, 50))
def test_units_of_the_losses_do_not_matter(scale, shift, seed):
    losses, _ = drawn(seed, pairs=200)
    one, other = GaussianMixture.fit(losses), GaussianMixture.fit(losses * scale + shift)
    np.testing.assert_allclose(
        one.match_probability(losses), other.match_probability(losses * scale + shift), atol=1e-5
    )


@pytest.mark.parametrize(("losses", "message"), [([], "there are none"), ([0.0, float("nan")], "loss 1 is not finite")])
def test_what_cannot_be_divided_is_refused(losses, message):
    with pytest.raises(InputError, match=message):
        GaussianMixture.fit(torch.tensor(losses))


def test_a_median_that_is_the_highest_loss_still_divides():
    losses = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert GaussianMixture.fit(losses).match_probability(losses).tolist() == pytest.approx([1, 0, 0, 0], abs=1e-3)


def by_plain_em(losses, iterations, floor=5e-4):
    """Means, variances and weights by loops over pairs, from the halves below and above the median."""
    low, high = min(losses), max(losses)
    x = [(loss - low) / (high - low) for loss in losses]
    median = sorted(x)[(len(x) - 1) // 2]
    matched = [0.0 if one > median else 1.0 for one in x]
    for _ in range(iterations):
        parts = []
        for share in (matched, [1 - one for one in matched]):
            total = sum(share)
            mean = sum(w * one for w, one in zip(share, x, strict=True)) / total
            variance = sum(w * (one - mean) ** 2 for w, one in zip(share, x, strict=True)) / total + floor
            parts.append((mean, variance, total / len(x)))
        density = [[w * norm.pdf(one, mean, variance**0.5) for mean, variance, w in parts] for one in x]
        matched = [a / (a + b) for a, b in density]
    return sorted(parts), matched


@pytest.mark.parametrize("seed", range(4))
def test_em_is_that_of_plain_loops(seed):
    losses, _ = drawn(seed, pairs=150)
    mixture = GaussianMixture.fit(losses, max_iterations=7, tolerance=-1.0)
    parts, matched = by_plain_em(losses.tolist(), 7)
    found = zip(mixture.mean.tolist(), mixture.variance.tolist(), mixture.weight.tolist(), strict=True)
    np.testing.assert_allclose(list(found), parts, atol=1e-10)
    np.testing.assert_allclose(mixture.match_probability(losses), matched, atol=1e-8)


@given(losses=st.lists(st.floats(-5, 5), min_size=1, max_size=40), one_mode=st.sampled_from(["matched", "mixture"]))
def test_whatever_the_losses_probabilities_are_in_bounds_and_never_rise(losses, one_mode):
    losses = torch.tensor(losses)
    mixture = GaussianMixture.fit(losses, one_mode=one_mode)
    grid = torch.linspace(float(losses.min()), float(losses.max()), 60)
    probability = mixture.match_probability(grid, monotone=True)
    assert ((probability >= 0) & (probability <= 1)).all()
    assert (probability.diff() <= 1e-9).all()
    assert 0 <= mixture.mismatch_ratio <= 1


@pytest.mark.parametrize("spreads", [(0.02, 0.2), (0.2, 0.02)])
def test_beyond_its_turning_point_the_raw_posterior_rises_and_the_monotone_one_does_not(spreads):
    generator = np.random.default_rng(0)
    losses = np.concatenate([generator.normal(0.4, spreads[0], 2000), generator.normal(0.7, spreads[1], 2000)])
    mixture = GaussianMixture.fit(torch.from_numpy(losses))
    grid = torch.linspace(float(losses.min()), float(losses.max()), 200, dtype=torch.float64)
    raw, held = mixture.match_probability(grid), mixture.match_probability(grid, monotone=True)
    assert raw.diff().max() > 1e-3
    assert held.diff().max() <= 1e-12
    between = (grid > 0.45) & (grid < 0.65)
    torch.testing.assert_close(raw[between], held[between])


def test_equal_losses_and_a_single_heap_take_all_pairs_as_matched():
    constant = GaussianMixture.fit(torch.full((5,), 0.3))
    assert (constant.degenerate, constant.mismatch_ratio) == ("constant", 0.0)
    assert constant.match_probability(torch.tensor([0.3, 9.0])).tolist() == [1, 1]
    heap = torch.from_numpy(np.random.default_rng(0).normal(size=3000))
    assert GaussianMixture.fit(heap, one_mode="matched").degenerate == "one mode"
    assert GaussianMixture.fit(heap).degenerate is None
    losses, _ = drawn(0)
    assert GaussianMixture.fit(losses, one_mode="matched").degenerate is None
