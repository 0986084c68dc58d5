from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2rm.data.mismatch import inject_mismatches, read_index, recognise_level, write_index
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError


def pairs_of(captions_of: list[int]) -> Pairs:
    """Pairs of images with so many captions each, their rows interleaved."""
    image_of = np.repeat(np.arange(len(captions_of)), captions_of)
    image_of = np.random.default_rng(0).permutation(image_of)
    return Pairs(
        images=tuple(map(str, range(len(captions_of)))),
        image_of=image_of,
        captions=tuple(f"caption {row}" for row in range(len(image_of))),
    )


def precomp(images: int, captions: int = 5) -> Pairs:
    return Pairs(
        images=tuple(map(str, range(images))),
        image_of=np.repeat(np.arange(images), captions),
        captions=tuple(map(str, range(images * captions))),
    )


@given(
    captions_of=st.lists(st.integers(1, 6), min_size=2, max_size=30), ratio=st.floats(0, 0.99), seed=st.integers(0, 99)
)
def test_image_level(captions_of, ratio, seed):
    pairs = pairs_of(captions_of)
    count = round(ratio * len(captions_of))
    if ratio > 0 and count < 2:
        with pytest.raises(InputError, match="raise it"):
            inject_mismatches(pairs, ratio=ratio, level="image", seed=seed)
        return
    noisy = inject_mismatches(pairs, ratio=ratio, level="image", seed=seed)
    given_to = {own: set(noisy.pairs.image_of[pairs.image_of == own]) for own in range(len(captions_of))}
    assert all(len(images) == 1 for images in given_to.values())  # all captions of an image go together
    assert sum(images != {own} for own, images in given_to.items()) == count  # the exact ratio, without fixed points
    assert sorted(min(images) for images in given_to.values()) == list(range(len(captions_of)))  # a permutation
    np.testing.assert_array_equal(noisy.pairs.true_image_of, pairs.image_of)
    np.testing.assert_array_equal(noisy.is_mismatched, noisy.pairs.is_mismatched)


@given(
    captions_of=st.lists(st.integers(1, 6), min_size=2, max_size=30), ratio=st.floats(0, 0.99), seed=st.integers(0, 99)
)
def test_caption_level(captions_of, ratio, seed):
    pairs = pairs_of(captions_of)
    count = round(ratio * len(pairs))
    feasible = sum(min(captions, count // 2) for captions in captions_of) >= count
    if ratio > 0 and (count < 2 or not feasible):
        with pytest.raises(InputError, match="ratio: "):
            inject_mismatches(pairs, ratio=ratio, level="caption", seed=seed)
        return
    noisy = inject_mismatches(pairs, ratio=ratio, level="caption", seed=seed)
    changed = noisy.pairs.image_of != pairs.image_of
    assert changed.sum() == count  # exactly so many, siblings of a caption counted as no change
    np.testing.assert_array_equal(noisy.is_mismatched, changed)
    assert Counter(noisy.pairs.image_of[changed]) == Counter(pairs.image_of[changed])


@given(sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)), seed=st.integers(0, 30))
def test_caption_level_up_to_the_last_feasible_ratio(sizes, seed):
    """Two images always have captions to exchange; the largest feasible number is reached for every seed."""
    rows = sum(sizes)
    feasible = [count for count in range(2, rows) if sum(min(size, count // 2) for size in sizes) >= count]
    for count in feasible[-1:]:
        noisy = inject_mismatches(pairs_of(list(sizes)), ratio=count / rows, level="caption", seed=seed)
        assert noisy.is_mismatched.sum() == count


def test_captions_of_one_image_cannot_exchange():
    with pytest.raises(InputError, match="too many belong to one of 2 images; lower the ratio"):
        inject_mismatches(pairs_of([9, 1]), ratio=0.5, level="caption", seed=0)


def test_every_caption_is_equally_likely_chosen_and_every_other_image_equally_likely_given():
    pairs = precomp(4, 2)
    table = np.zeros((8, 4))
    for seed in range(3000):
        noisy = inject_mismatches(pairs, ratio=0.5, level="caption", seed=seed)
        rows = np.flatnonzero(noisy.is_mismatched)
        table[rows, noisy.pairs.image_of[rows]] += 1
    expected = np.where(pairs.image_of[:, None] == np.arange(4), 0, 500)  # half of 3000, over the three other images
    np.testing.assert_allclose(table, expected, atol=110)  # five standard deviations


@pytest.mark.parametrize("level", ["image", "caption"])
def test_seeded(level):
    first, again, other = (
        inject_mismatches(precomp(50), ratio=0.4, level=level, seed=seed).pairs.image_of.tolist() for seed in (3, 3, 4)
    )
    assert first == again != other


def test_ratio_zero_changes_nothing():
    noisy = inject_mismatches(precomp(3), ratio=0, level="caption", seed=0)
    assert not noisy.is_mismatched.any()
    assert recognise_level(noisy.pairs) == "none"


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 40, float("nan")])
def test_ratio_outside_is_refused(ratio):
    with pytest.raises(InputError, match=r"ratio: .*; give"):
        inject_mismatches(precomp(5), ratio=ratio, level="image", seed=0)


def test_unknown_level_is_refused():
    with pytest.raises(InputError, match="level: 'pixel'"):
        inject_mismatches(precomp(5), ratio=0.4, level="pixel", seed=0)


def test_mismatching_twice_is_refused():
    noisy = inject_mismatches(precomp(5), ratio=0.4, level="image", seed=0)
    with pytest.raises(InputError, match="mismatched already"):
        inject_mismatches(noisy.pairs, ratio=0.4, level="image", seed=1)


@given(
    images=st.integers(4, 20),
    captions=st.integers(2, 5),
    seed=st.integers(0, 99),
    level=st.sampled_from(["image", "caption"]),
)
def test_index_file_round_trip(tmp_path_factory, images, captions, seed, level):
    pairs = precomp(images, captions)
    noisy = inject_mismatches(pairs, ratio=0.5, level=level, seed=seed)
    path = tmp_path_factory.mktemp("index") / "noise"  # a name without suffix stays as it is
    write_index(path, noisy)
    assert np.load(path).dtype == np.int64
    back = read_index(path, pairs)
    np.testing.assert_array_equal(back.pairs.image_of, noisy.pairs.image_of)
    np.testing.assert_array_equal(back.pairs.true_image_of, pairs.image_of)
    assert recognise_level(noisy.pairs) == back.level
    if level == "image":
        assert back.level == "image"
        assert back.ratio == round(0.5 * images) / images


def test_index_file_of_captions_is_recognised(tmp_path):
    pairs = precomp(20)
    np.save(tmp_path / "noise.npy", inject_mismatches(pairs, ratio=0.4, level="caption", seed=0).pairs.image_of)
    assert (lambda noisy: (noisy.level, noisy.ratio))(read_index(tmp_path / "noise.npy", pairs)) == ("caption", 0.4)


def test_index_file_of_images_is_repeated(tmp_path):
    np.save(tmp_path / "rcl.npy", np.array([2, 1, 0], dtype=np.int32))
    noisy = read_index(tmp_path / "rcl.npy", precomp(3, 2))
    assert noisy.pairs.image_of.tolist() == [2, 2, 1, 1, 0, 0]
    assert (noisy.level, noisy.ratio, noisy.seed) == ("image", 2 / 3, None)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ([0, 1, 2, 3], r"4 entries for 6 captions of 3 images"),
        ([0, 0, 1, 1, 2, 3], r"noise\.npy:entry 5 .*image 3, but pairs has images 0 to 2"),
        ([0, 0, 1, -1, 2, 2], r"noise\.npy:entry 3 .*image -1"),
        ([0.0, 0, 1, 1, 2, 2], r"float64 of shape \(6,\)"),
        ([[0, 0, 1, 1, 2, 2]], r"int64 of shape \(1, 6\)"),
    ],
)
def test_bad_index_files_are_refused(tmp_path, index, message):
    np.save(tmp_path / "noise.npy", np.array(index))
    with pytest.raises(InputError, match=message + ".*; "):
        read_index(tmp_path / "noise.npy", precomp(3, 2))


def test_an_entry_an_image_needs_equally_many_captions(tmp_path):
    np.save(tmp_path / "rcl.npy", np.array([1, 0]))
    with pytest.raises(InputError, match="2 entries for 3 captions"):
        read_index(tmp_path / "rcl.npy", pairs_of([1, 2]))


def test_level_of_unknown_truth_is_refused():
    with pytest.raises(InputError, match="not known"):
        recognise_level(precomp(3))


def test_level_where_true_images_are_gone():
    pairs = precomp(3, 2)
    for true_image_of, level in (([-1, -1, 1, 1, 2, 2], "image"), ([-1, 0, 1, 1, 2, 2], "caption")):
        columns = {"images": pairs.images, "image_of": pairs.image_of, "captions": pairs.captions}
        assert recognise_level(Pairs(**columns, true_image_of=np.array(true_image_of))) == level
