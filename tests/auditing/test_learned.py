"""A run's verdict on pairs of which it learned some."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from l2rm.auditing import learned
from l2rm.auditing.learned import verdict
from l2rm.data.pairs import Pairs
from l2rm.evaluation.scores import MatrixScores

LEARNED, NEW = 60, 120


@pytest.fixture
def pairs() -> Pairs:
    """What is new lies behind what was learned; a third of the new pairs are mismatched."""
    n = LEARNED + NEW
    given = np.arange(n)
    given[LEARNED : LEARNED + NEW // 3] = np.roll(given[LEARNED : LEARNED + NEW // 3], 1)
    return Pairs(
        images=tuple(f"{i}.jpg" for i in range(n)),
        image_of=given,
        captions=tuple(f"text {i}" for i in range(n)),
        true_image_of=np.arange(n),
    )


def run_that_learned(known: np.ndarray | None, evidence: str) -> Any:
    return SimpleNamespace(
        model=None,
        config=SimpleNamespace(rematching=SimpleNamespace(tau=0.1)),
        evidence=evidence,
        match_probability=lambda pairs: known,
    )


@pytest.mark.parametrize("evidence", ["pair", "image"])
def test_what_is_new_is_ranked_among_itself(pairs: Pairs, monkeypatch: pytest.MonkeyPatch, evidence: str) -> None:
    asked = []

    def scores_of(model: None, some: Pairs) -> MatrixScores:
        asked.append(some)
        numbers = [int(name.removesuffix(".jpg")) for name in some.images]
        truth = [int(caption.removeprefix("text ")) for caption in some.captions]
        noise = np.random.default_rng(0).normal(0, 0.1, (len(numbers), len(truth)))
        return MatrixScores(noise + 0.6 * (np.array(numbers)[:, None] == np.array(truth)))

    monkeypatch.setattr(learned, "model_scores", scores_of)
    known = np.append(np.linspace(0, 1, LEARNED), np.full(NEW, np.nan))
    found = verdict(run_that_learned(known.copy(), evidence), pairs)
    assert found is not None
    np.testing.assert_array_equal(found.match_probability[:LEARNED], known[:LEARNED])
    new = found.match_probability[LEARNED:]
    is_mismatched = pairs.is_mismatched
    assert is_mismatched is not None
    wrong = is_mismatched[LEARNED:]
    assert wrong.sum() == NEW // 3
    assert (new[~wrong] > 0.5).mean() > 0.95
    assert (new[wrong] < 0.5).mean() > 0.8
    assert [one.captions for one in asked] == [pairs.captions[LEARNED:]]
    np.testing.assert_array_equal(found.new, np.arange(LEARNED, LEARNED + NEW))


def test_all_or_nothing_learned(pairs: Pairs) -> None:
    known = np.linspace(0, 1, len(pairs))
    found = verdict(run_that_learned(known, "pair"), pairs)
    assert found is not None
    np.testing.assert_array_equal(found.match_probability, known)
    assert len(found.new) == 0
    assert verdict(run_that_learned(None, "pair"), pairs) is None
