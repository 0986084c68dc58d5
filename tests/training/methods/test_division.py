"""The suspects are dropped, and the schedule is that of every method."""

import numpy as np
import pytest

from l2rm.training.trainer import Trainer


@pytest.fixture
def taken(monkeypatch):
    """(epoch, rows, weights) of every step from now on."""
    steps, learn = [], Trainer._learn

    def watched(self, epoch, *batches):
        steps.append((epoch, batches[0].rows, batches[0].weights))
        learn(self, epoch, *batches)

    monkeypatch.setattr(Trainer, "_learn", watched)
    return steps


def test_division_learns_from_what_it_takes_as_matched_in_as_many_steps_as_plain(small, taken, tmp_path):
    config = small.small_config(method="division")
    run = small.train(small.small_train(), small.small_dev(), config, tmp_path / "run", progress=False)
    assert run.metrics[-1]["dev"]["rsum"] > 300
    assert [line["steps"] for line in run.metrics] == [12] * 6
    assert [line["stage"] for line in run.metrics] == ["warm-up"] * 3 + ["training"] * 3
    for line in run.metrics[3:]:
        rows = np.unique(np.concatenate([rows for epoch, rows, _ in taken if epoch == line["epoch"] - 1]))
        assert 0.9 * line["division"]["matched"] < len(rows) <= line["division"]["matched"] < 360
        assert line["transport"] is None


def test_l2rm_takes_as_many_steps_as_plain_where_that_is_asked_for(small, tmp_path):
    config = small.small_config(rematching_epochs=1, rematching={"steps": "pairs"})
    run = small.train(small.small_train(), small.small_dev(), config, tmp_path / "run", progress=False)
    assert [line["steps"] for line in run.metrics] == [12] * 4
    assert run.metrics[-1]["division"]["matched"] < 330


def test_division_by_folds_weighs_from_the_first_epoch_on(small, taken, tmp_path):
    settings = {"folds": 2, "fold_rounds": 1, "take": "weight"}
    config = small.small_config(method="division", warmup_epochs=1, rematching_epochs=1, rematching=settings)
    pairs = small.small_train()
    run = small.train(pairs, small.small_dev(), config, tmp_path / "run", progress=False)
    probability = run.match_probability(pairs)
    for _, rows, weights in taken:
        np.testing.assert_allclose(weights, probability[rows], atol=1e-6)
