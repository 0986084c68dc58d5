"""The cosine similarity against a loop over pairs that sees no padding."""

import pytest
import torch
import torch.nn.functional as F

from l2rm.similarity.cosine import Cosine
from l2rm.similarity.settings import DataShape, ModelConfig

LENGTHS = torch.tensor([4, 1, 6])


@pytest.fixture(params=["gru", "bag"])
def model(request):
    torch.manual_seed(0)
    config = ModelConfig(similarity="cosine", embed_dim=8, word_dim=4, caption_tower=request.param)
    return Cosine(config, DataShape(image_dim=5, regions=3, vocabulary_size=12)).eval()


def inputs():
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(1, 12, (3, 6), generator=generator)
    tokens[torch.arange(6) >= LENGTHS[:, None]] = 0
    return torch.randn(4, 3, 5, generator=generator), tokens


def test_is_the_cosine_of_the_means_each_caption_at_its_length(model):
    images, tokens = inputs()
    S = model(images, tokens, LENGTHS)
    for i, image in enumerate(images):
        regions = F.normalize(model.image_tower.project(image), dim=1)
        for j, length in enumerate(LENGTHS.tolist()):
            words = model.caption_tower(tokens[j : j + 1, :length], LENGTHS[j : j + 1])[0]
            expected = F.cosine_similarity(regions.mean(0), words.mean(0), dim=0)
            assert S[i, j].item() == pytest.approx(expected.item(), abs=1e-5)


def test_stays_in_its_range_and_further_padding_changes_nothing(model):
    images, tokens = inputs()
    S = model(images, tokens, LENGTHS)
    low, high = model.range
    assert S.min() >= low - 1e-6
    assert S.max() <= high + 1e-6
    torch.testing.assert_close(model(images, F.pad(tokens, (0, 5)), LENGTHS), S)


def test_gradient_reaches_every_parameter_and_is_finite(model):
    images, tokens = inputs()
    model(images, tokens, LENGTHS).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
