import torch

from l2rm.rematching.cost import LinearCost, known_match_loss


def similarities(rows=6, columns=4, seed=0):
    return torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)) * 2 - 0.5


def test_starts_as_one_minus_similarity_and_never_negative():
    S = torch.tensor([[0.2, 1.0, 1.7], [-1.0, 0.0, 0.5]])
    torch.testing.assert_close(LinearCost(3)(S), torch.tensor([[0.8, 0.0, 0.0], [2.0, 1.0, 0.5]]))


def test_mixes_the_captions_of_a_batch_by_its_weights():
    cost = LinearCost(4)
    with torch.no_grad():
        cost.weight.copy_(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
        cost.bias.copy_(torch.tensor([0.1, 0.2, 0.3, 0.4]))
    S = similarities()
    W, b = cost.weight.tolist(), cost.bias.tolist()
    for i, row in enumerate(S.tolist()):
        for j in range(4):
            expected = max(0.0, sum(row[k] * W[j][k] for k in range(4)) + b[j])
            assert abs(cost(S)[i, j].item() - expected) < 1e-5


def test_smaller_batch_uses_the_leading_block():
    cost, small = LinearCost(4), LinearCost(2)
    with torch.no_grad():
        cost.weight.copy_(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
        small.weight.copy_(cost.weight[:2, :2])
    S = similarities(columns=2)
    torch.testing.assert_close(cost(S), small(S))


def test_loss_is_the_sum_over_known_cells_and_a_step_lowers_it():
    cost = LinearCost(4)
    S, own = similarities(rows=3), torch.tensor([2, 0, 3])
    loss = known_match_loss(cost, S, own)
    assert abs(loss.item() - sum(cost(S)[i, j].item() for i, j in enumerate(own.tolist()))) < 1e-6
    optimiser = torch.optim.SGD(cost.parameters(), lr=0.01)
    loss.backward()
    optimiser.step()
    assert known_match_loss(cost, S, own) < loss


def test_what_is_hardly_taken_as_matched_hardly_counts():
    cost, S, own = LinearCost(4), similarities(rows=3), torch.tensor([2, 0, 3])
    weights = torch.tensor([0.5, 1.0, 0.25, 0.0])
    charged = [weights[j].item() * cost(S)[i, j].item() for i, j in enumerate(own.tolist())]
    assert abs(known_match_loss(cost, S, own, weights).item() - sum(charged)) < 1e-6
    assert charged[2] == 0
