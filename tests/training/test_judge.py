"""One run judges, another learns from its verdict and its partners."""

import dataclasses

import numpy as np
import pytest

from l2rm.errors import InputError
from l2rm.training.judge import read_judgement
from l2rm.training.trainer import Trainer

JUDGE = {"folds": 2, "fold_rounds": 1, "take": "weight", "scope": "dataset"}


@pytest.fixture(scope="module")
def judge(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge") / "run"
    config = small.small_config(warmup_epochs=2, rematching_epochs=1, rematching=JUDGE)
    return small.train(small.small_train(), small.small_dev(), config, folder, progress=False)


def train_by(run, small, out, **rematching):
    config = small.small_config(
        warmup_epochs=1,
        rematching_epochs=2,
        rematching={"take": "weight", "scope": "dataset", "judge": str(run.folder), **rematching},
    )
    return small.train(small.small_train(), small.small_dev(), config, out, progress=False)


def test_verdict_and_partners_are_the_judges(small, judge, monkeypatch, tmp_path):
    lessons, learn = [], Trainer._learn

    def watched(self, epoch, *batches):
        if epoch == 1:
            lessons.append(batches[0])
        learn(self, epoch, *batches)

    monkeypatch.setattr(Trainer, "_learn", watched)
    pairs = small.small_train()
    run = train_by(judge, small, tmp_path / "run")
    np.testing.assert_array_equal(run.match_probability(pairs), judge.match_probability(pairs))
    judgement = read_judgement(judge.folder, pairs)
    given = read_judgement(run.folder, pairs)  # who is judged for may judge in turn
    np.testing.assert_array_equal(given.rematch_image, judgement.rematch_image)
    assert (judgement.rematch_image >= 0).sum() > 50
    taught = {
        (int(row), int(image)) for batch in lessons for row, image in zip(batch.rows, batch.image_ids, strict=True)
    }
    partners = {(row, image) for row, image in enumerate(judgement.rematch_image) if image >= 0}
    assert partners & taught
    assert taught <= partners | set(enumerate(pairs.image_of))
    for line in run.metrics:
        assert line["division"]["matched"] == (judgement.match_probability > 0.5).sum()
        assert line["division"].get("plan") is None


def test_the_warm_up_is_weighed_too(small, judge, tmp_path):
    by_judge = train_by(judge, small, tmp_path / "weighed")
    alone = train_by(judge, small, tmp_path / "plain", judge="", scope="batch", take="threshold")
    assert by_judge.metrics[0]["losses"] != alone.metrics[0]["losses"]
    batch = train_by(judge, small, tmp_path / "batch", scope="batch")
    assert batch.metrics[0]["losses"] == by_judge.metrics[0]["losses"]


def test_people_overrule_the_judge(small, judge, tmp_path):
    pairs = small.small_train()
    doubted = int(np.flatnonzero(judge.match_probability(pairs) < 0.5)[0])
    trusted = np.arange(len(pairs)) == doubted
    config = small.small_config(rematching={"take": "weight", "judge": str(judge.folder)})
    decided = dataclasses.replace(pairs, trusted=trusted)
    run = small.train(decided, small.small_dev(), config, tmp_path / "run", progress=False)
    probability = run.match_probability(pairs)
    assert probability[doubted] == 1
    np.testing.assert_array_equal(probability[~trusted], judge.match_probability(pairs)[~trusted])


def test_a_judge_that_is_none_is_refused_before_anything_is_written(small, judge, tmp_path):
    plain = small.small_config(method="plain", objective="infonce", warmup_epochs=0, rematching_epochs=1)
    small.train(small.small_train(), small.small_dev(), plain, tmp_path / "plain", progress=False)
    for folder, message in (
        (tmp_path, "no RUN folder"),
        (tmp_path / "plain", "method plain divides no pairs; give a run of l2rm or division"),
    ):
        with pytest.raises(InputError, match=message):
            train_by(judge, small, tmp_path / "run", judge=str(folder))
    others = small.small_train(images=90)
    with pytest.raises(InputError, match="was trained on other pairs"):
        read_judgement(judge.folder, others)
    config = small.small_config(method="warmup", rematching={"judge": str(judge.folder)})
    with pytest.raises(InputError, match=r"rematching\.judge: method warmup asks none"):
        small.train(small.small_train(), small.small_dev(), config, tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="takes 0 pairs as matched"):
        train_by(judge, small, tmp_path / "run", matched_above=0.999999)
    assert not (tmp_path / "run").exists()
