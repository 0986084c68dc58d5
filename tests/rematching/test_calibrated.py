"""The equivariant cost over a data set, against the same cost on a whole matrix, and what it finds."""

import numpy as np
import pytest
import torch

from l2rm.rematching.calibrated import Calibrated, learn_cost
from l2rm.rematching.candidates import nearest_images
from l2rm.rematching.equivariant import EquivariantCost, known_pairs_loss
from l2rm.rematching.partners import find_partners


class Matrix:
    """Scores that lie in a matrix (images, captions)."""

    def __init__(self, S: torch.Tensor) -> None:
        self.S = S
        self.n_images, self.n_captions = S.shape

    def block(self, images, captions):
        return self.S[torch.from_numpy(images)][:, torch.from_numpy(captions)]


def hubs(seed: int, size: int = 240) -> tuple[Matrix, np.ndarray]:
    """Caption i is of image i; some images are liked by all captions. A third of the captions is given other images."""
    generator = torch.Generator().manual_seed(seed)
    S = 0.1 * torch.randn(size, size, generator=generator) + 0.35 * torch.eye(size)
    S += 0.15 * torch.randn(size, 1, generator=generator)
    given = np.arange(size)
    moved = np.arange(0, size, 3)
    given[moved] = np.roll(moved, 1)
    return Matrix(S), given


def test_candidates_cost_what_they_do_in_the_whole_matrix():
    scores, _ = hubs(0, 60)
    images = np.arange(60)
    cost = EquivariantCost(0.1)
    calibrated = Calibrated.of(cost, scores, images, images, seed=0)  # samples of all there is
    found = nearest_images(scores, candidates=7)
    odds = cost.log_odds(scores.S).detach().numpy()
    expected = odds[found.images, np.arange(60)[:, None]]
    np.testing.assert_allclose(calibrated.log_odds(scores, found.scores, found.images), expected, atol=1e-4)
    again = calibrated.candidates(scores, found)
    assert (np.diff(again.scores, axis=1) <= 0).all()
    for caption in range(60):
        assert set(again.images[caption]) == set(found.images[caption])
        np.testing.assert_allclose(again.scores[caption], odds[again.images[caption], caption], atol=1e-4)


def test_places_without_a_candidate_stay_without():
    scores, _ = hubs(1, 30)
    found = nearest_images(scores, candidates=3, images=np.arange(3), forbidden=np.zeros(30, dtype=np.int64))
    calibrated = Calibrated.of(EquivariantCost(0.1), scores, np.arange(3), np.arange(30), seed=0)
    again = calibrated.candidates(scores, found)
    assert (again.images[:, 2] == -1).all()
    assert np.isneginf(again.scores[:, 2]).all()
    assert np.isfinite(again.scores[:, :2]).all()


def test_a_learned_cost_sees_through_images_that_all_captions_like():
    scores, _ = hubs(2)
    own = np.arange(240)
    cost = learn_cost(scores, own, own, tau=0.1, seed=0)
    other, _ = hubs(3)
    with torch.no_grad():
        by_cost = (cost.log_odds(other.S).argmax(0).numpy() == own).mean()
    by_similarity = (other.S.argmax(0).numpy() == own).mean()
    assert by_cost > by_similarity + 0.05


@pytest.mark.parametrize("level", ["caption", "image"])
def test_partners_are_found_and_their_confidence_is_not_too_high(level):
    scores, given = hubs(4)
    probability = np.where(given == np.arange(240), 0.98, 0.02)
    wrong = probability < 0.5
    hits = {}
    for cost in ("linear", "equivariant"):
        found = find_partners(scores, given, probability, capacity=1, level=level, share=1.0, cost=cost, tau=0.1)
        assert found.plan.converged
        assert (found.suggested[wrong, 0] != given[wrong]).all()
        assert (found.suggested[~wrong, 0] == -1).all()
        hits[cost] = (found.suggested[:, 0] == np.arange(240))[wrong].mean()
        assert found.confidence[wrong].mean() < hits[cost] + 0.1
    assert hits["equivariant"] >= hits["linear"] - 0.05
    assert hits["equivariant"] > 0.6


def test_the_same_seed_learns_the_same_and_few_matched_pairs_teach_nothing():
    scores, given = hubs(5)
    probability = np.where(given == np.arange(240), 0.98, 0.02)
    one, two = (find_partners(scores, given, probability, cost="equivariant", tau=0.1, seed=7) for _ in range(2))
    assert (one.suggested == two.suggested).all()
    assert one.reg == two.reg
    few = np.where(np.arange(240) < 10, 0.98, 0.02)
    linear, equivariant = (find_partners(scores, given, few, cost=cost, tau=0.1) for cost in ("linear", "equivariant"))
    assert (linear.suggested == equivariant.suggested).all()


class Asked(Matrix):
    """Remembers which blocks were asked for."""

    def __init__(self, S):
        super().__init__(S)
        self.blocks = []

    def block(self, images, captions):
        self.blocks.append((images, captions))
        return super().block(images, captions)


@pytest.mark.parametrize("captions", [5, 29, 400])
def test_a_lesson_holds_the_own_image_of_a_tenth_of_its_captions(captions):
    scores = Asked(torch.randn(900, captions, generator=torch.Generator().manual_seed(0)))
    own, others = np.arange(captions), np.arange(400, 900)
    learn_cost(scores, own, others, tau=0.1, seed=0)
    for images, some in scores.blocks:
        assert len(np.unique(some)) == len(some) == min(captions, 256)
        assert np.isin(images, own[some]).sum() == max(1, len(some) // 10)
        assert np.isin(images, others).sum() == min(len(some), 500)
        assert len(np.unique(images)) == len(images)
    assert len({tuple(some) for _, some in scores.blocks}) > 1


def test_what_is_known_to_match_is_not_taught_as_a_mismatch(monkeypatch):
    taught = []

    def loss(log_odds, matched, others):
        taught.append((matched, others))
        return known_pairs_loss(log_odds, matched, others)

    monkeypatch.setattr("l2rm.rematching.calibrated.known_pairs_loss", loss)
    scores, _ = hubs(0, 120)
    learn_cost(scores, np.arange(60), np.arange(60, 120), tau=0.1, seed=0)
    for matched, others in taught:
        assert matched.sum() == 6
        torch.testing.assert_close(matched + others, torch.ones_like(matched))
