"""Features once computed are kept: a .npy file that grows, and beside it whose features its entries are."""

import errno
import hashlib
import math
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from l2rm.data.features import Features
from l2rm.data.packed import file_state
from l2rm.errors import InputError

_STAMP = 16  # bytes
_DTYPE = np.dtype("<f2")


def stamp(path: Path) -> bytes:
    """What tells this state of a file from any other: a digest of its path, size and time (not of its content).

    Raises:
        OSError: the file is not there.
    """
    state = file_state(path)
    return hashlib.sha256(f"{path}\0{state.st_size}\0{state.st_mtime_ns}".encode()).digest()[:_STAMP]


class FeatureStore:
    """A float16 array (N, *entry_shape) in `path` that grows, and in `path` with suffix .stamps one stamp an entry.

    Entries are only ever appended, and the array's header counts an entry only when it and its stamp are on the disk.
    So the file is a valid .npy at any moment, what is mapped of it never changes, a killed writer loses at most its
    last `append`, and any subset of the images, in any order, is a view.

    Args:
        path: the .npy file; it need not exist.
        entry_shape: (R, D), or (D,).

    Raises:
        InputError: the file is there but not such an array.

    Example:
        >>> import tempfile
        >>> store = FeatureStore(Path(tempfile.mkdtemp()) / "mine.npy", (1, 2))
        >>> with store.writing():
        ...     store.append([b"a" * 16, b"b" * 16], np.array([[[1, 2]], [[3, 4]]]))
        >>> store.features([b"b" * 16]).batch(np.array([0])).tolist()
        [[[3.0, 4.0]]]
    """

    def __init__(self, path: Path, entry_shape: tuple[int, ...]) -> None:
        self.path = path
        self.entry_shape = entry_shape
        self._stamps_path = path.with_suffix(".stamps")
        self._entry_of: dict[bytes, int] = {}
        self._count = 0
        self._header_bytes = 0
        self._load()

    def __len__(self) -> int:
        return self._count

    def __contains__(self, stamp: bytes) -> bool:
        return stamp in self._entry_of

    def features(self, stamps: Sequence[bytes]) -> Features:
        """The entries with these stamps, in this order, memory-mapped."""
        index = np.array([self._entry_of[stamp] for stamp in stamps], dtype=np.int64)
        return Features.open(self.path).take(index)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """The block in which `append` may be called: one process at a time, the others wait.

        What another process has stored while this one waited is known inside the block.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _alone(self.path.with_suffix(".lock")), _disk_full_told(self.path):
            self._load()
            if not self.path.exists():
                begun = self.path.with_name(f"{self.path.name}.part")  # a file has its name once it is whole
                with begun.open("wb") as file:
                    npy.write_array_header_1_0(file, self._header(0))
                begun.replace(self.path)
                self._load()
            # What a killed writer stored but did not count any more is written anew.
            os.truncate(self.path, self._header_bytes + len(self) * self._entry_bytes)
            self._stamps_path.touch()
            os.truncate(self._stamps_path, len(self) * _STAMP)
            yield

    def append(self, stamps: Sequence[bytes], entries: NDArray[np.floating]) -> None:
        """Store entries (n, *entry_shape) under n new stamps; only inside `writing`."""
        if entries.shape != (len(stamps), *self.entry_shape):
            raise ValueError(f"entries of shape {entries.shape} for {len(stamps)} stamps of {self.entry_shape}")
        with self.path.open("r+b") as file, self._stamps_path.open("ab") as stamps_file:
            file.seek(0, os.SEEK_END)
            file.write(np.ascontiguousarray(entries, dtype=_DTYPE).tobytes())
            stamps_file.write(b"".join(stamps))
            for written in (file, stamps_file):
                written.flush()
                os.fsync(written.fileno())
            file.seek(0)
            npy.write_array_header_1_0(file, self._header(len(self) + len(stamps)))
            if file.tell() != self._header_bytes:
                raise RuntimeError(f"{self.path}: the header of the array grew")
        for stamp in stamps:
            self._entry_of[stamp] = self._count
            self._count += 1

    @property
    def _entry_bytes(self) -> int:
        return _DTYPE.itemsize * math.prod(self.entry_shape)

    def _header(self, count: int) -> dict[str, object]:
        return {"descr": _DTYPE.str, "fortran_order": False, "shape": (count, *self.entry_shape)}

    def _load(self) -> None:
        self._entry_of, self._count = {}, 0
        if not self.path.exists():
            return
        try:
            with self.path.open("rb") as file:
                version = npy.read_magic(file)
                shape, _, dtype = npy.read_array_header_1_0(file)
                self._header_bytes = file.tell()
        except (ValueError, EOFError) as error:
            raise self._damaged("no header") from error
        size = self.path.stat().st_size
        stamps = self._stamps_path.read_bytes() if self._stamps_path.exists() else b""
        if version != (1, 0) or dtype != _DTYPE or shape[1:] != self.entry_shape:
            raise self._damaged(f"{dtype} of shape {shape}")
        if size < self._header_bytes + shape[0] * self._entry_bytes or len(stamps) < shape[0] * _STAMP:
            raise self._damaged("too short")
        self._count = shape[0]
        for entry in range(self._count):
            self._entry_of[stamps[entry * _STAMP : (entry + 1) * _STAMP]] = entry

    def _damaged(self, what: str) -> InputError:
        return InputError(f"{self.path}: the cache of features is damaged ({what}); delete this file, then run again")


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock that dies with its process."""
    with path.open("ab") as file:
        if sys.platform != "win32":
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _disk_full_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{path}: the disk is full; free some space, or set L2RM_CACHE to a folder on another disk"
        ) from error
