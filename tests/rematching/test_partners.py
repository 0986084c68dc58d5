"""What is given and what is learned where partners are sought; whether they are right is asked in tests/auditing."""

import numpy as np
import pytest

from l2rm.evaluation.scores import MatrixScores
from l2rm.rematching.partners import find_partners


def clear(images: int = 60, suspects: int = 25, noise: float = 0.1) -> tuple[MatrixScores, np.ndarray, np.ndarray]:
    """Caption i is of image i; the first are given each other's images."""
    S = noise * np.random.default_rng(0).random((images, images)) + np.eye(images)
    given = np.arange(images)
    given[:suspects] = np.roll(given[:suspects], 1)
    return MatrixScores(S), given, np.where(np.arange(images) < suspects, 0.0, 1.0)


def test_where_every_image_is_a_candidate_nothing_says_whether_the_right_one_is_among_them() -> None:
    scores, given, probability = clear()
    found = find_partners(scores, given, probability, capacity=1)
    assert found.share == 0.5
    assert found.reg != 0.05  # that is learned all the same
    few = find_partners(scores, given, probability, capacity=1, candidates=5)
    assert few.share > 0.8
    np.testing.assert_array_equal(few.suggested[:25, 0], np.arange(25))


def test_what_is_given_is_not_learned() -> None:
    scores, given, probability = clear()
    found = find_partners(scores, given, probability, share=0.3, reg=0.2)
    assert (found.share, found.reg) == (0.3, 0.2)
    assert found.plan is not None
    assert found.plan.mass == pytest.approx(0.3 * 25, abs=1e-4)


def test_room_is_what_matched_captions_leave() -> None:
    scores, given, probability = clear()
    probability[:25] = 0.25
    found = find_partners(scores, given, probability, capacity=2, share=1.0)
    assert found.plan is not None
    np.testing.assert_allclose(found.plan.capacities, np.where(np.arange(60) < 25, 1.75, 1.0))
    np.testing.assert_allclose(found.plan.weights, 0.75)
    assert found.plan.mass == pytest.approx(0.98 * 0.75 * 25, rel=1e-3)  # all that fits, but for a little
    full = find_partners(scores, given, probability, capacity=1, below=0.2)
    assert full.plan is None  # none is below
    assert (full.suggested == -1).all()
    assert not full.confidence.any()


def test_of_a_large_control_group_some_are_drawn_by_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l2rm.rematching.partners.CONTROL", 22)
    scores, given, probability = clear(images=100, noise=2.0)
    one, again, other = (find_partners(scores, given, probability, seed=seed).reg for seed in (0, 0, 1))
    assert one == again != other


def test_images_without_room_are_no_candidates() -> None:
    S = 0.1 * np.random.default_rng(0).random((60, 60)) + np.eye(60)
    S[40:44] += 2.0  # liked by all captions, but full
    _, given, probability = clear()
    found = find_partners(MatrixScores(S), given, probability, capacity=1, candidates=3, share=0.9, reg=0.05)
    np.testing.assert_array_equal(found.suggested[:25, 0], np.arange(25))


def test_the_equivariant_cost_counts_though_nothing_else_is_to_be_learned() -> None:
    scores, given, probability = clear()
    options = {"capacity": 1, "candidates": 5, "share": 0.5, "reg": 0.5}
    linear = find_partners(scores, given, probability, **options)
    equivariant = find_partners(scores, given, probability, cost="equivariant", tau=0.1, **options)
    assert (equivariant.share, equivariant.reg) == (0.5, 0.5)
    assert linear.plan is not None
    assert equivariant.plan is not None
    assert abs(equivariant.plan.cost - linear.plan.cost) > 1
    np.testing.assert_array_equal(equivariant.suggested[:25, 0], np.arange(25))
