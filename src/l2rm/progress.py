"""One progress bar for every long loop: tqdm on a terminal, now and then a plain line elsewhere (logs, CI)."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def track(items: Iterable[T], *, total: int, what: str, enabled: bool = True, every: float = 10.0) -> Iterator[T]:
    """Yield `items`, telling on standard error how far they have come and about how long they still take.

    Args:
        items: what to go through.
        total: how many items there will be.
        what: what is being done, e.g. "drawing images".
        enabled: False says nothing at all.
        every: seconds between two plain lines, where standard error is not a terminal.

    Example:
        >>> list(track([1, 2], total=2, what="counting", enabled=False))
        [1, 2]
    """
    if not enabled:
        yield from items
    elif sys.stderr.isatty():
        yield from tqdm(items, total=total, desc=what, file=sys.stderr)
    else:
        yield from _plain_lines(items, total=total, what=what, every=every)


def _plain_lines(items: Iterable[T], *, total: int, what: str, every: float) -> Iterator[T]:
    began = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= every and done < total:
            said = now
            left = (now - began) / done * (total - done)
            print(f"{what}: {done}/{total}, about {left:.0f} s left", file=sys.stderr, flush=True)
