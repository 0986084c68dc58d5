import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.errors import InputError


def pairs_of(image_of: list[int], n_images: int | None = None, **columns: object) -> Pairs:
    n_images = max(image_of) + 1 if n_images is None else n_images
    return Pairs(
        images=tuple(f"{image}.png" for image in range(n_images)),
        image_of=np.array(image_of),
        captions=tuple(f"caption {row}" for row in range(len(image_of))),
        **columns,  # type: ignore[arg-type]
    )


def test_take_keeps_what_belongs_together():
    features = Features(array=np.arange(8, dtype=np.float32).reshape(4, 2))
    embeddings = Features(array=np.arange(5, dtype=np.float32).reshape(5, 1))
    pairs = pairs_of(
        [0, 1, 3, 3, 2],
        splits=("a", "b", "c", "d", "e"),
        true_image_of=np.array([0, 3, 1, -1, 2]),
        features=features,
        caption_features=embeddings,
    )
    part = pairs.take([3, 1])
    assert part.images == ("1.png", "3.png")
    assert part.image_of.tolist() == [1, 0]
    assert part.captions == ("caption 3", "caption 1")
    assert part.pair_ids == ("3", "1")
    assert part.splits == ("d", "b")
    assert part.true_image_of.tolist() == [-1, 1]
    assert part.features.batch(np.arange(2)).tolist() == [[2, 3], [6, 7]]
    assert part.caption_features.batch(np.arange(2)).tolist() == [[3], [1]]


def test_take_forgets_a_true_image_that_no_row_uses():
    part = pairs_of([0, 1, 2], true_image_of=np.array([1, 0, 2])).take([0, 2])
    assert part.true_image_of.tolist() == [-1, 1]
    assert part.is_mismatched.tolist() == [True, False]


def test_take_accepts_masks_and_slices():
    pairs = pairs_of([0, 0, 1])
    assert pairs.take(np.array([False, True, True])).pair_ids == ("1", "2")
    assert pairs.take(slice(1)).pair_ids == ("0",)


@given(
    image_of=st.lists(st.integers(0, 30), min_size=1, max_size=80),
    dev=st.one_of(st.integers(0, 5), st.floats(0, 0.4)),
    test=st.one_of(st.integers(0, 5), st.floats(0, 0.4)),
    seed=st.integers(0, 99),
)
def test_split_never_separates_an_image_and_loses_nothing(image_of, dev, test, seed):
    used = {image: place for place, image in enumerate(dict.fromkeys(image_of))}
    pairs = pairs_of([used[image] for image in image_of])
    asked = [size if isinstance(size, int) else bool(size) * max(1, round(size * len(used))) for size in (dev, test)]
    if sum(asked) >= len(used):
        with pytest.raises(InputError, match="make them smaller"):
            pairs.split(dev=dev, test=test, seed=seed)
        return
    parts = pairs.split(dev=dev, test=test, seed=seed)
    images = [set(part.images) for part in parts]
    assert [len(part) for part in images[1:]] == asked
    assert set.union(*images) == set(pairs.images)
    assert sum(map(len, images)) == pairs.n_images
    assert sorted(int(row) for part in parts for row in part.pair_ids) == list(range(len(pairs)))
    again = pairs.split(dev=dev, test=test, seed=seed)
    assert [part.pair_ids for part in parts] == [part.pair_ids for part in again]


def test_split_depends_on_the_seed():
    pairs = pairs_of(list(range(40)))
    assert pairs.split(dev=5, test=5, seed=0)[1].images != pairs.split(dev=5, test=5, seed=1)[1].images


@pytest.mark.parametrize(("dev", "test"), [(-1, 1), (1.0, 1), (1, -0.1), (2, 1)])
def test_split_refuses(dev, test):
    with pytest.raises(InputError, match=r"^pairs: "):
        pairs_of([0, 1, 2]).split(dev=dev, test=test, seed=0)


@pytest.mark.parametrize(
    "columns",
    [
        {"pair_ids": ("a", "a", "b")},
        {"pair_ids": ("a",)},
        {"splits": ("train",)},
        {"true_image_of": np.array([0, 1, 2])},
        {"true_image_of": np.array([0, 1, -2])},
        {"features": Features(array=np.zeros((3, 2), dtype=np.float32))},
        {"caption_features": Features(array=np.zeros((2, 2), dtype=np.float32))},
    ],
)
def test_columns_must_fit(columns):
    with pytest.raises(InputError, match=r"^pairs: "):
        pairs_of([0, 0, 1], **columns)


def test_image_path():
    assert pairs_of([0]).image_path(0) is None
    assert pairs_of([0], image_root=Path("/data/images")).image_path(0) == Path("/data/images/0.png")
    assert pairs_of([0], image_root=Path("images")).image_path(0) == Path.cwd() / "images" / "0.png"


def test_the_data_room_does_not_import_torch():
    rooms = "l2rm.data.formats, l2rm.data.mismatch, l2rm.data.vocabulary"
    subprocess.run([sys.executable, "-c", f"import sys, {rooms}; sys.exit('torch' in sys.modules)"], check=True)
