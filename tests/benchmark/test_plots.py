"""Curves against plain counting; pictures that can be opened."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.integrate import trapezoid

from l2rm.benchmark.alike import CaptionLikeness
from l2rm.benchmark.grid import Grid
from l2rm.benchmark.plots import (
    Found,
    calibration_error,
    plot_detection,
    plot_recall,
    plot_reliability,
    plot_rematched,
    reliability,
    roc,
)
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError
from l2rm.evaluation.detection import measure_detection


def drawn(seed, pairs=200):
    generator = np.random.default_rng(seed)
    truth = generator.random(pairs) < 0.4
    truth[:2] = True, False
    probability = np.clip(generator.normal(np.where(truth, 0.4, 0.7), 0.2), 0, 1).round(2)
    return probability, truth


@given(st.integers(0, 200))
def test_area_under_the_curve_is_auroc(seed):
    probability, truth = drawn(seed)
    false, true = roc(probability, truth)
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert (np.diff(false) >= 0).all()
    assert (np.diff(true) >= 0).all()
    assert trapezoid(true, false) == pytest.approx(measure_detection(probability, truth).auroc)


def test_reliability_by_counting():
    probability, truth = drawn(3)
    said, true, count = reliability(probability, truth)
    expected, error = [], 0.0
    for tenth in range(10):
        inside = (probability >= tenth / 10) & ((probability < (tenth + 1) / 10) | (tenth == 9))
        if inside.any():
            expected.append((probability[inside].mean(), (~truth[inside]).mean(), inside.sum()))
            error += abs(expected[-1][0] - expected[-1][1]) * inside.sum() / len(truth)
    # a hundredth that floating point puts on the other side of a tenth's edge is no matter
    assert count.sum() == len(truth)
    np.testing.assert_allclose(said, [one[0] for one in expected], atol=0.03)
    np.testing.assert_allclose(true, [one[1] for one in expected], atol=0.2)
    assert calibration_error(probability, truth) == pytest.approx(error, abs=0.03)
    assert calibration_error(np.array([1.0, 0.0]), np.array([False, True])) == 0


def test_likeness_leaves_the_caption_itself_out():
    pairs = Pairs(
        images=("a", "b", "c"),
        image_of=np.array([1, 1, 0, 0, 2]),
        true_image_of=np.array([0, 0, 1, 1, 2]),
        captions=("red kite", "red kite flies", "blue boat", "a boat", "green hill"),
    )
    likeness = CaptionLikeness(pairs)
    own, given_, none = likeness(np.array([0, 0, 4]), np.array([0, 1, 2]))
    assert given_ == 0
    assert 0.5 < own < 1  # "red kite" and "red kite flies"
    assert none == 0  # nothing is left of an image's only caption
    assert likeness(np.array([2]), np.array([1]))[0] < likeness(np.array([1]), np.array([0]))[0]


def test_likeness_wants_the_truth():
    with pytest.raises(InputError, match="needs the true images"):
        CaptionLikeness(Pairs(images=("a",), image_of=np.array([0]), captions=("x",)))


def test_every_picture_is_one(tmp_path):
    grid = Grid(name="mine", methods=("plain", "ncr", "l2rm"), ratios=(0.0, 0.2, 0.4), seeds=(0, 1))
    rows = [
        {"method": method, "ratio": ratio, "test": {"rsum": 200 - 100 * ratio + seed}}
        for method in grid.methods for ratio in grid.ratios for seed in grid.seeds
    ]  # fmt: skip
    probability, truth = drawn(0)
    alike = {"given": np.full(5, 0.1), "rematched": np.full(4, 0.2), "true partner": np.full(5, 0.4)}
    found = [
        Found(method="plain", match_probability=None, is_mismatched=truth, alike={}),
        Found(method="l2rm", match_probability=probability, is_mismatched=truth, alike=alike),
    ]
    names = {"title": "A title", "provenance": "commit abc"}
    plot_recall(tmp_path / "recall.png", grid, rows, **names)
    plot_detection(tmp_path / "detection.png", grid, found, **names)
    plot_reliability(tmp_path / "reliability.png", grid, found, **names)
    plot_rematched(tmp_path / "rematched.png", found, **names)
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.size == (1080, 690)
            assert len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0)) > 50
    assert len(list(tmp_path.iterdir())) == 4
    hurried = Grid(name="mine", methods=grid.methods, ratios=(0.4, 0.0, 0.2), seeds=(0, 1))
    plot_recall(tmp_path / "hurried.png", hurried, rows, **names)
    assert (tmp_path / "hurried.png").read_bytes() == (tmp_path / "recall.png").read_bytes()  # lines go to the right
