import pytest
import torch

from l2rm.encoders.towers import BagTower, RegionTower, VectorTower, WordTower, l2_normalise
from l2rm.errors import InputError


def test_l2_makes_unit_vectors_and_leaves_zero_with_a_finite_gradient():
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    y = l2_normalise(x)
    torch.testing.assert_close(y, torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    y[0].sum().backward()
    assert x.grad.isfinite().all()
    torch.testing.assert_close(l2_normalise(torch.ones(4, 2), dim=0).norm(dim=0), torch.ones(2))


def test_regions_become_unit_vectors_and_a_whole_image_is_one_region():
    tower, images = RegionTower(5, 8), torch.randn(3, 4, 5)
    regions = tower(images)
    assert regions.shape == (3, 4, 8)
    torch.testing.assert_close(regions.norm(dim=-1), torch.ones(3, 4))
    torch.testing.assert_close(tower(images[:, 1]), regions[:, 1:2])


def gru_by_hand(gru, words, suffix):
    """States of one direction of a one-layer GRU, by its equations."""
    W, U, b, c = (getattr(gru, f"{name}_l0{suffix}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    state, states = torch.zeros(U.shape[1]), []
    for word in words:
        reset, update, new = (W @ word + b).chunk(3)
        reset_h, update_h, new_h = (U @ state + c).chunk(3)
        r, z = torch.sigmoid(reset + reset_h), torch.sigmoid(update + update_h)
        n = torch.tanh(new + r * new_h)
        state = (1 - z) * n + z * state
        states.append(state)
    return torch.stack(states)


def test_words_are_the_mean_of_both_directions_at_the_true_length():
    torch.manual_seed(0)
    tower = WordTower(12, 4, 6, dropout=0.5).eval()
    tokens, lengths = torch.tensor([[5, 3, 0, 0], [1, 2, 3, 4], [7, 0, 0, 0]]), torch.tensor([2, 4, 1])
    words = tower(tokens, lengths)
    assert words.shape == (3, 4, 6)
    for caption, length, result in zip(tokens, lengths.tolist(), words, strict=True):
        embedded = tower.embed.weight[caption[:length]]
        forward = gru_by_hand(tower.gru, embedded, "")
        backward = gru_by_hand(tower.gru, embedded.flip(0), "_reverse").flip(0)
        torch.testing.assert_close(result[:length], l2_normalise((forward + backward) / 2), rtol=1e-4, atol=1e-5)
        assert not result[length:].any()


def test_word_embeddings_start_small_and_lengths_are_needed():
    tower = WordTower(50, 30, 6, dropout=0.0)
    assert 0.09 < tower.embed.weight.abs().max() <= 0.1
    with pytest.raises(InputError, match="length of each caption"):
        tower(torch.ones(2, 3, dtype=torch.long), None)


def test_a_bag_knows_each_word_alone_and_padding_stays_zero():
    tower = BagTower(12, 6, dropout=0.0)
    tokens = torch.tensor([[5, 3, 0], [3, 5, 7]])
    words = tower(tokens)
    torch.testing.assert_close(words[0, :2], words[1, :2].flip(0))
    assert not words[0, 2].any()
    words.sum().backward()
    assert not tower.embed.weight.grad[0].any()


def test_embeddings_become_captions_of_one_unit_word():
    words = VectorTower(5, 8)(torch.randn(3, 5))
    assert words.shape == (3, 1, 8)
    torch.testing.assert_close(words.norm(dim=-1), torch.ones(3, 1))
