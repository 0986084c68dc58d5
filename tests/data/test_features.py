import json
import pickle
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from l2rm.data import features as module
from l2rm.data.features import Features
from l2rm.errors import InputError
from l2rm.files import cache_folder


def saved(path, array):
    np.save(path, array)
    return path


@given(
    array=hnp.arrays(np.float32, (7, 2, 3), elements=st.floats(-9, 9, width=32)),
    first=st.lists(st.integers(0, 6), min_size=1, max_size=9),
    data=st.data(),
)
def test_views_compose(array, first, data):
    second = data.draw(st.lists(st.integers(0, len(first) - 1), min_size=1))
    asked = data.draw(st.lists(st.integers(0, len(second) - 1)))
    view = Features(array=array).take(first).take(second)
    assert view.shape == (len(second), 2, 3)
    expected = array[first][second][np.array(asked, dtype=int)]
    np.testing.assert_array_equal(view.batch(np.array(asked, dtype=int)).numpy(), expected)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_batch_of_a_file_is_float32_in_the_order_asked(tmp_path, dtype):
    array = np.random.default_rng(0).normal(size=(6, 4)).astype(dtype)
    features = Features.open(saved(tmp_path / "x.npy", array))
    batch = features.batch(np.array([5, 0, 5, 3]))
    assert batch.dtype == torch.float32
    np.testing.assert_array_equal(batch.numpy(), array[[5, 0, 5, 3]].astype(np.float32))
    assert (features.regions, features.dim, len(features)) == (None, 4, 6)


@pytest.mark.parametrize("name", ["x_scale.npy", "scale.npy"])
def test_int8_is_dequantised(tmp_path, name):
    array = np.arange(-6, 6, dtype=np.int8).reshape(2, 2, 3)
    scale = np.array([0.5, 1, 2], dtype=np.float32)
    np.save(tmp_path / name, scale)
    features = Features.open(saved(tmp_path / "x.npy", array))
    features.check()
    np.testing.assert_array_equal(features.batch(np.array([1, 0])).numpy(), array[[1, 0]] * scale)
    assert (features.regions, features.dim) == (2, 3)


def test_only_the_asked_rows_are_read(tmp_path):
    """A sparse file of 64 GB: reading it whole would take more memory and time than there is."""
    shape = (1_000_000, 16_000)
    path = tmp_path / "huge.npy"
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        file.truncate(file.tell() + 4 * shape[0] * shape[1])
    features = Features.open(path).take(slice(None, None, 5))
    assert len(features) == 200_000
    assert not features.batch(np.array([199_999, 0])).any()


def test_check_names_the_first_bad_row(tmp_path, monkeypatch):
    array = np.zeros((50, 2, 3), dtype=np.float16)
    array[31, 1, 2], array[40, 0, 0] = np.nan, np.inf
    monkeypatch.setattr(module, "CHUNK_BYTES", array[:4].nbytes)
    features = Features.open(saved(tmp_path / "x.npy", array))
    for _ in range(2):  # a failure is not remembered as passed
        with pytest.raises(InputError, match=r"x\.npy: row 31 \(from 0\).*; "):
            features.check()


def test_check_reads_a_file_once_while_it_stays_the_same(tmp_path, monkeypatch):
    path = saved(tmp_path / "x.npy", np.zeros((9, 3), dtype=np.float32))
    features = Features.open(path)
    features.check()
    assert str(path) in json.loads((cache_folder() / "checked.json").read_text())
    with monkeypatch.context() as patched:
        patched.setattr(Features, "_all_finite", lambda self: pytest.fail("read again"))
        Features.open(path).check()
    saved(path, np.full((9, 4), np.inf, dtype=np.float32))
    with pytest.raises(InputError, match="row 0"):
        Features.open(path).check()


def test_check_of_an_array_in_memory():
    Features(array=np.zeros((2, 2))).check()
    with pytest.raises(InputError, match="row 1"):
        Features(array=np.array([[0, 1], [np.nan, 0]])).check()


@given(groups=st.integers(1, 9), times=st.integers(2, 5), spoilt=st.integers(-1, 40), rows=st.integers(1, 7))
def test_repeats(groups, times, spoilt, rows):
    array = np.repeat(np.arange(groups, dtype=np.float32)[:, None] + [0, 0.5], times, axis=0)
    if 0 <= spoilt < len(array):
        array[spoilt, 1] = -1
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "CHUNK_BYTES", array[:rows].nbytes)
        assert Features(array=array).repeats(times) == (not 0 <= spoilt < len(array))


def test_repeats_needs_whole_runs():
    assert not Features(array=np.zeros((7, 2))).repeats(5)


def bad_files(folder):
    array = np.arange(12, dtype=np.float32).reshape(4, 3)
    path = folder / "whole.npy"
    np.save(path, array)
    content = path.read_bytes()
    (folder / "truncated.npy").write_bytes(content[:-1])
    (folder / "header.npy").write_bytes(content[:20])
    (folder / "empty.npy").write_bytes(b"")
    (folder / "text.npy").write_text("not an array")
    (folder / "zip.npy").write_bytes(b"PK\x03\x04 broken")
    (folder / "pickle.npy").write_bytes(pickle.dumps(array))
    np.save(folder / "objects.npy", np.array([{"a": 1}, None]), allow_pickle=True)
    with zipfile.ZipFile(folder / "archive.npy", "w") as archive:
        archive.write(path, "a.npy")
    np.save(folder / "flat.npy", array[0])
    np.save(folder / "int64.npy", array.astype(np.int64))
    np.save(folder / "unscaled.npy", array.astype(np.int8))
    (folder / "folder.npy").mkdir()


@pytest.mark.parametrize(
    "name",
    [
        *("truncated", "header", "empty", "text", "zip", "pickle", "objects"),
        *("archive", "flat", "int64", "unscaled", "folder", "missing"),
    ],
)
def test_open_refuses_in_one_line(tmp_path, name):
    bad_files(tmp_path)
    with pytest.raises(InputError, match=rf"{name}\.npy: .+; .+") as caught:
        Features.open(tmp_path / f"{name}.npy")
    assert "\n" not in str(caught.value)


def test_a_pickle_is_never_executed(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "executed"), "w"))

    np.save(tmp_path / "bomb.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    (tmp_path / "bare.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.npy", "bare.npy"):
        with pytest.raises(InputError):
            Features.open(tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_a_broken_scale_is_refused(tmp_path):
    path = saved(tmp_path / "x.npy", np.zeros((2, 3), dtype=np.int8))
    for scale in (np.ones(2), np.array([1, np.nan, 1])):
        np.save(tmp_path / "scale.npy", scale)
        with pytest.raises(InputError, match=r"x\.npy: .*scale.*; "):
            Features.open(path)
