"""What every method learns on a small separable set, what a run leaves behind, and what it refuses."""

import dataclasses
import json
import logging
import shutil
import threading

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from l2rm.data.batches import Batches
from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import Vocabulary
from l2rm.errors import InputError
from l2rm.evaluation.metrics import evaluate_scores
from l2rm.rematching import objectives
from l2rm.similarity.model import build_model
from l2rm.similarity.scoring import ModelScores
from l2rm.training.divide import divide
from l2rm.training.methods import divided as divided_module
from l2rm.training.run import load, load_run
from l2rm.training.train import data_shape
from l2rm.training.trainer import Trainer

CHANCE = 2 * 100 * (1 + 5 + 10) / 30


@pytest.fixture
def go(small, tmp_path):
    """Train on the small set: `go(config fields)`, or with other pairs, dev, vocabulary, out."""

    def run(pairs=None, dev=None, out=None, vocabulary=None, resume=False, **config):
        pairs = small.small_train() if pairs is None else pairs
        dev = small.small_dev() if dev is None else dev
        out = tmp_path / "run" if out is None else out
        return small.train(
            pairs, dev, small.small_config(**config), out, vocabulary=vocabulary, resume=resume, progress=False
        )

    return run


def auroc(match_probability, is_mismatched):
    """How often a matched pair is above a mismatched one, by counting all of them."""
    matched, mismatched = match_probability[~is_mismatched, None], match_probability[None, is_mismatched]
    return (matched > mismatched).mean() + 0.5 * (matched == mismatched).mean()


# ------------------------------------------------------------------------------------------------------ it learns


def test_l2rm_learns_and_finds_the_mismatches(small, finished):
    assert finished.metrics[-1]["dev"]["rsum"] > 4 * CHANCE
    truth = small.small_train().is_mismatched
    table = pq.read_table(finished.folder / "pairs.parquet")
    assert auroc(table["match_probability"].to_numpy(), truth) > 0.9
    assert finished.metrics[-1]["division"]["accuracy"] > 0.85
    rematched = table["rematch_image"].to_pylist()
    assert sum(image is not None for image in rematched) > 100
    pairs = small.small_train()
    given = [pairs.images[image] for image in pairs.image_of]
    assert all(one != other for one, other in zip(rematched, given, strict=True))
    shares = table["rematch_share"].to_numpy()
    assert (shares >= 0).all()
    assert (shares <= 1 + 1e-5).all()


@pytest.mark.parametrize("method", ["plain", "oracle", "warmup"])
def test_the_rival_methods_learn(go, method):
    run = go(method=method)
    assert run.record["best"]["rsum"] > 4 * CHANCE
    if method != "warmup":
        rsums = run.record["candidates"]
        assert run.record["best"]["rsum"] == max(rsums.values())
        assert run.config.objective == max(rsums, key=rsums.get)
        assert run.config.objective in rsums
        assert len(run.metrics) == run.config.epochs  # the chosen candidate's alone


@pytest.mark.parametrize("similarity", ["cosine", "sgr"])
def test_caption_embeddings_and_whole_image_features_are_learned_from(small, tmp_path, similarity):
    words, pairs, dev = np.random.default_rng(0).normal(size=(20, 9)), small.small_train(), small.small_dev()
    names = [*(f"colour{n}" for n in range(10)), *(f"shape{n}" for n in range(9)), "a"]

    def embedded(pairs):
        captions = np.stack(
            [sum(words[names.index(w)] for w in text.split() if w in names) for text in pairs.captions]
        ).astype(np.float32)
        return dataclasses.replace(
            pairs, features=Features(array=pairs.features.array[:, 0]), caption_features=Features(array=captions)
        )

    config = small.small_config(warmup_epochs=2, rematching_epochs=1)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, similarity=similarity))
    run = small.train(embedded(pairs), embedded(dev), config, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "vocabulary.json").exists()
    assert load(tmp_path / "run").vocabulary is None
    if similarity == "cosine":
        assert run.record["best"]["rsum"] > 2 * CHANCE


# ------------------------------------------------------------------------------------------------- the RUN folder


def test_run_folder_holds_what_the_contract_says(small, finished):
    names = {path.name for path in finished.folder.iterdir()}
    assert names == {
        "config.json", "model.safetensors", "vocabulary.json", "metrics.jsonl", "pairs.parquet", "last", "log.txt"
    }  # fmt: skip
    record = json.loads((finished.folder / "config.json").read_text())
    assert record["finished"] is True
    assert record["pairs"] == 360
    table = pq.read_table(finished.folder / "pairs.parquet")
    assert table["pair_id"].to_pylist() == list(small.small_train().pair_ids)
    assert "epoch 6/6 rematching: dev rSum" in (finished.folder / "log.txt").read_text()


def test_metrics_have_a_line_an_epoch_that_tells_all(finished):
    lines = [json.loads(line) for line in (finished.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["stage"] for line in lines] == ["warm-up"] * 3 + ["rematching"] * 3
    assert [round(line["lr"], 6) for line in lines] == [0.02, 0.02, 0.02, 0.02, 0.02, 0.002]
    for line in lines:
        assert set(line["dev"]) == {"i2t", "t2i", "rsum", "protocol", "images", "captions"}
        assert line["seconds"]["train"] > 0
        assert all(np.isfinite(value) for value in line["losses"].values())
    for line in lines[:3]:
        assert line["division"] is None
        assert line["transport"] is None
        assert line["steps"] == 12
    for line in lines[3:]:
        assert line["division"]["matched"] + line["division"]["mismatched"] == 360
        assert line["steps"] == line["division"]["matched"] // 30
        assert set(line["losses"]) == {"matched", "rematched", "cost"}
        assert line["transport"]["mass"] == pytest.approx(0.1, abs=1e-4)
        assert line["transport"]["unconverged"] == 0


def test_saved_model_is_the_best_one_and_loads_to_the_same_scores(small, finished):
    dev = small.small_dev()
    best = max(finished.metrics, key=lambda line: line["dev"]["rsum"])
    loaded = load(finished.folder)
    assert not loaded.training
    scores = ModelScores(loaded, dev)
    assert evaluate_scores(scores, dev.image_of).rsum == pytest.approx(best["dev"]["rsum"])
    assert finished.record["best"]["epoch"] == best["epoch"]
    everything = np.arange(30)
    expected = ModelScores(finished.model, dev).block(everything, everything)
    assert torch.equal(scores.block(everything, everything), expected)


def test_a_warmup_checkpoint_that_nothing_beats_is_kept_and_said(go, small, monkeypatch, caplog):
    learn = Trainer._learn

    def spoil_later(self, epoch, *batches):
        learn(self, epoch, *batches)
        if self.stage(epoch) == "rematching":
            with torch.no_grad():
                for parameter in self.model.parameters():
                    parameter.normal_()

    monkeypatch.setattr(Trainer, "_learn", spoil_later)
    with caplog.at_level(logging.WARNING, logger="l2rm"):
        run = go()
    assert run.record["best"]["stage"] == "warm-up"
    assert f"(epoch {run.record['best']['epoch']})" in caplog.text
    assert evaluate_scores(ModelScores(run.model, small.small_dev()), np.arange(30)).rsum == pytest.approx(
        run.record["best"]["rsum"]
    )


def test_batches_are_read_ahead_and_a_read_that_fails_ends_the_run(go, monkeypatch):
    read, readers = Features.batch, []

    def counted(self, index):
        readers.append(threading.current_thread().name)
        if sum(name.startswith("l2rm-ahead") for name in readers) == 9:
            raise OSError(5, "Input/output error")
        return read(self, index)

    monkeypatch.setattr(Features, "batch", counted)
    taken = steps_taken(monkeypatch)
    with pytest.raises(OSError, match="Input/output error"):
        go()
    assert len(taken) == 8  # those that were read are learned from first
    assert set(readers) == {"l2rm-ahead_0"}
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("l2rm-ahead")]


def test_a_better_rematching_checkpoint_says_nothing(small, finished, go, caplog):
    assert finished.record["best"]["stage"] == "rematching"
    assert "warm-up (epoch" not in (finished.folder / "log.txt").read_text()


# -------------------------------------------------------------------------------------------------------- schedule


def steps_taken(monkeypatch):
    taken, learn = [], Trainer._learn

    def counted(self, epoch, *batches):
        taken.append((self.config.objective, epoch, self.objective(epoch), batches[0].rows))
        learn(self, epoch, *batches)

    monkeypatch.setattr(Trainer, "_learn", counted)
    return taken


def test_oracle_learns_from_matched_pairs_alone_in_as_many_steps_as_plain(small, go, monkeypatch, tmp_path):
    taken = steps_taken(monkeypatch)
    schedule = {"warmup_epochs": 1, "rematching_epochs": 1}
    go(method="plain", objective="infonce", out=tmp_path / "plain", **schedule)
    plain = len(taken)
    taken.clear()
    go(method="oracle", objective="two_stage", out=tmp_path / "oracle", **schedule)
    assert len(taken) == plain == 24
    truth = small.small_train().is_mismatched
    assert not any(truth[rows].any() for *_, rows in taken)
    assert [name for _, _, name, _ in taken] == ["symmetric_cross_entropy"] * 12 + ["max_violation"] * 12


def test_auto_tries_each_candidate_with_the_same_budget(go, monkeypatch):
    taken = steps_taken(monkeypatch)
    run = go(method="oracle", warmup_epochs=1, rematching_epochs=1)
    counts = {name: sum(one == name for one, *_ in taken) for name in run.record["candidates"]}
    assert counts == dict.fromkeys(("mean_violation", "infonce", "symmetric_cross_entropy", "two_stage"), 24)


def test_same_seed_same_run_and_another_seed_another(go, finished, tmp_path):
    again = go(out=tmp_path / "again")
    assert (again.folder / "model.safetensors").read_bytes() == (finished.folder / "model.safetensors").read_bytes()
    other = go(out=tmp_path / "other", seed=1)
    assert [line["losses"] for line in other.metrics] != [line["losses"] for line in finished.metrics]


# ----------------------------------------------------------------------------------------------------- odd shapes


def with_mismatches(pairs, rows):
    """The same pairs, where the captions of the given rows have been given the next image."""
    image_of = pairs.image_of.copy()
    image_of[rows] = (image_of[rows] + 1) % pairs.n_images
    return dataclasses.replace(pairs, image_of=image_of, true_image_of=pairs.image_of)


@pytest.fixture
def divided(monkeypatch):
    """`divided(mismatched)`: from now on every sample division takes exactly these rows as mismatched."""

    def fix(mismatched):
        def given(*arguments, **options):
            division = divide(*arguments, **options)
            probability = np.ones(len(division.match_probability), dtype=np.float32)
            probability[list(mismatched)] = 0
            return dataclasses.replace(division, match_probability=probability)

        monkeypatch.setattr(divided_module, "divide", given)

    return fix


@pytest.mark.parametrize("forbid", ["pair", "image"])
@pytest.mark.parametrize("mismatched", [[], [0], [0, 1], [0, 1, 2], range(20, 60)], ids=len)
def test_any_division_can_be_trained_on(small, go, divided, mismatched, forbid):
    """Whatever is taken as mismatched: nothing, a row, an image's two captions, fewer than a batch, more."""
    pairs = with_mismatches(small.small_pairs(30, seed=3), list(mismatched))
    divided(mismatched)
    run = go(pairs=pairs, warmup_epochs=1, rematching_epochs=1, rematching={"forbid": forbid})
    division = run.metrics[-1]["division"]
    assert (division["mismatched"], division["accuracy"]) == (len(mismatched), 1)
    assert (run.metrics[-1]["transport"] is None) == (len(set(pairs.image_of[list(mismatched)])) < 2)


def test_batches_in_which_nothing_can_be_exchanged_are_skipped_and_counted(small, go, divided):
    divided([0, 1, 2, 3])  # two images of two captions: some batches of two have a single image
    run = go(
        pairs=small.small_train(30), warmup_epochs=1, rematching_epochs=1, batch_size=2, rematching={"queue_size": 0}
    )
    assert 0 < run.metrics[-1]["transport"]["skipped"] < 1


def test_nothing_matched_is_said(go, divided, small):
    divided(range(40))
    with pytest.raises(RuntimeError, match="epoch 4 takes 0 pairs as matched, so nothing is left to learn from"):
        go(pairs=small.small_train(20))


def test_a_pair_left_over_alone_is_not_taken_as_matched_for_that(small):
    """31 pairs in batches of 10: alone in a batch, the last one would have no negatives and so no loss."""
    pairs = small.small_pairs(31, seed=3, captions=1)
    torch.manual_seed(0)
    vocabulary = Vocabulary.build(pairs.captions, min_count=1)
    model = build_model(small.small_config().model, data_shape(pairs, vocabulary))
    division = divide(model, Batches(pairs, vocabulary), small.small_config().rematching, batch_size=10, seed=(0,))
    assert (division.losses > 0).all()


def test_smoothing_keeps_a_share_of_the_division_before(small):
    pairs = small.small_train(60)
    torch.manual_seed(0)
    vocabulary = Vocabulary.build(pairs.captions, min_count=1)
    model = build_model(small.small_config().model, data_shape(pairs, vocabulary))
    previous = np.linspace(0, 1, len(pairs), dtype=np.float32)
    fresh, smooth = (
        divide(
            model,
            Batches(pairs, vocabulary),
            dataclasses.replace(small.small_config().rematching, smoothing=smoothing),
            batch_size=30,
            seed=(0,),
            previous=previous,
        ).match_probability
        for smoothing in (0.0, 0.75)
    )
    np.testing.assert_allclose(smooth, 0.75 * previous + 0.25 * fresh, rtol=1e-5, atol=1e-6)


def test_batch_larger_than_the_data(small, go):
    run = go(pairs=small.small_train(20), batch_size=64, rematching={"queue_size": 80})
    assert run.metrics[0]["steps"] == 1


# ---------------------------------------------------------------------------------------------------- what it refuses


def test_a_gradient_that_is_not_finite_ends_the_run_without_a_model(go, monkeypatch, tmp_path):
    monkeypatch.setattr(objectives, "symmetric_cross_entropy", lambda S, tau, weights: (S * torch.nan).sum())
    with pytest.raises(RuntimeError, match="epoch 1, step 1: the gradient is nan"):
        go()
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with pytest.raises(InputError, match="before its first epoch ended"):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 1}, "batch_size: 1 is too small; give at least 2"),
        ({"lr": 0.0}, "lr: 0.0 is not positive"),
        ({"lr": float("nan")}, "lr: nan is not positive"),
        ({"warmup_epochs": 0, "rematching_epochs": 0}, "at least one epoch"),
        ({"warmup_epochs": -1}, "warmup_epochs: -1 is too small"),
        ({"method": "magic"}, "method: 'magic' is unknown; take one of l2rm, plain, oracle, warmup"),
        ({"objective": "infonce"}, "objective: method l2rm has its own"),
        ({"rematching": {"mass": 1.5}}, "rematching.mass: 1.5 is too large"),
        ({"rematching": {"forbid": "row"}}, "rematching.forbid: 'row' is unknown"),
        ({"rematching": {"queue_size": 3}}, "rematching.queue_size: 3 is less than a batch has"),
        ({"device": "abacus"}, "device: 'abacus' is not to be had here"),
    ],
)
def test_impossible_configurations_are_refused_and_leave_nothing(go, tmp_path, changes, message):
    with pytest.raises(InputError, match=r"^[^\n]*$") as error:
        go(**changes)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def bad_data(small, what):
    pairs, dev = small.small_train(20), small.small_dev()
    if what == "no features":
        return dataclasses.replace(pairs, features=None), dev
    if what == "NaN features":
        array = pairs.features.array.copy()
        array[3, 1, 2] = np.nan
        return dataclasses.replace(pairs, features=Features(array=array)), dev
    if what == "other features in dev":
        return pairs, dataclasses.replace(dev, features=Features(array=dev.features.array[:, :, 1:]))
    if what == "embeddings in dev only":
        return pairs, dataclasses.replace(dev, caption_features=Features(array=np.zeros((30, 4), np.float32)))
    if what == "one image":
        return pairs.take(pairs.image_of == pairs.image_of[0]), dev
    return pairs, dev.take([])


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no features", "small: no image features"),
        ("NaN features", "row 3 .from 0. has a NaN"),
        ("other features in dev", "make both with the same encoder"),
        ("embeddings in dev only", "make both with the same encoder"),
        ("one image", "at least two pairs of two images"),
        ("no dev", "no dev pairs"),
    ],
)
def test_data_that_cannot_be_trained_on_are_refused(small, go, tmp_path, what, message):
    pairs, dev = bad_data(small, what)
    with pytest.raises(InputError, match=message):
        go(pairs=pairs, dev=dev)
    assert not (tmp_path / "run").exists()


def test_oracle_wants_the_truth(small, go):
    with pytest.raises(InputError, match="which they are is not known"):
        go(pairs=small.small_pairs(20, seed=3), method="oracle")
    pairs = small.small_pairs(20, seed=3)
    with pytest.raises(InputError, match="0 truly matched pairs"):
        go(pairs=with_mismatches(pairs, np.arange(len(pairs))), method="oracle")


def test_vocabularies(small, go, tmp_path):
    pairs = small.small_train(20)
    given = Vocabulary.build(["colour1 shape1"], min_count=1)  # most words are unknown to it: poor, but no error
    assert go(pairs=pairs, vocabulary=given, out=tmp_path / "given").model.vocabulary.words == given.words
    embedded = dataclasses.replace(pairs, caption_features=Features(array=np.ones((40, 3), np.float32)))
    dev = dataclasses.replace(small.small_dev(), caption_features=Features(array=np.ones((30, 3), np.float32)))
    with pytest.raises(InputError, match="captions are embeddings, not words"):
        go(pairs=embedded, dev=dev, vocabulary=given, out=tmp_path / "embedded")


def test_a_taken_folder_is_refused(go, tmp_path, finished):
    with pytest.raises(InputError, match="there is a run already; go on with --resume"):
        go(out=finished.folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        go(out=tmp_path / "file")


def damaged(finished, folder, name, content):
    shutil.copytree(finished.folder, folder)
    (folder / name).write_bytes(content)
    (folder / "last" / "best.safetensors").unlink(missing_ok=True)  # which would stand in for damaged weights
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "not the configuration of a RUN"),
        ("config.json", b"[]", "not the configuration of a RUN"),
        ("config.json", b'{"format": 99}', "format 99"),
        ("config.json", b'{"format": 1}', "not the configuration of a RUN"),
        ("config.json", b'{"format": 1, "config": {"magic": 1}, "shape": {}}', "unknown key 'magic'"),
        ("config.json", b'{"format": 1, "config": {}, "shape": {}}', "no key 'image_dim'"),
        ("model.safetensors", b"nonsense", "is damaged"),
        ("vocabulary.json", b"{}", "vocabulary.json"),
    ],
)
def test_a_damaged_run_is_an_input_error(finished, tmp_path, name, content, message):
    with pytest.raises(InputError, match=message) as error:
        load(damaged(finished, tmp_path / "run", name, content))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_no_run_at_all(tmp_path):
    with pytest.raises(InputError, match="no RUN folder"):
        load(tmp_path)


def test_pairs_of_two_rows_train(go):
    features = Features(array=np.eye(19, dtype=np.float32)[:2, None].repeat(2, axis=1))
    pairs = Pairs(images=("a", "b"), image_of=np.array([0, 1]), captions=("colour1", "shape1"), features=features)
    assert len(go(pairs=pairs, warmup_epochs=1, rematching_epochs=1).metrics) == 2
