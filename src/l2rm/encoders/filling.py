"""Files are decoded, encoded and stored, batch by batch; what does not decode is told."""

from collections import deque
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from l2rm.encoders.pixels import UndecodableImageError
from l2rm.encoders.store import FeatureStore
from l2rm.progress import track

STORE_EVERY = 64
"""Images between two writes; a killed run loses at most these."""
BATCH = 4
"""On a processor, small batches stay in its cache: 4 images take half the time an image that 32 do."""

Read = Callable[[Path], NDArray[Any]]
Embed = Callable[[NDArray[Any]], torch.Tensor]


def fill(
    store: FeatureStore,
    files: Mapping[bytes, Path],
    read: Read,
    embed: Embed,
    *,
    stop_at_bad: bool,
    progress: bool,
    batch: int = BATCH,
    what: str = "encoding images",
) -> dict[bytes, str]:
    """Encode files and store them under their stamps; which do not decode, and why (one at most with `stop_at_bad`).

    Args:
        store: open for writing.
        files: what to encode, by stamp.
        read: a file to the array that the encoder takes; raises `UndecodableImageError`.
        embed: a batch of those arrays to entries (B, …).
        stop_at_bad: stop at the first file that does not decode.
        progress: tell on standard error how far it has come.
        batch: files at a time.
        what: what is told to be going on.
    """
    bad: dict[bytes, str] = {}
    stamps: list[bytes] = []
    entries: list[NDArray[np.float16]] = []
    with closing(_encoded(files, read, embed, batch)) as results:
        for key, result in track(results, total=len(files), what=what, enabled=progress):
            if isinstance(result, str):
                bad[key] = result
                if stop_at_bad:
                    break
            else:
                stamps.append(key)
                entries.append(result)
            if len(stamps) == STORE_EVERY:
                store.append(stamps, np.stack(entries))
                stamps, entries = [], []
    if stamps:
        store.append(stamps, np.stack(entries))
    return bad


_Result = tuple[bytes, NDArray[np.float16] | str]


def _encoded(files: Mapping[bytes, Path], read: Read, embed: Embed, size: int) -> Generator[_Result, None, None]:
    """Decode and encode files; yield each one's entry, or why it does not decode, in order.

    Every worker thread takes whole batches, decodes and encodes them by itself. Threads that share one convolution
    wait for one another at each layer, which costs several times as much as soon as a core is busy elsewhere.
    """

    def work(batch: Sequence[tuple[bytes, Path]]) -> list[_Result]:
        decoded: dict[bytes, NDArray[Any]] = {}
        results: dict[bytes, NDArray[np.float16] | str] = {}
        for key, path in batch:
            try:
                decoded[key] = read(path)
            except UndecodableImageError as error:
                results[key] = str(error)
        if decoded:
            entries = embed(np.stack(list(decoded.values()))).to(torch.float16).numpy()
            results |= dict(zip(decoded, entries, strict=True))
        return [(key, results[key]) for key, _ in batch]

    items = list(files.items())
    threads = torch.get_num_threads()
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[list[_Result]]] = deque()
    try:
        for start in range(0, len(items), size):
            waiting.append(pool.submit(work, items[start : start + size]))
            if len(waiting) > 2 * threads:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the workers' 1 would be what new threads start with
