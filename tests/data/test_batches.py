"""Rows of pairs as tensors, and the batches that they fall into."""

import threading
from collections import Counter
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from l2rm.data.batches import Batches, ahead, cycled, shuffled
from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import Vocabulary
from l2rm.errors import InputError

sizes = st.tuples(st.integers(0, 60), st.integers(1, 20), st.integers(0, 99))


def make_pairs(**more):
    features = np.arange(3 * 2 * 4, dtype=np.float32).reshape(3, 2, 4)
    return Pairs(
        images=("a", "b", "c"),
        image_of=np.array([0, 0, 1, 2]),
        captions=("red", "a red kite", "blue", "a blue kite and a red one"),
        features=Features(array=features),
        source="kites.csv",
        **more,
    )


def test_words_are_padded_to_the_longest_of_the_batch():
    pairs = make_pairs()
    vocabulary = Vocabulary.build(pairs.captions, min_count=1)
    batch = Batches(pairs, vocabulary).batch(np.array([3, 0, 1]))
    expected = [vocabulary.encode(pairs.captions[row]) for row in (3, 0, 1)]
    assert batch.lengths.tolist() == [len(caption) for caption in expected] == [9, 3, 5]
    assert batch.captions.tolist() == [caption + [0] * (9 - len(caption)) for caption in expected]
    assert batch.captions.dtype == torch.int64
    assert batch.image_ids.tolist() == [2, 0, 0]
    assert batch.rows.tolist() == [3, 0, 1]
    assert len(batch) == 3
    for image, features in zip((2, 0, 0), batch.images, strict=True):
        assert features.tolist() == (np.arange(8).reshape(2, 4) + 8 * image).tolist()


def test_embeddings_come_as_they_are():
    embeddings = np.arange(8, dtype=np.float16).reshape(4, 2)
    batch = Batches(make_pairs(caption_features=Features(array=embeddings)), None).batch(np.array([2, 0]))
    assert batch.captions.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert batch.captions.dtype == torch.float32
    assert batch.lengths is None


def test_what_is_missing_is_named():
    pairs = make_pairs()
    with pytest.raises(InputError, match=r"kites\.csv: captions are words, but there is no vocabulary"):
        Batches(pairs, None)
    without = Pairs(images=("a",), image_of=np.array([0]), captions=("red",), source="kites.csv")
    with pytest.raises(InputError, match=r"kites\.csv: no image features"):
        Batches(without, Vocabulary.build(["red"], min_count=1))


@given(sizes=sizes)
def test_shuffled_batches_cover_every_row_once(sizes):
    count, size, seed = sizes
    rows = np.arange(count) * 3 + 1
    batches = shuffled(rows, size, seed=(seed,), drop_last=False)
    assert sorted(row for batch in batches for row in batch) == rows.tolist()
    assert all(len(batch) == size for batch in batches[:-1])
    assert all(1 <= len(batch) <= size for batch in batches)


@given(sizes=sizes)
def test_the_last_smaller_batch_is_dropped_unless_it_is_the_only_one(sizes):
    count, size, seed = sizes
    kept, whole = (shuffled(np.arange(count), size, seed=(seed,), drop_last=drop) for drop in (True, False))
    lengths = [len(batch) for batch in kept]
    assert lengths == ([size] * (count // size) if count >= size else [count] if count else [])
    assert all(np.array_equal(one, other) for one, other in zip(kept, whole, strict=False))


def test_seed_decides_the_order():
    first, again, other = (shuffled(np.arange(50), 10, seed=seed) for seed in ((1, 2), (1, 2), (1, 3)))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@given(sizes=sizes.filter(lambda sizes: sizes[0] > 0))
def test_cycled_passes_go_on_for_ever_each_in_another_order(sizes):
    count, size, seed = sizes
    a_pass = max(1, count // size)
    batches = list(islice(cycled(np.arange(count), size, seed=(seed,)), 3 * a_pass))
    again = list(islice(cycled(np.arange(count), size, seed=(seed,)), 3 * a_pass))
    assert all(np.array_equal(one, other) for one, other in zip(batches, again, strict=True))
    for turn in range(3):
        rows = Counter(row for batch in batches[turn * a_pass : (turn + 1) * a_pass] for row in batch.tolist())
        assert max(rows.values()) == 1
        assert len(rows) == (a_pass * size if count >= size else count)
    if count >= 20:
        first, second = (np.concatenate(batches[turn * a_pass : (turn + 1) * a_pass]) for turn in range(2))
        assert not np.array_equal(first, second)


def test_nothing_cannot_be_cycled():
    with pytest.raises(ValueError, match="no rows"):
        cycled(np.arange(0), 4, seed=(0,))


# ----------------------------------------------------------------------------------------------------------- ahead


def ahead_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("l2rm-ahead")]


@given(items=st.lists(st.integers(), max_size=9))
def test_results_come_in_the_order_of_the_items(items):
    with ahead(lambda item: 3 * item, iter(items)) as results:
        assert list(results) == [3 * item for item in items]
    assert not ahead_threads()


def test_the_next_one_is_worked_on_while_one_is_in_use_and_no_further_one():
    began = [threading.Event() for _ in range(4)]
    caller, takers = threading.current_thread(), []

    def items():
        for item in range(4):
            takers.append(threading.current_thread())
            yield item

    def work(item):
        began[item].set()
        return threading.current_thread()

    with ahead(work, items()) as results:
        for item, worker in enumerate(results):
            assert worker is not caller
            assert item == 3 or began[item + 1].wait(timeout=60)
            assert not any(later.is_set() for later in began[item + 2 :])
    assert takers == [caller] * 4


def test_an_error_comes_when_its_result_is_due():
    def work(item):
        if item == 2:
            raise OSError("the disk is gone")
        return item

    seen = []
    with ahead(work, range(5)) as results, pytest.raises(OSError, match="the disk is gone"):
        seen.extend(results)
    assert seen == [0, 1]
    assert not ahead_threads()


def test_no_thread_is_left_behind_by_whoever_stops_in_the_middle():
    with ahead(str, range(5)) as results:
        assert next(results) == "0"
        assert ahead_threads()
    assert not ahead_threads()
    with pytest.raises(KeyError), ahead(str, range(5)) as results:
        {}[next(results)]
    assert not ahead_threads()
