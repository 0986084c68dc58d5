"""SIGINT and SIGTERM wait for the end of the step, so that what is saved is whole."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(Exception):  # noqa: N818 - nothing went wrong
    """A signal asked the run to stop; it was saved and can be resumed. `signal` is its number."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.signal = number


class Interruption:
    """Whether a signal has arrived. A second SIGINT is not waited with: it interrupts at once."""

    def __init__(self, agreed: Callable[[int | None], int | None]) -> None:
        self.signal: int | None = None
        self._agreed = agreed

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.signal = number

    def asked(self) -> int | None:
        """The signal that has arrived, at this process or at any other that trains with it."""
        return self._agreed(self.signal)

    def check(self) -> None:
        """Stop here if a signal has arrived.

        Raises:
            Interrupted: one has.
        """
        if (signal := self.asked()) is not None:
            raise Interrupted(signal)


@contextmanager
def interruptible(agreed: Callable[[int | None], int | None] = lambda signal: signal) -> Iterator[Interruption]:
    """Catch the two signals inside the block; outside the main thread, where none can be caught, none are.

    `agreed` tells what several processes make of the signal that this one has had.
    """
    interruption = Interruption(agreed)
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.signal(number, interruption) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
