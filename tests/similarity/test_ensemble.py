"""An ensemble scores as the mean of its members, whatever they are."""

import pytest
import torch

from l2rm.similarity.model import build_model
from l2rm.similarity.settings import DataShape, ModelConfig

SHAPE = DataShape(image_dim=5, regions=4, vocabulary_size=12)


def built(similarity, networks=2):
    torch.manual_seed(0)
    config = ModelConfig(similarity=similarity, embed_dim=8, word_dim=6, similarity_dim=4, graph_steps=2)
    return build_model(config, SHAPE, networks=networks).eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    tokens = torch.randint(1, 12, (6, 5))
    lengths = torch.tensor([5, 3, 1, 4, 2, 5])
    tokens[torch.arange(5)[None, :] >= lengths[:, None]] = 0
    return torch.randn(3, 4, 5), tokens, lengths


@pytest.mark.parametrize("similarity", ["cosine", "sgr", "saf"])
def test_score_is_the_mean_of_the_members(similarity, batch):
    model = built(similarity)
    expected = torch.stack([member(*batch) for member in model.members]).mean(0)
    assert not torch.allclose(model.members[0](*batch), model.members[1](*batch))
    torch.testing.assert_close(model(*batch), expected)
    images, captions = model.encode_images(batch[0]), model.encode_captions(*batch[1:])
    row, column = torch.tensor([0, 2, 1]), torch.tensor([5, 0, 3])
    pairs = model.score_pairs(images.take(row), captions.take(column))
    torch.testing.assert_close(pairs, expected[row, column])
    assert model.pairs_stand_alone
    assert model.range == model.members[0].range


def test_one_network_is_no_ensemble():
    model = built("cosine", networks=1)
    assert model.members == (model,)


def test_weights_come_back(batch):
    one, other = built("cosine"), built("cosine")
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(*batch), other(*batch))
