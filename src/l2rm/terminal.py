"""Between a command and the terminal: what is logged, how errors read, which exit status they are."""

import errno
import logging
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Protocol

from tqdm import tqdm

from l2rm.errors import InputError
from l2rm.training.interrupt import Interrupted

FAILED, BAD_INPUT, STOPPED = 1, 2, 128
_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNUSABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG)
# How NumPy, safetensors and torch say that a write failed: none of them passes the number of the error on.
_FULL_TOLD = re.compile(r"No space left on device|\d+ requested and \d+ written|iostream error|inline_container.*pos")

# The same of memory, by torch on a processor.
_MEMORY_TOLD = re.compile(r"can't allocate memory|Cannot allocate memory|std::bad_alloc|out of memory")


class Runnable(Protocol):
    """A parsed command."""

    @property
    def quiet(self) -> bool: ...

    def run(self) -> None: ...


def guarded(parse: Callable[[], Runnable | None], *, debug: bool) -> int:
    """Parse and run a command; whatever happens becomes an exit status and at most one line on standard error."""
    command: Runnable | None = None
    try:
        with _terminable():
            try:
                command = parse()
                if command is not None:
                    with _logging(quiet=command.quiet, debug=debug):
                        command.run()
            finally:
                sys.stdout.flush()
    except SystemExit as stop:  # tyro printed help or what is wrong; or SIGTERM
        return stop.code if isinstance(stop.code, int) else FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains when it flushes at its end
        return STOPPED + signal.SIGPIPE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        status, message = _verdict(error, command)
        print("l2rm: " + " ".join(message.split()), file=sys.stderr)
        return status
    return 0


def _verdict(error: BaseException, command: Runnable | None) -> tuple[int, str]:
    """Exit status and message."""
    out: Path | None = getattr(command, "out", None)
    if isinstance(error, InputError):
        return BAD_INPUT, f"error: {error}"
    if isinstance(error, Interrupted):
        again = "the same command and --resume" if hasattr(command, "resume") else "the same command"
        return STOPPED + error.signal, f"{error}; the run in {out} is saved, go on with {again}"
    if isinstance(error, KeyboardInterrupt):
        return STOPPED + signal.SIGINT, "stopped by SIGINT"
    path = _path(error, out)
    if _disk_is_full(error):
        return BAD_INPUT, f"error: {path}: the disk is full; free some space, or write to another disk"
    if isinstance(error, OSError) and error.errno in _UNUSABLE:
        return BAD_INPUT, f"error: {path}: {error.strerror}; choose a path that can be written"
    if _memory_is_full(error):
        remedy = getattr(command, "lighter", "free some memory, or give fewer pairs at a time")
        return FAILED, f"failed: out of memory; {remedy}"
    return FAILED, f"failed: {type(error).__name__}: {error} (--debug shows where)"


def _path(error: BaseException, out: Path | None) -> str:
    """The file that an error is about; for what is written beside its final name, the final name."""
    name = getattr(error, "filename", None)
    if not isinstance(name, str | Path):
        return str(out or "output")
    if out is not None and Path(name).absolute().parent == out.absolute().parent:
        return str(out)
    return str(name)


def _disk_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in _FULL:
            return True
        if _FULL_TOLD.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


def _memory_is_full(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # torch's, of an accelerator
            return True
        if _MEMORY_TOLD.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Handler(logging.Handler):
    """Plain lines on standard error that leave a progress bar whole."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def _logging(*, quiet: bool, debug: bool) -> Iterator[None]:
    log, handler = logging.getLogger("l2rm"), _Handler()
    handler.setLevel(logging.WARNING if quiet else logging.INFO)
    level, raising = log.level, logging.raiseExceptions
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    logging.raiseExceptions = debug  # a log file on a full disk is no reason for a traceback
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        logging.raiseExceptions = raising


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end the command the way an error does, so that temporary files go."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        raise SystemExit(STOPPED + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
