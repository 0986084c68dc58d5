"""How sure a suggestion is: against plain loops, and against the truth where a judge knows its pairs by heart."""

import numpy as np
import pytest
import torch

from l2rm.auditing import confidence
from l2rm.auditing.audit import audit_scores
from l2rm.auditing.confidence import Trials, Unseen
from l2rm.data.pairs import Pairs
from l2rm.evaluation.scores import MatrixScores


@pytest.mark.parametrize(("most", "chunk"), [(4000, 256), (4000, 3), (5, 2)])
def test_trials_are_those_of_plain_loops(monkeypatch: pytest.MonkeyPatch, most: int, chunk: int) -> None:
    monkeypatch.setattr(confidence, "TRIED", most)
    monkeypatch.setattr(confidence, "CHUNK", chunk)
    generator = np.random.default_rng(0)
    images, rows, margin = 9, 20, 0.2
    S = generator.normal(size=(13, 31)).astype(np.float32)
    image_of = np.append(generator.integers(0, images, rows), generator.integers(images, 13, 11))
    tried = np.append([3, 7], np.arange(rows, 31))  # two of them among those to be audited
    unseen = Unseen(scores=MatrixScores(S), image_of=image_of, rows=tried)
    trials = Trials.of_unseen(unseen, images=images, rows=rows, margin=margin, seed=0)
    expected = {}
    for row in tried.tolist():
        own, best = int(image_of[row]), int(S[:images, row].argmax())
        image = own if S[own, row] >= S[best, row] else best
        score = S[image, row]
        against = [max(0.0, margin + S[k, row] - score) for k in range(images) if k != image]
        others = [max(0.0, margin + S[image, j] - score) for j in range(rows) if image_of[j] not in (image, own)]
        expected[row] = np.mean(against) + np.mean(others), image == own
    assert len(trials.losses) == min(most, 13)
    if most > 13:
        np.testing.assert_allclose(trials.losses, [loss for loss, _ in expected.values()], rtol=1e-5)
        assert trials.is_right.tolist() == [right for _, right in expected.values()]
    else:
        found = set(zip(trials.losses.round(4).tolist(), trials.is_right.tolist(), strict=True))
        assert found <= {(round(float(loss), 4), bool(right)) for loss, right in expected.values()}


def test_confidence_is_the_share_that_was_right_and_never_rises_with_the_loss() -> None:
    losses = np.array([0.1, 0.1, 0.1, 0.1, 0.5, 0.5, 0.9, 0.9])
    right = np.array([True, True, True, False, True, False, False, False])
    trials = Trials(losses=losses, is_right=right, weights=np.ones(8))
    np.testing.assert_allclose(trials.confidence(np.array([0.5, 0.9, 2.0])), [0.5, 0, 0])
    found = trials.confidence(np.linspace(0, 1, 50))
    assert (np.diff(found) <= 0).all()
    assert found[0] <= 1


def test_a_judge_that_knows_its_pairs_by_heart_is_as_sure_as_it_is_right() -> None:
    """Given pairs score highest, right or wrong; only pairs that the judge has not learned show what it knows."""
    generator = np.random.default_rng(0)
    n, control = 300, 300
    towers = generator.normal(size=(n + control, 16))
    heard = towers + 1.1 * generator.normal(size=towers.shape)
    S = 0.01 * (towers @ heard.T)
    true_image = np.arange(n + control)
    given = true_image.copy()
    given[:120] = np.roll(given[:120], 1)
    S[given[:n], np.arange(n)] += 1
    pairs = Pairs(
        images=tuple(f"{i}.jpg" for i in range(n)),
        image_of=given[:n],
        captions=("text",) * n,
        true_image_of=true_image[:n],
    )
    probability = np.where(given[:n] == true_image[:n], 0.9, 0.1)
    audited = MatrixScores(S[:n, :n])
    unseen = Unseen(scores=MatrixScores(S), image_of=given, rows=np.arange(n, n + control))
    bold = audit_scores(audited, pairs, match_probability=probability, progress=False)
    honest = audit_scores(audited, pairs, match_probability=probability, unseen=unseen, progress=False)
    suspects = bold.is_mismatched
    right = (bold.candidates[:, 0] == true_image[:n])[suspects].mean()
    assert 0.2 < right < 0.6
    assert honest.calibrated
    assert not bold.calibrated
    assert honest.rematch_confidence[suspects].mean() == pytest.approx(right, abs=0.08)
    np.testing.assert_array_equal(honest.candidates, bold.candidates)
    np.testing.assert_array_equal(honest.losses, bold.losses)


class Rounding(MatrixScores):
    """Scores that are a little lower in small blocks."""

    def block(self, images: np.ndarray, captions: np.ndarray) -> torch.Tensor:
        return super().block(images, captions) + 1e-6 * len(images)


def test_the_own_image_is_right_however_its_score_is_rounded() -> None:
    scores = Rounding(np.eye(12, dtype=np.float32))
    unseen = Unseen(scores=scores, image_of=np.arange(12), rows=np.array([1, 4, 5]))
    assert Trials.of_unseen(unseen, images=12, rows=12, margin=0.2, seed=0).is_right.all()
