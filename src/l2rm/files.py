"""Files appear whole or not at all: write beside, then rename."""

import os
import re
import shutil
import socket
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from l2rm.errors import InputError


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` when the block succeeds, remove it when it fails.

    The temporary name ends as `path` does, so that writers which look at the suffix (NumPy, Matplotlib) behave. It also
    tells the process that writes, so that what killed ones left behind goes with the next file written there. The
    content is on the disk before the name is, so not even a power cut leaves half a file.

    Example:
        >>> import json, tempfile, pathlib
        >>> target = pathlib.Path(tempfile.mkdtemp()) / "metrics.json"
        >>> with written_whole(target) as beside:
        ...     _ = beside.write_text(json.dumps({"rsum": 100.0}))
        >>> target.read_text()
        '{"rsum": 100.0}'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.{_writer()}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    beside = Path(name)
    try:
        yield beside
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o666 & ~umask)
        _to_disk(beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def folder_written_whole(path: str | Path) -> Iterator[Path]:
    """The same for a folder: yield an empty one beside `path`, and let it replace `path` when the block succeeds.

    Raises:
        InputError: `path` is the current folder, or holds it.
    """
    path = replaceable(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path.parent)
    beside = Path(tempfile.mkdtemp(prefix=f".{path.name}.{_writer()}-", dir=path.parent))
    old = beside.with_name(beside.name + _OLD)
    try:
        yield beside
        umask = os.umask(0)
        os.umask(umask)
        beside.chmod(0o777 & ~umask)
        for file in beside.rglob("*"):
            if file.is_file():
                _to_disk(file)
        if path.exists():
            os.replace(path, old)
        os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
        elif old.exists():
            os.replace(old, path)


def replaceable(path: str | Path) -> Path:
    """A folder's own path, without links: where another can take its place.

    Raises:
        InputError: it is the current folder, or holds it.
    """
    resolved, here = Path(path).resolve(), Path.cwd()
    if resolved == here or resolved in here.parents:
        raise InputError(f"{path}: is the current folder, or holds it, and cannot be replaced; name a folder within it")
    return resolved


def remove_leftovers(folder: Path) -> None:
    """Remove what processes of this machine that were killed while they wrote into `folder` have left there.

    A folder that such a process had put aside, to put another in its place, gets its name back if that is free.
    """
    if not folder.is_dir():
        return
    for path in list(folder.iterdir()) if os.access(folder, os.R_OK) else []:
        found = _LEFTOVER.match(path.name)
        if not found or found["host"] != _host() or _lives(int(found["process"])):
            continue
        final = folder / found["final"]
        if path.name.endswith(_OLD) and not final.exists():
            os.replace(path, final)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


_OLD = ".old"
_LEFTOVER = re.compile(r"\.(?P<final>.+)\.(?P<host>[0-9a-f]{8})\.(?P<process>[0-9]+)-[a-z0-9_]{8}(\.[^.]*)?$")


def _host() -> str:
    """This machine, in a few characters that any file system takes."""
    return f"{zlib.crc32(socket.gethostname().encode()):08x}"


def _writer() -> str:
    return f"{_host()}.{os.getpid()}"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache_folder() -> Path:
    """Where features and checks are remembered: `$L2RM_CACHE`, else `~/.cache/l2rm`."""
    return Path(os.environ.get("L2RM_CACHE") or Path.home() / ".cache" / "l2rm")
