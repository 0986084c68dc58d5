"""One run judges, another learns from its verdict and its partners."""

import dataclasses
import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from l2rm.errors import InputError
from l2rm.rematching.settings import RematchingConfig
from l2rm.training.judge import read_judgement
from l2rm.training.trainer import Trainer

JUDGE = {"folds": 2, "fold_rounds": 1, "take": "weight", "scope": "dataset"}


@pytest.fixture(scope="module")
def judge(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge") / "run"
    config = small.small_config(warmup_epochs=2, rematching_epochs=1, rematching=JUDGE)
    return small.train(small.small_train(), small.small_dev(), config, folder, progress=False)


def train_by(run, small, out, *, resume=False, **rematching):
    config = small.small_config(
        warmup_epochs=1,
        rematching_epochs=2,
        rematching={"take": "weight", "scope": "dataset", "judge": str(run.folder), **rematching},
    )
    return small.train(small.small_train(), small.small_dev(), config, out, resume=resume, progress=False)


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
    judgement = read_judgement(pairs, by(judge))
    given = read_judgement(pairs, by(run))  # who is judged for may judge in turn
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


def by(run, **settings):
    return RematchingConfig(judge=str(run.folder), scope="dataset", **settings)


def test_people_overrule_the_judge_and_pairs_may_have_been_dropped(small, judge):
    pairs = small.small_train()
    whole = read_judgement(pairs, by(judge))
    kept, dropped, moved = np.flatnonzero(whole.rematch_image >= 0)[:3]
    image_of = pairs.image_of.copy()
    image_of[moved] = pairs.true_image_of[moved]
    trusted = np.isin(np.arange(len(pairs)), [kept, moved])
    rows = np.delete(np.arange(len(pairs)), dropped)
    decided = dataclasses.replace(pairs, image_of=image_of, trusted=trusted).take(rows)
    found = read_judgement(decided, by(judge))
    expected = np.where(trusted, 1, whole.match_probability)[rows]
    np.testing.assert_array_equal(found.match_probability, expected)
    np.testing.assert_array_equal(found.rematch_image[decided.trusted], -1)
    np.testing.assert_array_equal(found.rematch_share[decided.trusted], 0)
    names = [pairs.images[image] if image >= 0 else None for image in whole.rematch_image[rows]]
    again = [decided.images[image] if image >= 0 else None for image in found.rematch_image]
    assert all(one in (None, other) for one, other in zip(again, names, strict=True))
    assert sum(one is not None for one in again) == sum(one is not None for one in names) - 2


def test_equal_pairs_are_told_apart_by_their_order(small, judge, tmp_path):
    table = pq.read_table(judge.folder / "pairs.parquet").slice(0, 4).to_pydict()
    table["image"], table["caption"] = ["1/0"] * 4, ["a", "a", "b", "a"]
    table["match_probability"] = [0.1, 0.9, 0.6, 0.7]
    shutil.copytree(judge.folder, tmp_path / "run")
    pq.write_table(pa.table(table), tmp_path / "run" / "pairs.parquet")
    pairs = dataclasses.replace(
        small.small_train().take(np.arange(4)),
        images=("1/0",), image_of=np.zeros(4, dtype=int), captions=("b", "a", "a", "a"), features=None,
        true_image_of=None,
    )  # fmt: skip
    settings = RematchingConfig(judge=str(tmp_path / "run"), scope="batch")
    np.testing.assert_allclose(read_judgement(pairs, settings).match_probability, [0.6, 0.1, 0.9, 0.7])


def test_a_finished_or_a_saved_run_needs_its_judge_no_more(small, judge, monkeypatch, tmp_path):
    shutil.copytree(judge.folder, tmp_path / "judge")
    moved = dataclasses.replace(judge, folder=tmp_path / "judge")
    learn = Trainer._learn

    def stopped(self, epoch, *batches):
        if epoch == 1:
            raise KeyboardInterrupt
        learn(self, epoch, *batches)

    monkeypatch.setattr(Trainer, "_learn", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_by(moved, small, tmp_path / "run")
    monkeypatch.setattr(Trainer, "_learn", learn)
    (tmp_path / "judge").rename(tmp_path / "elsewhere")
    elsewhere = dataclasses.replace(judge, folder=tmp_path / "elsewhere")
    assert train_by(elsewhere, small, tmp_path / "run", resume=True).record["finished"]
    shutil.rmtree(tmp_path / "elsewhere")
    assert train_by(elsewhere, small, tmp_path / "run", resume=True).record["finished"]
    whole = train_by(judge, small, tmp_path / "whole")
    resumed = torch.load(tmp_path / "run/last/state.pt", weights_only=True)["model"]
    for name, value in torch.load(whole.folder / "last/state.pt", weights_only=True)["model"].items():
        torch.testing.assert_close(resumed[name], value, rtol=0, atol=0)


def test_a_judge_that_is_none_is_refused_before_anything_is_written(small, judge, tmp_path):
    plain = small.small_config(method="plain", objective="infonce", warmup_epochs=0, rematching_epochs=1)
    small.train(small.small_train(), small.small_dev(), plain, tmp_path / "plain", progress=False)
    unfinished, converted = (shutil.copytree(judge.folder, tmp_path / name) for name in ("unfinished", "converted"))
    record = json.loads((judge.folder / "config.json").read_text())
    (unfinished / "config.json").write_text(json.dumps(record | {"finished": False}))
    (converted / "metrics.jsonl").unlink()
    damaged = shutil.copytree(judge.folder, tmp_path / "damaged")
    (damaged / "pairs.parquet").write_bytes(b"PAR1")
    (alone := shutil.copytree(judge.folder, tmp_path / "division") / "pairs.parquet").unlink()
    table = pq.read_table(judge.folder / "pairs.parquet")
    nobody = pa.nulls(len(table), pa.string())
    pq.write_table(table.set_column(table.column_names.index("rematch_image"), "rematch_image", nobody), alone)
    for folder, message in (
        (tmp_path, "no RUN folder"),
        (tmp_path / "plain", "divided no pairs; give a run of l2rm or division"),
        (unfinished, "is not finished"),
        (converted, "divided no pairs"),
        (damaged, "cannot be read"),
        (tmp_path / "division", "has partners for none of"),
    ):
        with pytest.raises(InputError, match=message):
            train_by(dataclasses.replace(judge, folder=folder), small, tmp_path / "run")
    with pytest.raises(InputError, match=r"does not know pair 0 \(\d+ in all\)"):
        read_judgement(small.small_pairs(90, seed=5), by(judge))
    config = small.small_config(method="warmup", rematching={"judge": str(judge.folder)})
    with pytest.raises(InputError, match=r"rematching\.judge: method warmup asks none"):
        small.train(small.small_train(), small.small_dev(), config, tmp_path / "run", progress=False)
    with pytest.raises(InputError, match="takes 0 pairs as matched"):
        train_by(judge, small, tmp_path / "run", matched_above=0.999999)
    assert not (tmp_path / "run").exists()
