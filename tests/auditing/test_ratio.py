"""The share of mismatched pairs: its interval holds the truth as often as it says, where its mixture is right."""

import numpy as np
import pytest

from l2rm.auditing.ratio import mismatch_ratio

TRUTH = 0.3


def drawn(seed: int, images: int = 500, captions: int = 2) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """image_of, losses and p-values of pairs of which whole images go wrong, as the mixtures suppose."""
    generator = np.random.default_rng(seed)
    image_of = np.repeat(np.arange(images), captions)
    wrong = (generator.random(images) < TRUTH)[image_of]
    rows = len(image_of)
    losses = np.where(wrong, generator.beta(8, 4, rows), generator.beta(2, 12, rows))
    # The mixture can tell no uniform part of the matched pairs' own density, so theirs is one that falls to 0.
    ranks = np.where(wrong, generator.random(rows), generator.beta(0.2, 6, rows))
    return image_of, losses, (np.floor(ranks * 512) + 0.5) / 513


def test_intervals_of_losses_cover_the_truth() -> None:
    covered = 0
    for seed in range(8):
        image_of, losses, _ = drawn(seed)
        ratio = mismatch_ratio(image_of, losses=losses, draws=15)
        assert ratio is not None
        assert 0 < ratio.low <= ratio.estimate <= ratio.high < 1
        covered += ratio.low <= TRUTH <= ratio.high
    assert covered >= 6  # of 8: 95 % of intervals, less what 15 draws and chance take


def test_ranks_are_near_the_truth() -> None:
    for seed in range(4):
        image_of, _, p_values = drawn(seed)
        ratio = mismatch_ratio(image_of, p_values=p_values, draws=20)
        assert ratio is not None
        assert ratio.low - 0.05 < TRUTH < ratio.high + 0.05
        assert ratio.method == "rank mixture"


def test_images_are_drawn_whole() -> None:
    """Ten copies of each pair tell no more than one."""
    image_of, _, _ = drawn(0, captions=1)
    probability = np.random.default_rng(1).random(len(image_of))
    one = mismatch_ratio(image_of, match_probability=probability, draws=400)
    ten = mismatch_ratio(np.repeat(image_of, 10), match_probability=np.repeat(probability, 10), draws=400)
    assert one is not None
    assert ten is not None
    assert ten.estimate == pytest.approx(one.estimate) == pytest.approx(1 - probability.mean())
    assert ten.high - ten.low == pytest.approx(one.high - one.low, rel=1e-9)
    standard_error = probability.std() / np.sqrt(len(probability))
    assert one.high - one.low == pytest.approx(2 * 1.96 * standard_error, rel=0.2)


def test_losses_of_one_heap_tell_no_ratio() -> None:
    losses = np.random.default_rng(0).normal(size=400)
    assert mismatch_ratio(np.arange(400), losses=losses) is None
    assert mismatch_ratio(np.arange(5), losses=np.ones(5)) is None


def test_the_same_seed_gives_the_same_interval() -> None:
    image_of, _, p_values = drawn(3, images=80)
    one, two = (mismatch_ratio(image_of, p_values=p_values, draws=8, seed=5) for _ in range(2))
    assert one == two
    assert one is not None
    assert one.to_dict()["level"] == 0.95
