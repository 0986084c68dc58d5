"""Captions, images and weights stay together, in the order of batches of rows."""

from itertools import islice

import numpy as np
import pytest
import torch

from l2rm.data.batches import Batches, cycled, shuffled
from l2rm.data.vocabulary import Vocabulary
from l2rm.training.lesson import Lesson


@pytest.fixture
def lesson():
    rows = np.random.default_rng(0).permutation(50)[:23]
    return Lesson(rows=rows, images=1000 + rows, weights=(rows / 100).astype(np.float32))


def test_one_pass_has_the_batches_that_the_rows_alone_would_have(lesson):
    batches = lesson.batches(5, seed=(1, 2))
    assert [batch.rows.tolist() for batch in batches] == [b.tolist() for b in shuffled(lesson.rows, 5, seed=(1, 2))]
    for batch in batches:
        assert (batch.images == 1000 + batch.rows).all()
        np.testing.assert_allclose(batch.weights, batch.rows / 100, rtol=1e-6)


def test_cycled_batches_too_and_as_many_steps_as_asked_for(lesson):
    expected = [rows.tolist() for rows in islice(cycled(lesson.rows, 5, seed=(3,)), 11)]
    assert [batch.rows.tolist() for batch in islice(lesson.cycled(5, seed=(3,)), 11)] == expected
    assert [batch.rows.tolist() for batch in lesson.steps(5, 11, seed=(3,))] == expected


def test_read_with_the_images_of_the_lesson_or_those_given(small):
    pairs = small.small_train(20)
    batches = Batches(pairs, Vocabulary.build(pairs.captions, min_count=1))
    rows = np.array([4, 4, 9])
    given = Lesson(rows=rows).read(batches)
    assert given.image_ids.tolist() == pairs.image_of[rows].tolist()
    assert given.weights is None
    other = Lesson(rows=rows, images=np.array([1, 7, 2]), weights=np.array([1, 0.5, 0], np.float32)).read(batches)
    assert other.image_ids.tolist() == [1, 7, 2]
    assert torch.equal(other.images, torch.from_numpy(pairs.features.array[[1, 7, 2]]))
    assert torch.equal(other.captions, given.captions)
    assert other.weights.tolist() == [1, 0.5, 0]


def test_columns_of_another_length_are_refused():
    with pytest.raises(ValueError, match="2 images for 3 rows"):
        Lesson(rows=np.arange(3), images=np.arange(2))
