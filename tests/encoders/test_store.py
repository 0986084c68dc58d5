import errno
import os
from pathlib import Path

import numpy as np
import pytest

from l2rm.encoders import store as store_module
from l2rm.encoders.store import FeatureStore, stamp
from l2rm.errors import InputError

STAMPS = [bytes([i]) * 16 for i in range(40)]
ENTRIES = np.random.default_rng(0).normal(size=(40, 2, 3)).astype(np.float16)


def filled(path: Path, count: int) -> FeatureStore:
    store = FeatureStore(path, (2, 3))
    with store.writing():
        for start in range(0, count, 3):
            stop = min(start + 3, count)
            store.append(STAMPS[start:stop], ENTRIES[start:stop])
    return store


def test_any_order_and_subset_is_a_view(tmp_path: Path) -> None:
    filled(tmp_path / "a.npy", 12)
    asked = [7, 0, 11, 7]
    features = FeatureStore(tmp_path / "a.npy", (2, 3)).features([STAMPS[i] for i in asked])
    assert np.array_equal(features.batch(np.arange(4)).numpy(), ENTRIES[asked].astype(np.float32))
    assert isinstance(features.array, np.memmap)


def test_the_file_is_a_valid_array_after_every_append(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path / "a.npy", (2, 3))
    with store.writing():
        for i in range(40):
            mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
            store.append(STAMPS[i : i + 1], ENTRIES[i : i + 1])
            assert np.array_equal(mapped, ENTRIES[:i]), "what was mapped before stays as it was"
            assert np.array_equal(np.load(tmp_path / "a.npy"), ENTRIES[: i + 1])


def test_a_writer_killed_between_any_two_writes_loses_only_its_last_append(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    filled(path, 6)
    counted = path.read_bytes()
    for data, extra in ((b"", STAMPS[6]), (b"xy", b""), (b"x" * 12, STAMPS[6][:5]), (b"x" * 50, STAMPS[6] + b"1")):
        path.write_bytes(counted + data)
        stamps = path.with_suffix(".stamps")
        stamps.write_bytes(b"".join(STAMPS[:6]) + extra)

        resumed = FeatureStore(path, (2, 3))
        assert len(resumed) == 6
        assert STAMPS[6] not in resumed
        with resumed.writing():
            resumed.append(STAMPS[6:8], ENTRIES[6:8])

        assert np.array_equal(np.load(path), ENTRIES[:8])
        assert stamps.read_bytes() == b"".join(STAMPS[:8])


def test_what_another_process_stored_meanwhile_is_known_inside_writing(tmp_path: Path) -> None:
    late = FeatureStore(tmp_path / "a.npy", (2, 3))
    filled(tmp_path / "a.npy", 5)
    assert len(late) == 0
    with late.writing():
        assert len(late) == 5
        late.append(STAMPS[5:6], ENTRIES[5:6])
    assert np.array_equal(np.load(tmp_path / "a.npy"), ENTRIES[:6])


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    filled(path, 6)
    whole = path.read_bytes()
    for data in (whole[:-1], b"", b"not an array at all"):
        path.write_bytes(data)
        with pytest.raises(InputError, match=r"a\.npy: the cache of features is damaged .*delete this file"):
            FeatureStore(path, (2, 3))
    path.write_bytes(whole)
    with pytest.raises(InputError, match="damaged"):
        FeatureStore(path, (2, 4))
    path.with_suffix(".stamps").unlink()
    with pytest.raises(InputError, match="damaged"):
        FeatureStore(path, (2, 3))


def test_a_full_disk_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = filled(tmp_path / "a.npy", 3)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(store_module.os, "fsync", full)
    with pytest.raises(InputError, match=r"disk is full.*L2RM_CACHE"), store.writing():
        store.append(STAMPS[3:5], ENTRIES[3:5])
    monkeypatch.undo()
    assert np.array_equal(np.load(tmp_path / "a.npy"), ENTRIES[:3])
    assert len(FeatureStore(tmp_path / "a.npy", (2, 3))) == 3


def test_a_stamp_changes_with_path_size_and_time(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for path in (first, second):
        path.write_text("same")
        os.utime(path, ns=(10, 10))
    stamps = {stamp(first), stamp(second)}
    os.utime(first, ns=(11, 11))
    stamps.add(stamp(first))
    first.write_text("other")
    os.utime(first, ns=(10, 10))
    stamps.add(stamp(first))
    assert len(stamps) == 4
    os.utime(second, ns=(10, 10))
    assert stamp(second) in stamps


def test_a_writer_killed_before_the_first_header_leaves_no_cache(tmp_path, monkeypatch):
    path = tmp_path / "a.npy"

    def killed(*what):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(store_module.npy, "write_array_header_1_0", killed)
        with pytest.raises(KeyboardInterrupt), FeatureStore(path, (2, 3)).writing():
            pass
    assert not path.exists()
    assert len(filled(path, 3)) == 3
    assert [one.name for one in tmp_path.iterdir() if one.suffix == ".part"] == []
