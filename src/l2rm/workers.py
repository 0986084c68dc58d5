"""Several processes at work, one thread each, that save and stop together."""

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

PATIENCE = 60.0
"""Seconds that a worker without a parent has to save and stop."""


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Processes started inside use one thread each: several would wait for each other at every small tensor."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


@contextlib.contextmanager
def children_stopped() -> Iterator[None]:
    """If the block fails or is interrupted, ask the processes it started to save and stop."""
    try:
        yield
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise


def stop_with_parent() -> None:
    """What a worker begins with: when its parent is killed, so that nobody can stop it any more, it saves and stops."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(PATIENCE)
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def all_watched(pool: ProcessPoolExecutor) -> None:
    """Have a pool notice the death of any of its processes, once its jobs are submitted.

    Each `submit` wakes the thread that watches the processes before it starts another one. That thread may then wait
    without the last one: if it is killed, nobody is told. One more job, which does nothing, wakes the thread again.
    """
    pool.submit(int)


def told_by_process(level: int, form: str) -> None:
    """Let this process tell, in lines of the given `logging` form, what is of a level or above; for those just started.

    The level is the handler's: a training sets the logger's own, to write its log.txt.
    """
    handler = logging.StreamHandler()
    handler.setLevel(level)
    logging.basicConfig(handlers=[handler], level=level, format=form, force=True)
