"""Exact nearest neighbours by inner product, a block of vectors at a time, so that they may lie on a disk."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

BLOCK_SCORES = 2**23
"""Scores that are in memory at a time."""
BLOCK_VECTORS = 2**16

Found = tuple[NDArray[np.float32], NDArray[np.int64]]
"""Scores (Q, k), highest first, and whose they are (Q, k); where there are fewer than k, -inf and -1 fill up."""


def top_k(
    vectors: NDArray[np.floating],
    ids: NDArray[np.int64],
    queries: NDArray[np.float32],
    k: int,
    *,
    removed: NDArray[np.int64] | None = None,
) -> Found:
    """The k vectors with the largest inner product with each query; of equal ones, those with the smaller id.

    Args:
        vectors: (N, D) of any floating type, memory-mapped or not.
        ids: (N,) ascending.
        queries: (Q, D).
        k: at least 1.
        removed: ids that count as not there, ascending.

    Example:
        >>> scores, ids = top_k(np.eye(3, dtype=np.float32), np.array([7, 8, 9]), np.float32([[0, 2, 1]]), 2)
        >>> ids.tolist(), scores.tolist()
        ([[8, 9]], [[2.0, 1.0]])
    """
    best = nothing(len(queries), k)
    step = min(BLOCK_VECTORS, max(1024, BLOCK_SCORES // max(1, len(queries))))
    for start in range(0, len(vectors), step):
        block = np.asarray(vectors[start : start + step], dtype=np.float32)
        some = ids[start : start + step]
        scores = queries @ block.T
        if removed is not None and len(removed):
            scores[:, np.isin(some, removed, assume_unique=True)] = -np.inf
        over = scores > best[0][:, -1:]  # of equal ones, those before have the smaller ids
        width = int(over.sum(axis=1).max(initial=0))
        if width <= len(some) // 8:
            if width:
                best = merged([best, _kept(scores, some, over, width)], k)
        elif len(some) > k:
            taken = _largest(scores, k)
            best = merged([best, (np.take_along_axis(scores, taken, 1), some[taken])], k)
        else:
            best = merged([best, (scores, np.broadcast_to(some, scores.shape))], k)
    return best


def nothing(queries: int, k: int) -> Found:
    """As many answers as there are queries, all of them empty."""
    return np.full((queries, k), -np.inf, dtype=np.float32), np.full((queries, k), -1, dtype=np.int64)


def merged(parts: Iterable[Found], k: int) -> Found:
    """The best k of several answers to the same queries."""
    pairs = list(parts)
    scores = np.concatenate([one for one, _ in pairs], axis=1)
    ids = np.concatenate([one for _, one in pairs], axis=1)
    ids = np.where(np.isneginf(scores), -1, ids)
    order = np.lexsort((ids, -scores), axis=1)[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(ids, order, 1)


def overlap(found: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Recall of answers: the share of the true neighbours (Q, k) that were found, empty ones (-1) aside."""
    there = truth >= 0
    hits = sum(len(np.intersect1d(one, other[other >= 0])) for one, other in zip(found, truth, strict=True))
    return hits / max(1, int(there.sum()))


def _kept(scores: NDArray[np.float32], ids: NDArray[np.int64], over: NDArray[np.bool_], width: int) -> Found:
    """The marked scores of each row, at most `width`, and their ids: cheaper than sorting."""
    rows, columns = np.nonzero(over)
    counts = np.bincount(rows, minlength=len(scores))
    places = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    kept = nothing(len(scores), width)
    kept[0][rows, places] = scores[rows, columns]
    kept[1][rows, places] = ids[columns]
    return kept


def _largest(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Places (Q, k) of the k largest scores; of scores equal to the k-th, the first ones."""
    taken = np.argpartition(scores, scores.shape[1] - k, axis=1)[:, -k:]
    edge = np.take_along_axis(scores, taken, 1).min(axis=1)
    for row in np.flatnonzero((scores == edge[:, None]).sum(axis=1) > 1):  # a tie may lie across the edge
        taken[row] = np.argsort(-scores[row], kind="stable")[:k]
    return taken
