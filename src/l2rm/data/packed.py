"""What lies inside a tar file, read where it lies: nothing is unpacked, and any member is one read away."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from l2rm.errors import InputError

TAR = ".tar"
_BLOCK = 512
_HEADER = 4096
_OPEN = 64
"""Archives whose members are remembered, and files that are held open, at most."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Archive:
    """Where the files in a tar file begin, and how long they are.

    Attributes:
        path: the tar file, not compressed.
        members: offset and bytes of each file, by name, in the order of the archive.
    """

    path: Path
    members: dict[str, tuple[int, int]]

    @classmethod
    def open(cls, path: str | Path) -> Archive:
        """Walk from header to header; what the files hold is not looked at.

        Raises:
            InputError: no such file; no whole, uncompressed tar; a member that is no plain file (a link, a device),
                whose name leads out of the archive, or stands there twice.
        """
        path = Path(path)
        members: dict[str, tuple[int, int]] = {}
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    while (member := tar.next()) is not None:
                        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep them all
                        if member.isdir():
                            continue
                        _check_member(path, member, members, size)
                        members[member.name] = (member.offset_data, member.size)
                    file.seek(tar.offset)
                    end = file.read(_BLOCK)
        except FileNotFoundError:
            raise InputError(f"{path}: no such file; check the path") from None
        except (tarfile.TarError, OSError, ValueError, EOFError, RecursionError, OverflowError, MemoryError) as error:
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(
                f"{path}: cannot be read as an uncompressed tar file ({reason}); fetch it again, or uncompress it"
            ) from error
        if len(end) < _BLOCK or any(end):  # where tarfile stops without a word
            raise InputError(f"{path}: is damaged or cut off after {tar.offset} bytes; fetch it again")
        return cls(path=path, members=members)

    def read(self, name: str) -> bytes:
        """What a member holds."""
        return read_at(self.path, *self.members[name])


def _check_member(path: Path, member: tarfile.TarInfo, known: dict[str, Any], size: int) -> None:
    name = member.name
    if not member.isreg() or member.issparse():
        kind = "a link" if member.issym() or member.islnk() else "no plain file"
        raise InputError(f"{path}: member {name!r} is {kind}; pack the files themselves")
    if name.startswith("/") or ".." in PurePosixPath(name).parts or "\0" in name:
        raise InputError(f"{path}: member {name!r} leads out of the archive; pack it again with relative names")
    if name in known:
        raise InputError(f"{path}: member {name!r} is there twice; pack it again")
    if member.offset_data + member.size > size:
        raise InputError(f"{path}: is cut off within {name!r}; fetch it again")


def read_at(path: Path, offset: int, size: int) -> bytes:
    """`size` bytes of a file from `offset` on.

    Raises:
        InputError: the file has become shorter.
    """
    data = os.pread(_descriptor(path).number, size, offset)
    if len(data) != size:
        raise InputError(f"{path}: has become shorter while it was read; leave data alone while they are in use")
    return data


class _Descriptor:
    """An open file, closed when nobody needs it any more."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        os.close(self.number)


@lru_cache(maxsize=_OPEN)
def _descriptor(path: Path) -> _Descriptor:
    return _Descriptor(path)


# ------------------------------------------------------------------------------------------------ paths into archives


def split_path(path: Path) -> tuple[Path, str] | None:
    """The tar file and the member of a path that leads into one; None for any other path.

    Example:
        >>> import tempfile
        >>> shard = Path(tempfile.mkdtemp()) / "00000.tar"
        >>> shard.touch()
        >>> split_path(shard / "000012.jpg") == (shard, "000012.jpg"), split_path(Path("images/a.jpg"))
        (True, None)
    """
    if f"{TAR}{os.sep}" not in str(path):
        return None
    for place, part in enumerate(path.parts[:-1]):
        if part.endswith(TAR) and os.path.isfile(archive := Path(*path.parts[: place + 1])):
            return archive, "/".join(path.parts[place + 1 :])
    return None


@dataclass(frozen=True, kw_only=True)
class FileState:
    """Size in bytes, and the time of the last change."""

    st_size: int
    st_mtime_ns: int


def file_state(path: Path) -> FileState:
    """Size and time of a file, or of a member of a tar file.

    Raises:
        OSError: there is none.
    """
    if (inside := split_path(path)) is None:
        state = path.stat()
        return FileState(st_size=state.st_size, st_mtime_ns=state.st_mtime_ns)
    _, size = _member(*inside)
    return FileState(st_size=size, st_mtime_ns=inside[0].stat().st_mtime_ns)


def is_file(path: Path) -> bool:
    """Whether there is such a file, or such a member of a tar file.

    Raises:
        InputError: the tar file is damaged.
    """
    if (inside := split_path(path)) is None:
        return os.path.isfile(path)
    try:
        _member(*inside)
    except FileNotFoundError:
        return False
    return True


def open_file(path: Path) -> BinaryIO:
    """A file, or a member of a tar file, for reading.

    Raises:
        OSError: there is none.
    """
    if (inside := split_path(path)) is None:
        return path.open("rb")
    return io.BytesIO(read_at(inside[0], *_member(*inside)))


def _member(archive: Path, name: str) -> tuple[int, int]:
    members = _archive(archive, archive.stat().st_mtime_ns).members
    for stored in (name, f"./{name}"):  # a Path has lost the beginning that `tar cf 0.tar .` gives
        if stored in members:
            return members[stored]
    raise FileNotFoundError(2, "no such member of the tar file", name)


@lru_cache(maxsize=_OPEN)
def _archive(path: Path, changed: int) -> Archive:
    return Archive.open(path)


# --------------------------------------------------------------------------------------------------- arrays of members


class PackedArray:
    """Equal `.npy` members of tar files as one array (N, …): entries are read from where they lie, when asked for.

    It has what `Features` asks of an array. Memory holds 12 bytes an entry, whatever its size.

    Args:
        places: `(archive, member)` of each entry.

    Raises:
        InputError: a member that is no plain array (objects are never unpickled), or not of the first one's shape and
            type; names it.
    """

    def __init__(self, places: Sequence[tuple[Archive, str]]) -> None:
        number: dict[Path, int] = {}
        self._files: list[Path] = []
        self._file_of = np.empty(len(places), dtype=np.int32)
        self._offsets = np.empty(len(places), dtype=np.int64)
        first: bytes | None = None
        for row, (archive, name) in enumerate(places):
            offset, size = archive.members[name]
            beginning = read_at(archive.path, offset, min(size, _HEADER if first is None else len(first)))
            if first is None or beginning != first:
                beginning = read_at(archive.path, offset, min(size, _HEADER))
                shape, dtype, header = _array_header(archive, name, beginning)
                if first is None:
                    first, self._entry, self.dtype = beginning[:header], shape, dtype
                elif (shape, dtype) != (self._entry, self.dtype):
                    raise InputError(
                        f"{archive.path}: {name} is {dtype} {shape}, but {places[0][1]} {self.dtype} {self._entry}; "
                        "make all alike"
                    )
            else:
                header = len(first)
            if size - header != self._entry_bytes:
                raise InputError(
                    f"{archive.path}: {name} has {size - header} bytes of data instead of {self._entry_bytes}; "
                    "save it again with numpy.save"
                )
            if archive.path not in number:
                number[archive.path] = len(self._files)
                self._files.append(archive.path)
            self._file_of[row], self._offsets[row] = number[archive.path], offset + header

    @property
    def _entry_bytes(self) -> int:
        return int(np.prod(self._entry)) * self.dtype.itemsize

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, …)."""
        return (len(self), *self._entry)

    @property
    def ndim(self) -> int:
        """Dimensions, that of the entries included."""
        return 1 + len(self._entry)

    @property
    def nbytes(self) -> int:
        """Bytes of all entries."""
        return len(self) * self._entry_bytes

    def __len__(self) -> int:
        return len(self._offsets)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Some entries, by a slice, numbers or a mask; or one."""
        rows = np.arange(len(self))[index]
        found = np.empty((rows.size, *self._entry), dtype=self.dtype)
        for place, row in enumerate(np.atleast_1d(rows)):
            data = read_at(self._files[self._file_of[row]], int(self._offsets[row]), self._entry_bytes)
            found[place] = np.frombuffer(data, dtype=self.dtype).reshape(self._entry)
        return found if np.ndim(rows) else found[0]


def _array_header(archive: Archive, name: str, beginning: bytes) -> tuple[tuple[int, ...], np.dtype[Any], int]:
    """Shape, type and the length of the header of a .npy member."""
    file = io.BytesIO(beginning)
    try:
        version = npy.read_magic(file)
        read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
        shape, fortran, dtype = read(file)
    except (ValueError, KeyError, EOFError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"{archive.path}: {name} cannot be read as a .npy array ({reason}); save it again with numpy.save"
        ) from error
    if dtype.hasobject or dtype.kind not in "fi":
        raise InputError(f"{archive.path}: {name} holds {dtype}, not numbers; save an array of floats")
    if fortran and len(shape) > 1:
        raise InputError(f"{archive.path}: {name} is stored by columns; save numpy.ascontiguousarray of it")
    return shape, dtype, file.tell()
