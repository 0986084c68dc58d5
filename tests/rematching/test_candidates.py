"""Exact nearest images: against a full sort, in any blocks, with images left out."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2rm.errors import InputError
from l2rm.evaluation.scores import MatrixScores
from l2rm.rematching.candidates import EmbeddingScores, nearest_images


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 12),
    m=st.integers(1, 12),
    k=st.integers(1, 15),
    block=st.integers(1, 13),
    tied=st.booleans(),
)
def test_is_a_full_sort(seed: int, n: int, m: int, k: int, block: int, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    S = rng.integers(0, 4, size=(n, m)).astype(np.float32) if tied else rng.random((n, m)).astype(np.float32)
    captions = rng.permutation(m)[: rng.integers(1, m + 1)]
    images = rng.permutation(n)[: rng.integers(1, n + 1)]
    forbidden = rng.integers(-1, n, size=len(captions))
    found = nearest_images(
        MatrixScores(S), candidates=k, captions=captions, images=images, forbidden=forbidden, block_images=block,
        block_captions=block,
    )  # fmt: skip
    assert found.images.shape == (len(captions), min(k, len(images)))
    for row, caption in enumerate(captions):
        allowed = np.setdiff1d(images, forbidden[row : row + 1])
        got = found.images[row][found.images[row] >= 0]
        assert len(got) == min(k, len(images), len(allowed))
        assert set(got) <= set(allowed)
        assert len(set(got)) == len(got)
        assert found.scores[row, : len(got)].tolist() == sorted(S[allowed, caption], reverse=True)[: len(got)]
        assert found.scores[row, : len(got)].tolist() == S[got, caption].tolist()
        assert np.isneginf(found.scores[row, len(got) :]).all()
        if not tied:
            assert got.tolist() == allowed[np.argsort(-S[allowed, caption])][: len(got)].tolist()
    place, image, score = found.cells
    assert len(place) == len(image) == len(score) == int((found.images >= 0).sum())
    assert (S[image, captions[place]] == score).all()


def test_embeddings_are_compared_by_cosine() -> None:
    rng = np.random.default_rng(0)
    images, captions = rng.normal(size=(9, 5)), 7 * rng.normal(size=(11, 5))
    wanted = (images / np.linalg.norm(images, axis=1)[:, None]) @ (
        captions / np.linalg.norm(captions, axis=1)[:, None]
    ).T
    for kind in (np.asarray, torch.from_numpy):
        scores = EmbeddingScores(kind(images), kind(captions))
        assert (scores.n_images, scores.n_captions) == (9, 11)
        some = np.array([3, 4, 5]), np.array([10, 0])
        assert np.allclose(scores.block(*some).numpy(), wanted[np.ix_(*some)], atol=1e-6)


def test_bad_input() -> None:
    S = np.ones((3, 2))
    S[2, 1] = np.nan
    with pytest.raises(InputError, match="NaN for image 2 and caption 1"):
        nearest_images(MatrixScores(S))
    good = MatrixScores(np.ones((3, 2)))
    for options, words in (
        ({"candidates": 0}, "less than 1"),
        ({"captions": np.array([2])}, "captions: 2 at 0"),
        ({"images": np.array([-1])}, "images: -1"),
        ({"images": np.array([], dtype=np.int64)}, "allow at least one"),
        ({"forbidden": np.array([0])}, "1 images for 2 captions"),
    ):
        with pytest.raises(InputError, match=words):
            nearest_images(good, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="image 1 is zero"):
        EmbeddingScores(np.array([[1.0], [0.0]]), np.ones((2, 1)))
    with pytest.raises(InputError, match="caption 0 is zero or not finite"):
        EmbeddingScores(np.ones((2, 1)), np.array([[np.inf], [1.0]]))
    with pytest.raises(InputError, match=r"give \(N, D\) and \(M, D\)"):
        EmbeddingScores(np.ones((2, 1)), np.ones((2, 3)))
