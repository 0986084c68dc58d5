"""The cosine similarity against a loop over pairs that sees no padding."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from l2rm.similarity.cosine import Cosine
from l2rm.similarity.settings import DataShape, ModelConfig

LENGTHS = torch.tensor([4, 1, 6])


def make(**config):
    torch.manual_seed(0)
    config = ModelConfig(similarity="cosine", embed_dim=8, word_dim=4, **config)
    return Cosine(config, DataShape(image_dim=5, regions=3, vocabulary_size=12)).eval()


@pytest.fixture(params=["gru", "bag"])
def model(request):
    return make(caption_tower=request.param)


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


def test_scores_of_pairs_are_entries_of_all_scores_with_the_same_gradients(model):
    images, tokens = inputs()
    row, column = torch.tensor([3, 0, 0, 1]), torch.tensor([0, 2, 2, 1])  # one pair comes twice
    outer = torch.tensor([1.0, -2.0, 0.5, 3.0])
    found = []
    for one_by_one in (True, False):
        encoded = model.encode_images(images), model.encode_captions(tokens, LENGTHS)
        if one_by_one:
            scores = model.score_pairs(encoded[0].take(row), encoded[1].take(column))
        else:
            scores = model.score(*encoded)[row, column]
        found.append((scores, torch.autograd.grad(scores, list(model.parameters()), outer)))
    (ours, told), (theirs, expected) = found
    assert ours.shape == (4,)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(told, expected, rtol=1e-4, atol=1e-5)


def test_pairs_stand_alone_in_any_mode(model):
    assert model.train().pairs_stand_alone
    assert model.eval().pairs_stand_alone


@settings(max_examples=10, deadline=None)
@given(image_order=st.permutations(range(4)), caption_order=st.permutations(range(3)))
def test_scores_move_with_their_images_and_captions(image_order, caption_order):
    model = make()
    images, tokens = inputs()
    with torch.no_grad():
        moved = model(images[list(image_order)], tokens[list(caption_order)], LENGTHS[list(caption_order)])
        torch.testing.assert_close(moved, model(images, tokens, LENGTHS)[image_order][:, caption_order])


def test_products_in_bfloat16_leave_scores_and_gradients_float32_and_close():
    images, tokens = inputs()
    found = []
    for precision in ("float32", "bfloat16"):
        model = make(precision=precision)
        scores = model(images, tokens, LENGTHS)
        scores[0].sum().backward()
        assert scores.dtype == torch.float32
        assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
        found.append((scores, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])))
    (exact, direction), (rough, rough_direction) = found
    torch.testing.assert_close(rough, exact, rtol=0, atol=3e-2)
    assert not torch.equal(rough, exact)
    assert F.cosine_similarity(direction, rough_direction, dim=0) > 0.9
