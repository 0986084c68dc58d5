"""Exact neighbours against a full sort."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from l2rm.search import nearest
from l2rm.search.nearest import merged, nothing, overlap, top_k


@given(
    seed=st.integers(0, 2**16),
    count=st.integers(0, 60),
    k=st.integers(1, 70),
    removed=st.integers(0, 20),
    ties=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_top_k_is_a_full_sort(seed: int, count: int, k: int, removed: int, ties: bool) -> None:
    generator = np.random.default_rng(seed)
    vectors = (
        generator.integers(-2, 3, size=(count, 3)).astype(np.float32) if ties else generator.normal(size=(count, 3))
    )
    vectors = vectors.astype(np.float32)
    queries = generator.integers(-2, 3, size=(4, 3)).astype(np.float32)
    ids = np.sort(generator.permutation(1000)[:count])
    gone = np.sort(generator.permutation(ids)[:removed])
    patch = pytest.MonkeyPatch()
    with patch.context() as small:
        small.setattr(nearest, "BLOCK_VECTORS", 7)
        scores, found = top_k(vectors, ids, queries, k, removed=gone)
    assert found.shape == scores.shape == (4, min(k, found.shape[1]))
    for row, query in enumerate(queries):
        wanted = sorted((-(vector @ query), one) for vector, one in zip(vectors, ids, strict=True) if one not in gone)[
            :k
        ]
        there = found[row][found[row] >= 0]
        np.testing.assert_allclose(scores[row][: len(there)], [-score for score, _ in wanted], rtol=1e-5, atol=1e-6)
        if ties:
            assert there.tolist() == [one for _, one in wanted]


def test_parts_merge_to_the_whole() -> None:
    generator = np.random.default_rng(0)
    vectors, queries = (
        generator.normal(size=(50, 5)).astype(np.float32),
        generator.normal(size=(3, 5)).astype(np.float32),
    )
    ids = np.arange(50)
    parts = [top_k(vectors[part], ids[part], queries, 8) for part in (slice(0, 20), slice(20, 23), slice(23, 50))]
    np.testing.assert_array_equal(merged([nothing(3, 8), *parts], 8)[1], top_k(vectors, ids, queries, 8)[1])


def test_overlap_counts_true_neighbours() -> None:
    assert overlap(np.array([[1, 2, 3], [4, -1, -1]]), np.array([[3, 2, 9], [4, 5, -1]])) == pytest.approx(3 / 5)
