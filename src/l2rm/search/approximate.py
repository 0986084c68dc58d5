"""Approximate neighbours among many vectors, by FAISS: lists around centres, of which a query looks at a few."""

import os
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from l2rm.errors import InputError
from l2rm.files import written_whole
from l2rm.search.nearest import Found, overlap, top_k

MEASURED_AT = 10
HELD_QUERIES = 512
"""Half of them choose how many lists are looked at, the other half measure the recall that is told."""
POINTS_A_LIST = 40
ADDED_AT_ONCE = 2**16


@dataclass(frozen=True, kw_only=True)
class Approximate:
    """How a kind's approximate index was made, and how good it is: `recall` of the exact first ten, on held queries."""

    file: str
    items: int
    lists: int
    probes: int
    recall: float
    queries: int


def faiss() -> Any:
    """The package.

    Raises:
        InputError: it is not installed.
    """
    try:
        return import_module("faiss")
    except ImportError as error:
        raise InputError(
            f"index: so many items want FAISS, which cannot be imported ({error}); install the extra: "
            "pip install 'l2rm[faiss]', or index with --exact"
        ) from error


def build(
    path: Path,
    vectors: NDArray[np.floating],
    ids: NDArray[np.int64],
    queries: NDArray[np.float32],
    *,
    target: float,
    seed: int = 0,
) -> Approximate:
    """Write an inverted-file index of (N, D) vectors, exact within the lists that a query looks at.

    It looks at the fewest lists, doubled from one, by which half of the queries find `target` of their exact first ten;
    the other half measures what comes out.

    Args:
        path: the file to be written.
        vectors, ids: (N, D) and (N,), ascending.
        queries: (Q, D), as they will be asked; at least 2.
        target: recall aimed at, in (0, 1].
        seed: draws the vectors that centres are learned from.
    """
    library = faiss()
    count, dim = vectors.shape
    lists = max(1, 2 ** round(np.log2(2 * np.sqrt(count))))
    centres = library.IndexFlatIP(dim)
    index = library.IndexIVFFlat(centres, dim, lists, library.METRIC_INNER_PRODUCT)
    index.cp.min_points_per_centroid = 1
    index.cp.seed = 1234 + seed
    chosen = np.sort(np.random.default_rng(seed).permutation(count)[: POINTS_A_LIST * lists])
    index.train(np.ascontiguousarray(vectors[chosen], dtype=np.float32))
    for start in range(0, count, ADDED_AT_ONCE):
        part = slice(start, start + ADDED_AT_ONCE)
        index.add_with_ids(np.ascontiguousarray(vectors[part], dtype=np.float32), ids[part])
    _, truth = top_k(vectors, ids, queries, MEASURED_AT)
    chosen_by, measured_by = slice(0, None, 2), slice(1, None, 2)
    index.nprobe = 1
    while index.nprobe < lists:
        _, found = index.search(queries[chosen_by], MEASURED_AT)
        if overlap(found, truth[chosen_by]) >= target:
            break
        index.nprobe = min(lists, 2 * index.nprobe)
    _, found = index.search(queries[measured_by], MEASURED_AT)
    with written_whole(path) as beside:
        library.write_index(index, str(beside))
    return Approximate(
        file=path.name,
        items=count,
        lists=lists,
        probes=int(index.nprobe),
        recall=round(overlap(found, truth[measured_by]), 4),
        queries=len(queries[measured_by]),
    )


class Lists:
    """An approximate index that was written.

    Raises:
        InputError: the file is missing or damaged, or FAISS is not installed.
    """

    def __init__(self, path: Path, probes: int) -> None:
        self._faiss = faiss()
        if not path.is_file():
            raise InputError(f"{path}: no such file; index again")
        try:
            self._index = self._faiss.read_index(str(path), self._faiss.IO_FLAG_MMAP)
        except RuntimeError as error:
            raise InputError(f"{path}: cannot be read by FAISS; index again") from error
        self._probes = probes
        self._faiss.omp_set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))

    def search(self, queries: NDArray[np.float32], k: int, removed: NDArray[np.int64]) -> Found:
        """Like `top_k`."""
        settings = self._faiss.SearchParametersIVF(nprobe=self._probes)
        if len(removed):
            gone = self._faiss.IDSelectorBatch(removed)
            settings = self._faiss.SearchParametersIVF(nprobe=self._probes, sel=self._faiss.IDSelectorNot(gone))
        scores, ids = self._index.search(np.ascontiguousarray(queries), k, params=settings)
        return np.where(ids < 0, -np.inf, scores).astype(np.float32), ids
