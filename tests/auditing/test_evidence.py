"""Losses and suggestions against plain loops over the whole matrix."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2rm.auditing.evidence import gather_evidence
from l2rm.errors import InputError
from l2rm.evaluation.scores import MatrixScores


def pair_loss(S: np.ndarray, image: int, caption: int, images: list[int], captions: list[int], margin: float) -> float:
    own = S[image, caption]
    rows = [max(0.0, margin + S[image, j] - own) for j in captions]
    columns = [max(0.0, margin + S[k, caption] - own) for k in images if k != image]
    return (float(np.mean(rows)) if rows else 0.0) + (float(np.mean(columns)) if columns else 0.0)


@st.composite
def data_sets(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n_images = draw(st.integers(2, 8))
    image_of = np.array(draw(st.lists(st.integers(0, n_images - 1), min_size=1, max_size=15)))
    cells = draw(st.lists(st.integers(-3, 3), min_size=n_images * len(image_of), max_size=n_images * len(image_of)))
    return np.array(cells, dtype=np.float32).reshape(n_images, -1) / 4, image_of


@settings(max_examples=120, deadline=None)
@given(data_sets(), st.integers(1, 4), st.integers(1, 5), st.integers(1, 6))
def test_evidence_is_that_of_plain_loops(
    data: tuple[np.ndarray, np.ndarray], block_images: int, block_captions: int, keep: int
) -> None:
    S, image_of = data
    n_images, rows = S.shape
    found = gather_evidence(
        MatrixScores(S), image_of, candidates=keep, block_images=block_images, block_captions=block_captions
    )
    everyone = list(range(n_images))
    for row, image in enumerate(image_of.tolist()):
        others = [j for j in range(rows) if image_of[j] != image]
        assert found.losses[row] == pytest.approx(pair_loss(S, image, row, everyone, others, 0.2), abs=1e-6)

        ranked = sorted((k for k in everyone if k != image), key=lambda k: (-S[k, row], k))
        assert found.candidates[row].tolist() == ranked[:keep]

        best = max(others, key=lambda j: (S[image, j], -j), default=-1)
        assert found.best_caption[row] == best

        strangers = [j for j in others if image_of[j] != ranked[0]]
        expected = pair_loss(S, ranked[0], row, everyone, strangers, 0.2)
        assert found.suggestion_losses[row] == pytest.approx(expected, abs=1e-6)


def test_a_sample_of_negatives_is_fixed_by_the_seed_alone() -> None:
    generator = np.random.default_rng(0)
    S, image_of = generator.normal(size=(60, 150)), generator.integers(0, 60, 150)
    one = gather_evidence(MatrixScores(S), image_of, sample=30, seed=3, block_images=7, block_captions=11)
    two = gather_evidence(MatrixScores(S), image_of, sample=30, seed=3)
    other = gather_evidence(MatrixScores(S), image_of, sample=30, seed=4)
    whole = gather_evidence(MatrixScores(S), image_of)
    np.testing.assert_allclose(one.losses, two.losses, rtol=1e-12)
    np.testing.assert_allclose(one.suggestion_losses, two.suggestion_losses, rtol=1e-12)
    assert np.abs(one.losses - other.losses).max() > 0.01
    assert np.corrcoef(one.losses, whole.losses)[0, 1] > 0.95  # the sample stands for the whole
    np.testing.assert_array_equal(one.candidates, whole.candidates)  # suggestions look at everything


def test_sampled_losses_match_a_loop_over_the_same_sample() -> None:
    generator = np.random.default_rng(1)
    S, image_of = generator.normal(size=(20, 40)).astype(np.float32), generator.integers(0, 20, 40)
    found = gather_evidence(MatrixScores(S), image_of, sample=9, seed=5, block_images=6, block_captions=7)
    draw = np.random.default_rng(5)
    images = np.sort(draw.choice(20, size=9, replace=False)).tolist()
    captions = np.sort(draw.choice(40, size=9, replace=False)).tolist()
    for row, image in enumerate(image_of.tolist()):
        others = [j for j in captions if image_of[j] != image]
        assert found.losses[row] == pytest.approx(pair_loss(S, image, row, images, others, 0.2), abs=1e-5)


class OnceOnly:
    """Refuses to give a cell twice, or much at once."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.inner = MatrixScores(matrix)
        self.n_images, self.n_captions = matrix.shape
        self.asked = np.zeros(matrix.shape, dtype=int)

    def block(self, images: np.ndarray, captions: np.ndarray) -> torch.Tensor:
        assert len(images) <= 4
        assert len(captions) <= 5
        self.asked[np.ix_(images, captions)] += 1
        return self.inner.block(images, captions)


def test_every_score_is_asked_for_once() -> None:
    scores = OnceOnly(np.random.default_rng(0).normal(size=(11, 23)))
    gather_evidence(scores, np.arange(23) % 11, block_images=4, block_captions=5)
    assert (scores.asked == 1).all()


@pytest.mark.parametrize(
    ("matrix", "candidates", "message"),
    [
        (np.ones((1, 3)), 10, "two images"),
        (np.zeros((3, 0)), 10, "0 pairs"),
        (np.array([[0.0, 1.0], [np.nan, 0.0]]), 10, "NaN for image 1 and caption 0"),
        (np.eye(3), 0, "candidates=0"),
    ],
)
def test_what_cannot_be_audited_is_told(matrix: np.ndarray, candidates: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        gather_evidence(MatrixScores(matrix), np.zeros(matrix.shape[1], dtype=int), candidates=candidates)
