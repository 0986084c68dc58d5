"""Concurrent queries answered together: while one batch is searched, the next one gathers."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

AT_ONCE = 64


class Batcher:
    """Hands what several requests ask for to one function call, in one thread.

    A query waits for the batch before it, never for a clock: alone it is answered at once, among many it shares the
    cost of a pass over the vectors. Queries are batched with those of the same `key`.

    Args:
        answer: key and queries to as many answers; an exception is everybody's in the batch, unless they are alone.
        at_once: queries a batch at most.
    """

    def __init__(self, answer: Callable[[Any, Sequence[Any]], Sequence[Any]], *, at_once: int = AT_ONCE) -> None:
        self._answer, self._at_once = answer, at_once
        self._waiting: dict[Hashable, list[tuple[Any, asyncio.Future[Any]]]] = defaultdict(list)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="l2rm-search")
        self._busy = False

    async def ask(self, key: Hashable, query: Any) -> Any:
        """The answer to one query; raises what `answer` raises of it."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[key].append((query, future))
        self._go_on()
        return await future

    def close(self) -> None:
        """End the thread; what waits is not answered any more."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _go_on(self) -> None:
        if self._busy or not self._waiting:
            return
        key = next(iter(self._waiting))  # the one that waits longest
        batch, rest = self._waiting[key][: self._at_once], self._waiting.pop(key)[self._at_once :]
        if rest:
            self._waiting[key] = rest
        batch = [(query, future) for query, future in batch if not future.done()]  # who gave up needs no answer
        self._busy = True
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._thread, self._outcomes, key, [query for query, _ in batch])
        work.add_done_callback(lambda done: self._hand_out(batch, done))

    def _outcomes(self, key: Any, queries: list[Any]) -> list[tuple[bool, Any]]:
        """(whether it succeeded, answer or exception) of each query; a failing batch is asked one by one."""
        if not queries:
            return []
        try:
            return [(True, one) for one in self._answer(key, queries)]
        except Exception as error:
            if len(queries) == 1:
                return [(False, error)]
        return [self._outcomes(key, [query])[0] for query in queries]

    def _hand_out(
        self, batch: list[tuple[Any, asyncio.Future[Any]]], done: "asyncio.Future[list[tuple[bool, Any]]]"
    ) -> None:
        self._busy = False
        self._go_on()
        if done.cancelled():
            return
        for (_, future), (succeeded, outcome) in zip(batch, done.result(), strict=True):
            if not future.done():
                future.set_result(outcome) if succeeded else future.set_exception(outcome)
