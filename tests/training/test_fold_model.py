"""Models that judge a fold: what they are taught, and that suspects with partners are among it."""

import numpy as np
import pytest
import torch

from l2rm.data.batches import Batches
from l2rm.data.vocabulary import Vocabulary
from l2rm.errors import InputError
from l2rm.similarity.model import build_model
from l2rm.training import fold_model as module
from l2rm.training.fold_model import fold_model, repaired
from l2rm.training.lesson import Lesson
from l2rm.training.suspects import with_partners
from l2rm.training.train import data_shape

SETTINGS = {"folds": 2, "fold_rematching_epochs": 2, "evidence": "pair", "rematch_weight": 0.5}


@pytest.fixture
def taught(small):
    """Batches, a template and a configuration of the small set."""
    pairs, config = small.small_train(), small.small_config(rematching=SETTINGS)
    vocabulary = Vocabulary.build(pairs.captions, min_count=1)
    model = build_model(config.model, data_shape(pairs, vocabulary))
    model.vocabulary = vocabulary
    return Batches(pairs, vocabulary), model, config


def test_suspects_are_given_images_of_the_same_pairs_and_others_than_their_own(taught):
    batches, template, config = taught
    pairs = batches.pairs
    rows = np.flatnonzero(pairs.image_of % 3 != 1)
    rng = np.random.default_rng(0)
    p = np.where(pairs.is_mismatched, 0.02, 0.97).astype(np.float32) + rng.uniform(0, 0.01, len(pairs)).astype("f4")
    judge = fold_model(template, batches, rows[p[rows] > 0.5], config, seed=(1, 2))
    lesson = repaired(batches, rows, p, config, None, lambda: None, judge)
    own = lesson.images == pairs.image_of[lesson.rows]
    assert lesson.rows[own].tolist() == rows.tolist()
    assert np.allclose(lesson.weights[own], p[rows])
    suspects = rows[p[rows] < 0.5]
    assert set(lesson.rows[~own]) <= set(suspects)
    assert (~own).sum() > 0.8 * len(suspects)
    assert np.allclose(lesson.weights[~own], 0.5 * (1 - p[lesson.rows[~own]]))
    assert set(lesson.images) <= set(pairs.image_of[rows])
    there = np.isin(pairs.true_image_of[lesson.rows], pairs.image_of[rows])  # whose right image is to be found at all
    right = (lesson.images == pairs.true_image_of[lesson.rows])[~own & there].mean()
    assert right > 10 / len(set(pairs.image_of[rows]))


def test_what_is_repaired_is_drawn_by_its_weights_anew_each_epoch(taught, monkeypatch):
    batches, template, config = taught
    learned, read = [], Lesson.read

    def watched(self, batches):
        learned.append(self)
        return read(self, batches)

    monkeypatch.setattr(Lesson, "read", watched)
    rows = np.arange(240)
    weights = np.where(rows < 120, 1.0, np.where(rows < 200, 0.25, 0.0)).astype(np.float32)
    images = batches.pairs.image_of[::-1][rows].copy()
    asked = []

    def repair(model):
        asked.append([len(learned), model.training])
        return Lesson(rows=rows, images=images, weights=weights)

    judge = fold_model(template, batches, np.arange(240), config, seed=(3,), repair=repair)
    warm_up = config.warmup_epochs * (240 // config.batch_size)
    assert [count for count, _ in asked] == [warm_up]
    assert not judge.training
    later = learned[warm_up:]
    for lesson in later:
        assert lesson.weights is None
        assert np.array_equal(lesson.images, images[lesson.rows])
        assert (lesson.rows < 200).all()
    half = len(later) // 2
    first, second = (set(np.concatenate([x.rows for x in part]).tolist()) for part in (later[:half], later[half:]))
    assert first != second
    for drawn in (first, second):  # a smaller last batch of each epoch is left out
        assert len(drawn & set(range(120))) > 120 - config.batch_size
        assert len(drawn & set(range(120, 200))) < 40


def test_torch_is_left_as_it_was_and_the_seed_decides(taught):
    batches, template, config = taught
    weights = {name: value.clone() for name, value in template.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)

    def judge(seed):
        lesson = Lesson(
            rows=np.arange(100), images=batches.pairs.image_of[:100], weights=np.full(100, 0.5, dtype=np.float32)
        )
        made = fold_model(template, batches, np.arange(200), config, seed=seed, repair=lambda model: lesson)
        return torch.cat([parameter.flatten() for parameter in made.parameters()])

    first = judge((1,))
    assert torch.equal(torch.rand(2), expected)
    assert torch.equal(first, judge((1,)))
    assert not torch.equal(first, judge((2,)))
    assert all(torch.equal(value, weights[name]) for name, value in template.state_dict().items())


def test_it_can_be_stopped(taught):
    batches, template, config = taught

    def stop():
        raise InputError("enough")

    with pytest.raises(InputError, match="enough"):
        fold_model(template, batches, np.arange(100), config, seed=(1,), stop=stop)


def test_words_of_the_same_pairs_are_asked(taught, monkeypatch):
    batches, template, config = taught
    asked = []

    def watched(scores, pairs, probability, config, evidence, words):
        asked.append((len(pairs), probability.tolist(), evidence, words))
        return module_partners(scores, pairs, probability, config, evidence, None)

    module_partners = module.partners_of_suspects
    monkeypatch.setattr(module, "partners_of_suspects", watched)
    rows, words = np.arange(0, 360, 2), np.arange(360)[:, None]
    p = np.linspace(0, 1, 360).astype(np.float32)
    repaired(batches, rows, p, config, words, lambda: None, template)
    ((count, probability, evidence, some),) = asked
    assert (count, evidence) == (180, "pair")
    assert probability == p[rows].tolist()
    assert some[:, 0].tolist() == rows.tolist()


def test_a_row_may_teach_with_both_images():
    lesson = with_partners(
        np.array([4, 7, 9]),
        np.array([0, 1, 2]),
        np.array([0.3, 0, 1], dtype=np.float32),
        np.array([5, 6, -1]),
        np.array([0.35, 0.5, 0], dtype=np.float32),
    )
    assert lesson.rows.tolist() == [4, 9, 4, 7]
    assert lesson.images.tolist() == [0, 2, 5, 6]
    assert lesson.weights.tolist() == pytest.approx([0.3, 1, 0.35, 0.5])
