"""Ranks and recalls against golden numbers and a full sort."""

from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from l2rm.errors import InputError
from l2rm.evaluation.metrics import Metrics, Recalls, evaluate_scores
from l2rm.evaluation.ranks import exact_ranks
from l2rm.evaluation.scores import EnsembleScores, KeptScores, MatrixScores, Scores

GOLDEN = Path(__file__).with_name("golden_metrics.npz")


def as_row(recalls: Recalls) -> list[float]:
    return [recalls.r1, recalls.r5, recalls.r10, recalls.medr, recalls.meanr]


@pytest.mark.parametrize(("name", "captions_an_image"), [("per5", 5), ("per1", 1)])
def test_golden_metrics(name: str, captions_an_image: int) -> None:
    with np.load(GOLDEN, allow_pickle=False) as golden:
        similarity, i2t, t2i = golden[f"{name}/similarity"], golden[f"{name}/i2t"], golden[f"{name}/t2i"]
    image_of = np.arange(similarity.shape[1]) // captions_an_image
    metrics = evaluate_scores(MatrixScores(similarity), image_of, block_images=64, block_captions=200)
    np.testing.assert_allclose(as_row(metrics.i2t), i2t, atol=1e-4)
    np.testing.assert_allclose(as_row(metrics.t2i), t2i, atol=1e-4)
    assert metrics.rsum == pytest.approx(i2t[:3].sum() + t2i[:3].sum(), abs=1e-4)


def ranks_by_sorting(matrix: np.ndarray, image_of: np.ndarray) -> tuple[list[int], list[int]]:
    """Sort whole rows and columns; among equals the partners come last, siblings of the best caption never matter."""
    i2t, t2i = [], []
    for image, row in enumerate(matrix):
        own = image_of == image
        if not own.any():
            i2t.append(-1)
            continue
        order = np.lexsort((own, -row))
        i2t.append(int(np.flatnonzero(own[order])[0]))
    for caption, column in enumerate(matrix.T):
        own = np.arange(len(matrix)) == image_of[caption]
        t2i.append(int(np.flatnonzero(own[np.lexsort((own, -column))])[0]))
    return i2t, t2i


@st.composite
def tied_data(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    n_images = draw(st.integers(1, 9))
    image_of = np.array(draw(st.lists(st.integers(0, n_images - 1), min_size=1, max_size=20)))
    cells = draw(st.lists(st.integers(-2, 3), min_size=n_images * len(image_of), max_size=n_images * len(image_of)))
    return np.array(cells).reshape(n_images, -1), image_of


@settings(max_examples=150, deadline=None)
@given(tied_data(), st.integers(1, 5), st.integers(1, 7), st.sampled_from([np.float32, np.int64, np.float16]))
def test_ranks_are_those_of_a_full_sort(
    data: tuple[np.ndarray, np.ndarray], block_images: int, block_captions: int, dtype: type
) -> None:
    matrix, image_of = data
    ranks = exact_ranks(
        MatrixScores(matrix.astype(dtype)), image_of, block_images=block_images, block_captions=block_captions
    )
    i2t, t2i = ranks_by_sorting(matrix, image_of)
    assert ranks.i2t.tolist() == i2t
    assert ranks.t2i.tolist() == t2i


def uneven(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    image_of = generator.integers(0, 40, size=130)
    return generator.integers(0, 30, size=(40, 130)).astype(np.float32), image_of


def test_order_of_images_and_captions_does_not_matter() -> None:
    matrix, image_of = uneven()
    images, captions = np.random.default_rng(1).permutation(40), np.random.default_rng(2).permutation(130)
    new_place = np.argsort(images)
    plain = evaluate_scores(MatrixScores(matrix), image_of)
    mixed = evaluate_scores(MatrixScores(matrix[np.ix_(images, captions)]), new_place[image_of[captions]])
    np.testing.assert_allclose(as_row(mixed.i2t) + as_row(mixed.t2i), as_row(plain.i2t) + as_row(plain.t2i))


class CountingScores:
    """Counts how often each cell is asked for, and the largest block."""

    def __init__(self, matrix: np.ndarray) -> None:
        self.inner = MatrixScores(matrix)
        self.n_images, self.n_captions = matrix.shape
        self.asked = np.zeros(matrix.shape, dtype=int)
        self.largest = 0
        self.columns: list[tuple[int, ...]] = []

    def block(self, images: np.ndarray, captions: np.ndarray) -> torch.Tensor:
        self.asked[np.ix_(images, captions)] += 1
        self.largest = max(self.largest, len(images) * len(captions))
        self.columns.append(tuple(captions.tolist()))
        return self.inner.block(images, captions)


def test_every_cell_is_asked_once_in_small_blocks() -> None:
    matrix, image_of = uneven()
    scores = CountingScores(matrix)
    assert isinstance(scores, Scores)
    small = evaluate_scores(scores, image_of, block_images=7, block_captions=20)
    assert (scores.asked == 1).all()
    assert scores.largest <= 7 * 20
    assert small == evaluate_scores(MatrixScores(matrix), image_of)
    groups = len(set(scores.columns))
    turns = [one for one, _ in groupby(scores.columns[groups:])]
    assert len(turns) == groups  # after the own blocks, the captions of a group pass all images in one go


def test_a_constant_model_comes_last() -> None:
    metrics = evaluate_scores(MatrixScores(np.full((6, 12), 0.5)), np.arange(12) // 2)
    assert as_row(metrics.t2i) == [0.0, 0.0, 100.0, 6.0, 6.0]
    assert as_row(metrics.i2t) == [0.0, 0.0, 0.0, 11.0, 11.0]


def test_an_image_without_caption_is_a_candidate_only() -> None:
    matrix = np.array([[0.9, 0.2], [0.8, 0.1], [0.95, 0.0]])
    metrics = evaluate_scores(MatrixScores(matrix), np.array([0, 1]))
    assert metrics.i2t.r1 == 50.0  # two images are ranked, not three
    assert metrics.t2i.meanr == 2.0  # the third image is ahead of the first caption's own
    assert (metrics.images, metrics.captions) == (3, 2)


def test_five_folds_are_the_mean_of_five_small_evaluations() -> None:
    matrix, _ = uneven(3)
    image_of = np.sort(np.concatenate([np.arange(40), np.random.default_rng(4).integers(0, 40, 90)]))
    folded = evaluate_scores(MatrixScores(matrix), image_of, protocol="folds5", block_images=3)
    parts: list[Metrics] = []
    for fold in range(5):
        rows = np.arange(fold * 8, fold * 8 + 8)
        columns = np.flatnonzero(np.isin(image_of, rows))
        parts.append(evaluate_scores(MatrixScores(matrix[np.ix_(rows, columns)]), image_of[columns] - fold * 8))
    for direction in ("i2t", "t2i"):
        mean = np.mean([as_row(getattr(part, direction)) for part in parts], axis=0)
        np.testing.assert_allclose(as_row(getattr(folded, direction)), mean)
    assert folded.rsum == pytest.approx(np.mean([part.rsum for part in parts]))
    assert (folded.protocol, folded.images, folded.captions) == ("folds5", 40, 130)


def test_folds_ask_for_no_cell_across_folds() -> None:
    scores = CountingScores(np.random.default_rng(0).normal(size=(10, 10)))
    evaluate_scores(scores, np.arange(10), protocol="folds5")
    assert (scores.asked == np.kron(np.eye(5, dtype=int), np.ones((2, 2), dtype=int))).all()


def test_dictionary_has_the_contract_names() -> None:
    found = evaluate_scores(MatrixScores(np.eye(3)), np.arange(3)).to_dict()
    assert list(found) == ["i2t", "t2i", "rsum", "protocol", "images", "captions"]
    assert list(found["i2t"]) == list(found["t2i"]) == ["r1", "r5", "r10", "medr", "meanr"]
    assert found["rsum"] == 600.0


def test_median_of_an_even_number_of_ranks_is_floored() -> None:
    assert Recalls.of(np.array([0, 1])).medr == 1.0  # floor(0.5) + 1
    assert Recalls.of(np.array([1, 4])).medr == 3.0  # floor(2.5) + 1


def test_ensemble_ranks_by_the_mean() -> None:
    one, two = np.random.default_rng(5).normal(size=(2, 6, 9))
    image_of = np.arange(9) % 6
    together = evaluate_scores(EnsembleScores([MatrixScores(one), MatrixScores(torch.tensor(two))]), image_of)
    assert together == evaluate_scores(MatrixScores((one + two) / 2), image_of)


def test_kept_scores_are_the_same_and_nan_is_still_found() -> None:
    matrix = np.random.default_rng(0).normal(size=(20, 60)).astype(np.float32)
    image_of = np.arange(60) // 3
    kept = KeptScores(MatrixScores(matrix))
    for protocol in ("folds5", "full", "full", "folds5"):  # parts first, then all, then from memory
        assert evaluate_scores(kept, image_of, protocol=protocol) == evaluate_scores(
            MatrixScores(matrix), image_of, protocol=protocol
        )
    matrix[3, 4] = np.nan
    with pytest.raises(InputError, match="NaN for image 3 and caption 4"):
        evaluate_scores(KeptScores(MatrixScores(matrix)), image_of)


def test_memory_mapped_and_foreign_endian_matrices_are_read(tmp_path: Path) -> None:
    matrix, image_of = uneven()
    np.save(tmp_path / "s.npy", matrix.astype(">f4"))
    mapped = np.load(tmp_path / "s.npy", mmap_mode="r")
    assert evaluate_scores(MatrixScores(mapped), image_of) == evaluate_scores(MatrixScores(matrix), image_of)


@pytest.mark.parametrize(
    ("matrix", "image_of", "protocol", "message"),
    [
        (np.array([[0.1, np.nan], [0.0, 1.0]]), np.arange(2), "full", "NaN for image 0 and caption 1"),
        (np.eye(3), np.arange(2), "full", "one image index a caption"),
        (np.eye(3), np.array([0.0, 1.0, 2.0]), "full", "float64"),
        (np.eye(3), np.array([0, 1, 3]), "full", "caption 2 belongs to image 3"),
        (np.eye(3), np.array([0, -1, 2]), "full", "caption 1 belongs to image -1"),
        (np.zeros((3, 0)), np.zeros(0, dtype=int), "full", "none of the 3 images"),
        (np.eye(6), np.arange(6), "folds5", "6 images do not make 5"),
        (np.eye(5), np.array([0, 1, 2, 3, 3]), "folds5", "no caption in fold 5"),
        (np.eye(5), np.arange(5), "5k", "'5k' is unknown"),
    ],
)
def test_wrong_input_is_told_in_one_line(matrix: np.ndarray, image_of: np.ndarray, protocol: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        evaluate_scores(MatrixScores(matrix), image_of, protocol=protocol)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_wrong_matrices_and_ensembles_are_told() -> None:
    with pytest.raises(InputError, match=r"\(3,\)"):
        MatrixScores(np.zeros(3))
    with pytest.raises(InputError, match="complex"):
        MatrixScores(np.zeros((2, 2), dtype=complex))
    with pytest.raises(InputError, match="no members"):
        EnsembleScores([])
    with pytest.raises(InputError, match="2 × 2, 2 × 3"):
        EnsembleScores([MatrixScores(np.zeros((2, 3))), MatrixScores(np.zeros((2, 2)))])
