"""What the equivariant cost promises, whatever its weights are; and that it learns."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from l2rm.rematching.equivariant import Context, EquivariantCost, known_pairs_loss

SIZES = st.tuples(st.integers(1, 7), st.integers(1, 7))
SEEDS = st.integers(0, 10_000)


def similarities(size, seed):
    return torch.rand(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def any_cost(seed, tau=0.1):
    """A cost of whatever weights."""
    generator = torch.Generator().manual_seed(seed)
    cost = EquivariantCost(tau).double()
    with torch.no_grad():
        for part in cost.parameters():
            part.copy_(2 * torch.randn(part.shape, generator=generator))
    return cost


def planted(seed, images=64, captions=64, matches=8):
    """Similarities of which a few cells are matches: higher than others, with rows and columns of different levels."""
    generator = torch.Generator().manual_seed(seed)
    S = 0.1 * torch.randn(images, captions, generator=generator)
    S += 0.2 * torch.randn(images, 1, generator=generator) + 0.2 * torch.randn(1, captions, generator=generator)
    match = torch.zeros(images, captions)
    match[torch.randperm(images, generator=generator)[:matches], torch.randperm(captions)[:matches]] = 1
    return S + 0.35 * match, match


@given(size=SIZES, seed=SEEDS)
def test_another_order_of_images_and_captions_gives_the_same_costs_in_that_order(size, seed):
    S, cost = similarities(size, seed), any_cost(seed)
    generator = torch.Generator().manual_seed(seed)
    rows, columns = (torch.randperm(n, generator=generator) for n in size)
    torch.testing.assert_close(cost(S[rows][:, columns]), cost(S)[rows][:, columns])


@given(size=SIZES, seed=SEEDS, times=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_a_repeated_batch_has_the_same_costs(size, seed, times):
    S, cost = similarities(size, seed), any_cost(seed)
    torch.testing.assert_close(cost(S.repeat(times)), cost(S).repeat(times))


@given(size=SIZES, seed=SEEDS, rise=st.floats(0, 3))
def test_where_a_similarity_rises_its_cost_does_not(size, seed, rise):
    S, cost = similarities(size, seed), any_cost(seed)
    row, column = seed % size[0], seed % size[1]
    higher = S.clone()
    higher[row, column] += rise
    assert cost.log_odds(higher)[row, column] >= cost.log_odds(S)[row, column] - 1e-9


@given(size=SIZES, seed=SEEDS)
def test_equal_similarities_cost_the_same_and_every_cost_is_a_probability(size, seed):
    cost = any_cost(seed)
    costs = cost(similarities(size, seed))
    assert ((costs >= 0) & (costs <= 1)).all()
    flat = cost(torch.full(size, 0.3, dtype=torch.float64))
    torch.testing.assert_close(flat, flat[:1, :1].expand(size))


@given(seed=SEEDS, n=st.integers(1, 9), k=st.integers(1, 5))
def test_features_by_plain_loops(seed, n, k):
    generator = np.random.default_rng(seed)
    reference, asked = generator.integers(-3, 4, (2, n)) / 4, generator.integers(-3, 4, (2, k)) / 4  # with ties
    context = Context.of(torch.from_numpy(reference), 0.5)
    found = context.features(torch.from_numpy(asked))
    for item in range(2):
        for place in range(k):
            s = asked[item, place]
            for feature, t in zip(found, (0.5, 0.125), strict=False):
                level = t * math.log(sum(math.exp(other / t) for other in reference[item]) / n)
                assert float(feature[item, place]) == pytest.approx(s - level, abs=1e-9)
            share = sum(1.0 if other > s else 0.5 if other == s else 0.0 for other in reference[item]) / n
            assert float(found[2][item, place]) == pytest.approx(-math.log(max(share, 0.5 / n)), abs=1e-9)


def test_a_peaked_row_costs_less_than_a_flat_one_of_the_same_similarity():
    S = torch.tensor([[0.5, 0.0, 0.0, 0.0], [0.5, 0.5, 0.5, 0.4], [0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    costs = EquivariantCost(0.1)(S)
    assert costs[0, 0] < costs[1, 0]


def test_batches_of_other_sizes_come_to_much_the_same_costs():
    """The same 40 images and captions beside 40, 120 and 360 others of one distribution."""
    S, cost = 0.1 * torch.randn(400, 400, generator=torch.Generator().manual_seed(0)), EquivariantCost(0.1)
    costs = [cost(S[:n, :n])[:40, :40].detach() for n in (80, 160, 400)]
    spread = float(costs[2].std())
    assert float((costs[1] - costs[2]).abs().mean()) < 0.05 * spread
    assert float((costs[0] - costs[2]).abs().mean()) < 0.1 * spread


def test_every_weight_is_told_something_and_gradients_are_right():
    S, match = planted(0, images=5, captions=6, matches=2)
    cost = any_cost(3)
    known_pairs_loss(cost.log_odds(S.double()), match.double(), 1 - match.double()).backward()
    assert all(part.grad.isfinite().all() and part.grad.abs().sum() > 0 for part in cost.parameters())
    S = S.double().requires_grad_()
    weights = torch.randn(5, 6, dtype=torch.float64)
    (cost(S) * weights).sum().backward()
    with torch.no_grad():
        for row, column in ((0, 0), (3, 4)):
            shift = torch.zeros_like(S)
            shift[row, column] = 1e-6
            slope = ((cost(S + shift) - cost(S - shift)) * weights).sum() / 2e-6
            assert float(S.grad[row, column]) == pytest.approx(float(slope), abs=1e-5)


def learned(steps=300, **sizes):
    torch.manual_seed(0)
    cost = EquivariantCost(0.1)
    optimiser = torch.optim.Adam(cost.parameters(), lr=0.02)
    for step in range(steps):
        S, match = planted(step, **sizes)
        loss = known_pairs_loss(cost.log_odds(S), match, 1 - match)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return cost


def auroc(score, match):
    positive, negative = score[match > 0], score[match == 0]
    return float((positive[:, None] > negative[None, :]).float().mean())


def test_it_learns_to_tell_matches_by_row_and_column_where_similarity_alone_cannot():
    cost = learned()
    by_cost, by_similarity = [], []
    for seed in range(1000, 1010):
        S, match = planted(seed)
        by_cost.append(auroc(-cost(S).detach(), match))
        by_similarity.append(auroc(S, match))
    assert np.mean(by_similarity) < 0.9
    assert np.mean(by_cost) > 0.97
    S, match = planted(2000, images=23, captions=97, matches=3)  # another size than it has learned from
    assert auroc(-cost(S).detach(), match) > 0.95


def test_nothing_is_a_minimum_that_does_not_tell_pairs_apart():
    S, match = planted(0)
    told = [float(known_pairs_loss(torch.full_like(S, odds), match, 1 - match)) for odds in (-20, -2, 0, 2, 20)]
    assert min(told) == told[2] == pytest.approx(math.log(2))
    assert told[4] > 9  # a cost of (almost) zero everywhere
    cost = learned(100)
    assert float(known_pairs_loss(cost.log_odds(S), match, 1 - match).detach()) < 0.5
    with torch.no_grad():  # zero everywhere: the loss leads away from it
        cost.bias.fill_(20.0)
    known_pairs_loss(cost.log_odds(S), match, 1 - match).backward()
    assert cost.bias.grad > 0.1


def test_loss_by_the_formula_and_without_known_matches():
    odds = torch.tensor([[0.3, -1.0], [2.0, 0.0]])
    match, others = torch.tensor([[0.5, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [2.0, 0.0]])
    C = torch.sigmoid(-odds)
    expected = -0.5 * (0.5 * (1 - C[0, 0]).log() + (1 - C[1, 1]).log()) / 1.5
    expected += -0.5 * (C[0, 1].log() + 2 * C[1, 0].log()) / 3
    torch.testing.assert_close(known_pairs_loss(odds, match, others), expected)
    alone = known_pairs_loss(odds, torch.zeros(2, 2), others)
    torch.testing.assert_close(alone, -0.5 * (C[0, 1].log() + 2 * C[1, 0].log()) / 3)
