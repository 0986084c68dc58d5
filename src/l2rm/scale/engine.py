"""Who does the work of a stage, a number after the other: this process, or Ray's, here or on a cluster."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from l2rm.errors import InputError
from l2rm.progress import track

OBJECT_STORE = 128 * 2**20
"""Bytes of Ray's shared memory where we start it: shards pass by files, and only their numbers through it."""
LOCAL = "local"

Work = Callable[[int], None]


class Engine(Protocol):
    """Calls `work(number)` for every number, in any order and anywhere; what it makes are files."""

    def run(self, work: Work, numbers: Sequence[int], what: str) -> None: ...


class InProcess:
    """One number after the other, here.

    Args:
        progress: tell on standard error how far it is.
    """

    def __init__(self, *, progress: bool = False) -> None:
        self._progress = progress

    def run(self, work: Work, numbers: Sequence[int], what: str) -> None:
        """Do all of it."""
        for number in track(numbers, total=len(numbers), what=what, enabled=self._progress):
            work(number)


class OnRay:
    """A Ray Data pipeline: numbers stream through as many processes as there are processors for.

    A process or machine that dies has its numbers done again by another; `work` writes its file whole or not at all.

    Args:
        ray: the module, with a cluster joined or started.
        progress: tell on standard error how far it is.
    """

    def __init__(self, ray: Any, *, progress: bool = False) -> None:
        self._ray, self._progress = ray, progress

    def run(self, work: Work, numbers: Sequence[int], what: str) -> None:
        """Do all of it.

        Raises:
            InputError: what `work` refused, as it would be told here.
        """
        if not numbers:
            return
        items = self._ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
        results = items.map(_Task(work), num_cpus=1).iter_rows()
        for row in track(results, total=len(numbers), what=what, enabled=self._progress):
            if row["refused"]:
                raise InputError(row["refused"])


class _Task:
    """What Ray calls. An error that is the data's comes back as its text: a traceback of Ray's helps nobody."""

    def __init__(self, work: Work) -> None:
        self._work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            self._work(int(row["number"]))
        except InputError as error:
            return {"number": row["number"], "refused": str(error)}
        return {"number": row["number"], "refused": ""}


@contextmanager
def opened_engine(
    name: str, *, address: str = LOCAL, processes: int | None = None, progress: bool = False
) -> Iterator[Engine]:
    """An engine for the block.

    Args:
        name: "local" for this process, or "ray".
        address: of the Ray cluster: "local" starts one here, which ends with the block; "auto" joins the one that this
            machine is part of; or HOST:PORT.
        processes: of a cluster that is started here; None for one a processor.
        progress: tell on standard error how far it is.

    Raises:
        InputError: an unknown name, Ray is not installed, or no cluster at that address.
    """
    if name == LOCAL:
        yield InProcess(progress=progress)
        return
    if name != "ray":
        raise InputError(f"engine: there is no {name!r}; choose ray or local")
    ray, ours = _joined(address, processes)
    try:
        yield OnRay(ray, progress=progress)
    finally:
        if ours:
            ray.shutdown()


def _joined(address: str, processes: int | None) -> tuple[Any, bool]:
    """Ray, with a cluster; and whether it is ours to end."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise InputError(
            f"engine: Ray cannot be imported ({error}); install the extra: pip install 'l2rm[ray]', or take --engine "
            "local"
        ) from error
    logging.getLogger("ray").setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ours = not ray.is_initialized()
    if ours:
        options: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
        if address == LOCAL:
            options |= {"num_cpus": processes, "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        try:
            ray.init(address=address, **options)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError(f"ray: no cluster at {address} ({reason}); start one with `ray start --head`") from error
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.enable_operator_progress_bars = False
    context.print_on_execution_start = False
    return ray, ours
