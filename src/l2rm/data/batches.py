"""Rows of pairs -> tensors that a model takes."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import PAD, Tokens
from l2rm.errors import InputError

Item = TypeVar("Item")
Made = TypeVar("Made")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """B pairs as tensors.

    `images (B, R, F)` or `(B, F)`; `captions (B, L)` token ids padded with 0 and `lengths (B,)` on the CPU, or
    `captions (B, F)` embeddings and no lengths; `image_ids (B,)` the image that each caption is given; `rows (B,)`.
    `weights (B,)`: how far each pair is to be taken as matched; None: in full.
    """

    images: Tensor
    captions: Tensor
    lengths: Tensor | None
    image_ids: Tensor
    rows: NDArray[np.int64]
    weights: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)


class Batches:
    """Tokenised captions and features of some pairs, by rows, on the device that the model is on.

    Raises:
        InputError: the pairs have no features, or captions as words but no vocabulary.
    """

    def __init__(self, pairs: Pairs, vocabulary: Tokens | None, device: torch.device | str = "cpu") -> None:
        if pairs.features is None:
            raise InputError(f"{pairs.source}: no image features; make them with l2rm.encode(pairs)")
        if pairs.caption_features is None and vocabulary is None:
            raise InputError(f"{pairs.source}: captions are words, but there is no vocabulary to read them by")
        self.pairs = pairs
        self.device = torch.device(device)
        self._features = pairs.features
        self._tokens = None
        if pairs.caption_features is None and vocabulary is not None:
            self._tokens = _Ragged(vocabulary.encode_all(pairs.captions))

    def __len__(self) -> int:
        return len(self.pairs)

    def images(self, images: NDArray[np.int64]) -> Tensor:
        """Features of the given images."""
        return self._features.batch(images).to(self.device)

    def captions(self, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        """Captions of the given rows: (tokens, lengths), or (embeddings, None)."""
        if self._tokens is None:
            assert self.pairs.caption_features is not None
            return self.pairs.caption_features.batch(rows).to(self.device), None
        tokens, lengths = self._tokens.padded(rows)
        return torch.from_numpy(tokens).to(self.device), torch.from_numpy(lengths)

    def batch(
        self,
        rows: NDArray[np.int64],
        images: NDArray[np.int64] | None = None,
        weights: NDArray[np.float32] | None = None,
    ) -> Batch:
        """The given rows as a batch; each with the image that it is given, or with one of `images`."""
        given = self.pairs.image_of[rows] if images is None else images
        captions, lengths = self.captions(rows)
        return Batch(
            images=self.images(given),
            captions=captions,
            lengths=lengths,
            image_ids=torch.from_numpy(given).to(self.device),
            rows=rows,
            weights=None if weights is None else torch.from_numpy(weights).to(self.device),
        )


class _Ragged:
    """Token ids of many captions, one after the other: 4 bytes a word, where an array a caption would take hundreds."""

    def __init__(self, captions: Iterable[list[int]]) -> None:
        lengths: list[int] = []

        def counted() -> Iterator[list[int]]:
            for caption in captions:
                lengths.append(len(caption))
                yield caption

        self._ids = np.fromiter(chain.from_iterable(counted()), dtype=np.int32)
        self._starts = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])

    def padded(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids (len(rows), longest) of some captions, and how many each has."""
        lengths = np.diff(self._starts)[rows]
        place = np.arange(lengths.max())
        there = place < lengths[:, None]
        ids = np.full(there.shape, PAD, dtype=np.int64)
        ids[there] = self._ids[(self._starts[rows][:, None] + place)[there]]
        return ids, lengths


@contextmanager
def ahead(work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Iterator[Made]]:
    """`work(item)` of each item in turn; while one result is in use, a thread is at work on the next.

    So a disk is read while a model learns. What the work raises is raised where its result is due. The thread ends with
    the block, whatever ends it, and `items` are taken by the thread of the caller.

    Example:
        >>> with ahead(str.upper, ["one", "two"]) as results:
        ...     print(*results)
        ONE TWO
    """
    with ThreadPoolExecutor(1, thread_name_prefix="l2rm-ahead") as thread:
        yield _one_ahead(thread, work, items)


def _one_ahead(thread: ThreadPoolExecutor, work: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    coming: deque[Future[Made]] = deque()
    for item in items:
        coming.append(thread.submit(work, item))
        if len(coming) > 1:
            yield coming.popleft().result()
    while coming:
        yield coming.popleft().result()


def shuffled(
    rows: NDArray[np.int64], size: int, *, seed: tuple[int, ...], drop_last: bool = True
) -> list[NDArray[np.int64]]:
    """`rows` in batches of `size` in an order that `seed` decides; fewer rows than `size` make one smaller batch."""
    order = rows[np.random.default_rng(seed).permutation(len(rows))]
    batches = [order[start : start + size] for start in range(0, len(order), size)]
    if drop_last and len(batches) > 1 and len(batches[-1]) < size:
        batches.pop()
    return batches


def cycled(rows: NDArray[np.int64], size: int, *, seed: tuple[int, ...]) -> Iterator[NDArray[np.int64]]:
    """Batches of `rows` for ever, shuffled anew on every pass.

    Raises:
        ValueError: there are no rows, so no batch would ever come.
    """
    if not len(rows):
        raise ValueError("there are no rows to cycle through")
    return _passes(rows, size, seed)


def _passes(rows: NDArray[np.int64], size: int, seed: tuple[int, ...]) -> Iterator[NDArray[np.int64]]:
    turn = 0
    while True:
        yield from shuffled(rows, size, seed=(*seed, turn))
        turn += 1
