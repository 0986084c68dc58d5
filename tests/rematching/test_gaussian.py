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


@pytest.mark.parametrize(
    ("losses", "message"), [([1.0, 1.0], "all 2 are equal"), ([0.0, float("nan")], "loss 1 is not finite")]
)
def test_what_cannot_be_divided_is_refused(losses, message):
    with pytest.raises(InputError, match=message):
        GaussianMixture.fit(torch.tensor(losses))


def test_a_median_that_is_the_highest_loss_still_divides():
    losses = torch.tensor([0.0, 1.0, 1.0, 1.0])
    assert GaussianMixture.fit(losses).match_probability(losses).tolist() == pytest.approx([1, 0, 0, 0], abs=1e-3)
