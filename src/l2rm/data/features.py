"""Image (or caption) features on disk, read only where they are needed."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from l2rm.errors import InputError
from l2rm.files import cache_folder, written_whole

if TYPE_CHECKING:
    import torch

CHUNK_BYTES = 64 * 2**20
DIGEST_BYTES = 16 * 2**20
# What NumPy raises on files that are no .npy array, found by damaging some at random.
_UNREADABLE = (
    OSError,
    ValueError,
    EOFError,
    BadZipFile,
    SyntaxError,
    TokenError,
    TypeError,
    KeyError,
    OverflowError,
    RecursionError,
    MemoryError,
    NotImplementedError,
    zlib.error,
    struct.error,
)
_DTYPES = ("float16", "float32", "float64", "int8")


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """N entries of R region vectors, (N, R, D), or of one vector, (N, D).

    Attributes:
        array: The stored entries, in memory or memory-mapped: float16, float32, float64, or int8 with a `scale`.
        scale: (D,) step of each dimension; an int8 entry stands for `entry * scale`.
        index: (N,) which stored entry each entry is, for a view; None for all of them.
        path: The file, where there is one.

    Raises:
        InputError: Another number of dimensions or type, or int8 without a scale of D finite steps.

    Example:
        >>> features = Features(array=np.arange(6, dtype=np.float32).reshape(3, 2))
        >>> features.take([2, 0]).batch(np.array([0])).tolist()
        [[4.0, 5.0]]
    """

    array: NDArray[Any]
    scale: NDArray[Any] | None = None
    index: NDArray[np.int64] | None = None
    path: Path | None = None

    def __post_init__(self) -> None:
        if self.array.ndim not in (2, 3):
            self._refuse(
                f"shape {self.array.shape}; features are (images, regions, dimensions) or (images, dimensions)"
            )
        if not self.dim:
            self._refuse(f"shape {self.array.shape}; features have at least one dimension")
        if self.array.dtype not in _DTYPES:
            self._refuse(f"type {self.array.dtype}; save the features as one of {', '.join(_DTYPES)}")
        if self.array.dtype == np.int8 and (self.scale is None or self.scale.shape != (self.dim,)):
            self._refuse(f"int8 features need a scale of {self.dim} numbers; save it beside them as scale.npy")
        if self.scale is not None and not np.isfinite(self.scale).all():
            self._refuse("the scale has a NaN or infinite step; quantise the features again")

    @classmethod
    def open(cls, path: str | Path) -> Features:
        """Memory-map a .npy file; an int8 one needs `STEM_scale.npy` or `scale.npy` beside it.

        Raises:
            InputError: No such file, not a readable .npy array, or what the class refuses.
        """
        path = Path(path)
        array = read_array(path, mapped=True)
        scale = None
        if array.dtype == np.int8:
            beside = [path.with_name(f"{path.stem}_scale.npy"), path.with_name("scale.npy")]
            scale = next((read_array(file) for file in beside if file.exists()), None)
        return cls(array=array, scale=scale, path=path)

    def __len__(self) -> int:
        return len(self.array if self.index is None else self.index)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, R, D) or (N, D)."""
        return (len(self), *self.array.shape[1:])

    @property
    def regions(self) -> int | None:
        """R; None for one vector an entry."""
        return self.array.shape[1] if self.array.ndim == 3 else None

    @property
    def dim(self) -> int:
        """D."""
        return int(self.array.shape[-1])

    def take(self, index: Any) -> Features:
        """A view of the given entries (numbers, a boolean mask or a slice), in the given order; nothing is read."""
        rows = np.arange(len(self.array)) if self.index is None else self.index
        return replace(self, index=rows[index])

    def batch(self, index: NDArray[np.int64]) -> torch.Tensor:
        """(len(index), R, D) or (len(index), D) float32 on the CPU, de-quantised, in the order of `index`."""
        import torch

        rows = index if self.index is None else self.index[index]
        order = np.argsort(rows, kind="stable")  # a disk likes ascending addresses
        batch = np.empty((len(rows), *self.array.shape[1:]), dtype=np.float32)
        batch[order] = self.array[rows[order]]
        if self.scale is not None:
            batch *= self.scale
        return torch.from_numpy(batch)

    def pooled(self) -> Features:
        """The mean over regions of each entry, (N, D) float32 in memory; entries of one vector are as they are."""
        if self.regions is None:
            return self
        pooled = np.empty((len(self), self.dim), dtype=np.float32)
        size = max(1, CHUNK_BYTES // (4 * self.regions * self.dim))
        for start in range(0, len(self), size):
            index = np.arange(start, min(start + size, len(self)))
            pooled[index] = self.batch(index).mean(1).numpy()
        return Features(array=pooled)

    def check(self) -> None:
        """Look for NaN and infinite values in the whole file, a chunk at a time; a file that passed is remembered.

        Raises:
            InputError: Names the file and the first row with such a value.
        """
        if self.array.dtype != np.int8:
            remembered(self.path, "finite", self._all_finite)

    def repeats(self, times: int) -> bool:
        """Whether the stored entries come in runs of `times` equal ones; a file's answer is remembered."""
        return len(self.array) % times == 0 and remembered(
            self.path, f"repeats {times}", lambda: all(_in_runs(chunk, times) for _, chunk in self._chunks(times))
        )

    def digest(self) -> str:
        """Tells these features from others: their shape, type and scale, and entries of `DIGEST_BYTES` all along."""
        rows = np.arange(len(self.array)) if self.index is None else self.index
        most = max(1, DIGEST_BYTES // max(1, self.array[:1].nbytes))
        if len(rows) > most:
            rows = rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
        digest = hashlib.sha256(f"{self.shape} {self.array.dtype.str}".encode())
        digest.update(np.ascontiguousarray(self.array[rows]).data)
        if self.scale is not None:
            digest.update(np.ascontiguousarray(self.scale).data)
        return digest.hexdigest()[:16]

    def _all_finite(self) -> bool:
        for start, chunk in self._chunks():
            finite = np.isfinite(chunk).reshape(len(chunk), -1).all(axis=1)
            if not finite.all():
                row = start + int(np.argmin(finite))
                self._refuse(
                    f"row {row} (from 0) has a NaN or infinite value; compute its features again, or leave it out"
                )
        return True

    def _chunks(self, multiple: int = 1) -> Iterator[tuple[int, NDArray[Any]]]:
        """All stored entries as (number of the first, entries): a multiple of `multiple`, about `CHUNK_BYTES`."""
        rows = max(1, CHUNK_BYTES // max(1, multiple * self.array[:1].nbytes)) * multiple
        for start in range(0, len(self.array), rows):
            yield start, self.array[start : start + rows]

    def _refuse(self, message: str) -> None:
        raise InputError(f"{self.path or 'features'}: {message}")


def read_array(path: Path, *, mapped: bool = False) -> NDArray[Any]:
    """Read (or memory-map) one .npy array; nothing pickled is ever unpickled.

    Raises:
        InputError: No such file, or anything but one plain array in it.
    """
    try:
        array = np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except _UNREADABLE as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: cannot be read as a .npy array ({reason}); save it again with numpy.save") from error
    if not isinstance(array, np.ndarray):
        raise InputError(f"{path}: an archive of several arrays; save the one that is meant with numpy.save")
    return array


def remembered(path: Path | None, question: str, answer: Callable[[], bool]) -> bool:
    """The answer to a question about a whole file, found once and remembered while its size and time stay the same."""
    if path is None:
        return answer()
    memory = cache_folder() / "checked.json"
    key, state = str(path.absolute()), [path.stat().st_size, path.stat().st_mtime_ns]
    known = json.loads(memory.read_text()) if memory.exists() else {}
    entry = known.get(key, {})
    if entry.get("state") != state:
        entry = {"state": state}
    if question not in entry:
        known[key] = {**entry, question: answer()}
        with written_whole(memory) as beside:
            beside.write_text(json.dumps(known, indent=1))
    return bool(known[key][question])


def _in_runs(chunk: NDArray[Any], times: int) -> bool:
    groups = chunk.reshape(-1, times, *chunk.shape[1:])
    return bool((groups[:, 1:] == groups[:, :1]).all())
