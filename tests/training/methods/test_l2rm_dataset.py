"""Suspects of the whole data set find their own images again, and teach with them."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from l2rm.data.batches import Batches
from l2rm.data.mismatch import inject_mismatches
from l2rm.data.vocabulary import Vocabulary
from l2rm.errors import InputError
from l2rm.evaluation.detection import measure_detection
from l2rm.similarity.model import build_model
from l2rm.training import crossfit, suspects
from l2rm.training.crossfit import recognise_evidence, together
from l2rm.training.methods.l2rm_dataset import RematchDataset
from l2rm.training.train import data_shape
from l2rm.training.trainer import Trainer
from l2rm.training.wording import WordedScores

SETTINGS = {
    "scope": "dataset",
    "folds": 2,
    "fold_rounds": 2,
    "evidence": "auto",
    "take": "weight",
    "rematch_weight": 0.5,
}


@pytest.fixture
def lessons(monkeypatch):
    """(epoch, lesson) of every epoch of rematching from now on."""
    given, repaired = [], RematchDataset.repaired

    def watched(self):
        lesson = repaired(self)
        given.append(lesson)
        return lesson

    monkeypatch.setattr(RematchDataset, "repaired", watched)
    return given


def test_suspects_find_their_own_images_and_teach_with_them(small, lessons, tmp_path):
    pairs = small.small_train()
    config = small.small_config(rematching=SETTINGS)
    run = small.train(pairs, small.small_dev(), config, tmp_path / "run", progress=False)
    assert [line["stage"] for line in run.metrics] == ["warm-up"] * 3 + ["rematching"] * 3
    assert [line["steps"] for line in run.metrics] == [12] * 6
    wrong, probability = pairs.is_mismatched, run.match_probability(pairs)
    assert measure_detection(probability, wrong).auroc > 0.9
    plans = [line["division"].get("plan") for line in run.metrics]
    assert plans[:3] == [None] * 3
    assert plans[3] == plans[4] != plans[5]  # every second epoch
    assert plans[5]["converged"]
    assert plans[5]["hit1"] > 0.3  # of 90 kinds of images, two a kind

    for lesson in lessons:
        first = lesson.images == pairs.image_of[lesson.rows]
        np.testing.assert_allclose(lesson.weights[first], probability[lesson.rows[first]], atol=1e-6)
        moved = lesson.rows[~first]
        assert (probability[moved] <= 0.5).all()
        np.testing.assert_allclose(lesson.weights[~first], 0.5 * (1 - probability[moved]), atol=1e-6)


def test_it_resumes_to_the_same_weights(small, monkeypatch, tmp_path):
    def go(folder):
        config = small.small_config(warmup_epochs=1, rematching=SETTINGS | {"fold_rounds": 1}, save_seconds=0.0)
        return small.train(
            small.small_train(), small.small_dev(), config, tmp_path / folder, resume=True, progress=False
        )

    whole = go("whole")
    learn, steps = Trainer._learn, []

    def stopped(self, epoch, *batches):
        steps.append(epoch)
        if len(steps) == 30:  # amid the third epoch, after the first plan
            raise KeyboardInterrupt
        learn(self, epoch, *batches)

    monkeypatch.setattr(Trainer, "_learn", stopped)
    with pytest.raises(KeyboardInterrupt):
        go("parts")
    monkeypatch.setattr(Trainer, "_learn", learn)
    again = go("parts")
    for name in ("model.safetensors", "pairs.parquet"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes(), name


@pytest.mark.parametrize(("level", "evidence"), [("image", "image"), ("caption", "pair")])
def test_the_level_is_read_off_the_pairs(small, level, evidence):
    pairs = inject_mismatches(small.small_pairs(360, seed=1), ratio=0.4, level=level, seed=0).pairs
    config = small.small_config(rematching=SETTINGS)
    vocabulary = Vocabulary.build(pairs.captions, min_count=1)
    torch.manual_seed(0)
    model = build_model(config.model, data_shape(pairs, vocabulary))
    model.vocabulary = vocabulary
    found, correlation = recognise_evidence(model, Batches(pairs, vocabulary, torch.device("cpu")), config)
    assert found == evidence, correlation


@pytest.mark.parametrize(("level", "evidence"), [("image", "image"), ("caption", "pair")])
def test_words_count_where_captions_go_astray_one_by_one(small, monkeypatch, level, evidence, tmp_path):
    asked = []

    class Watched(WordedScores):
        def __init__(self, *given, **options):
            asked.append((given[3].copy(), options))
            super().__init__(*given, **options)

    monkeypatch.setattr(crossfit, "WordedScores", Watched)
    monkeypatch.setattr(suspects, "WordedScores", Watched)
    pairs = inject_mismatches(small.small_pairs(360, seed=1), ratio=0.4, level=level, seed=0).pairs
    config = small.small_config(rematching_epochs=1, rematching=SETTINGS | {"wording": 0.3})
    run = small.train(pairs, small.small_dev(), config, tmp_path / "run", progress=False)
    assert run.evidence == evidence
    if evidence == "image":
        assert asked == []
        return
    *folds, (trust, of_plan) = asked
    assert [(options["strength"], bool((trust == 1).all())) for trust, options in folds] == [(0.3, True)] * 2 + [
        (0.3, False)
    ] * 2
    assert of_plan["strength"] == 0.3
    np.testing.assert_allclose(trust, run.match_probability(pairs), atol=1e-6)


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.8])
def test_together_is_the_correlation_within_images(correlation):
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 6, 4000)
    image_of = np.repeat(np.arange(4000), sizes)
    shared, own = rng.normal(size=4000)[image_of], rng.normal(size=len(image_of))
    z = np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own
    assert together(torch.from_numpy(norm.cdf(z)), image_of) == pytest.approx(correlation, abs=0.03)


def test_where_no_image_is_given_two_captions_nothing_goes_together():
    assert together(torch.rand(20), np.arange(20)) == 0.0


def test_auto_needs_folds(small, tmp_path):
    config = small.small_config(rematching={"scope": "dataset", "evidence": "auto"})
    with pytest.raises(InputError, match=r"rematching\.evidence: auto"):
        small.train(small.small_train(), small.small_dev(), config, tmp_path / "run", progress=False)
