"""GPO against a plain loop, its invariances, and the mean of raw regions."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from l2rm.data.features import Features
from l2rm.errors import InputError
from l2rm.similarity.model import build_model
from l2rm.similarity.pooling import GeneralisedPooling, position_codes
from l2rm.similarity.settings import DataShape, ModelConfig
from l2rm.training.check import check_config
from l2rm.training.settings import TrainConfig


@pytest.fixture(scope="module")
def pool():
    torch.manual_seed(0)
    return GeneralisedPooling(8).eval()


def looped(pool, vectors):
    """θ by the GRU of a single unpadded sequence, then the sorted values one by one."""
    states, _ = pool.gru(position_codes(len(vectors), 8)[None])
    scores = [10 * float(pool.score(0.5 * (state[:8] + state[8:]))) for state in states[0]]
    total = sum(math.exp(score) for score in scores)
    columns = [sorted(column, reverse=True) for column in vectors.T.tolist()]
    return [sum(math.exp(s) / total * v for s, v in zip(scores, column, strict=True)) for column in columns]


def test_position_codes_against_the_formula():
    codes = position_codes(7, 6)
    for k in range(7):
        for i in range(0, 6, 2):
            angle = k / 10_000 ** (i / 6)
            assert float(codes[k, i]) == pytest.approx(math.sin(angle), abs=1e-6)
            assert float(codes[k, i + 1]) == pytest.approx(math.cos(angle), abs=1e-6)


@torch.no_grad()
def test_pooling_against_a_plain_loop(pool):
    vectors, lengths = torch.randn(4, 6, 5), torch.tensor([6, 1, 4, 4])
    found = pool(vectors, lengths)
    for item, length in enumerate(lengths):
        np.testing.assert_allclose(found[item], looped(pool, vectors[item, :length]), atol=1e-5)
    torch.testing.assert_close(pool(vectors), pool(vectors, torch.full((4,), 6)))
    torch.testing.assert_close(found[1], vectors[1, 0])  # a single vector is itself


@given(seed=st.integers(0, 1000))
@torch.no_grad()
def test_order_and_padding_do_not_matter(seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    pool = GeneralisedPooling(4)
    vectors, lengths = torch.randn(3, 5, 2, generator=generator), torch.tensor([5, 2, 3])
    expected = pool(vectors, lengths)
    shuffled = vectors.clone()
    for item, length in enumerate(lengths):
        shuffled[item, :length] = vectors[item, torch.randperm(int(length), generator=generator)]
        shuffled[item, length:] = torch.nan
    padded = torch.cat([shuffled, torch.full((3, 4, 2), 1e9)], dim=1)
    torch.testing.assert_close(pool(padded, lengths), expected)


def test_every_weight_is_learned_and_padding_gets_no_gradient(pool):
    vectors = torch.randn(2, 4, 3, requires_grad=True)
    pool(vectors, torch.tensor([4, 2])).square().sum().backward()
    assert (vectors.grad[1, 2:] == 0).all()
    assert (vectors.grad[0] != 0).all()
    assert all(parameter.grad.isfinite().all() for parameter in pool.parameters())
    assert float(pool.score.weight.grad.abs().sum()) > 0
    pool.zero_grad()


def test_weights_are_shares(pool):
    weights = pool.weights([3, 6, 1], 8)
    torch.testing.assert_close(weights.sum(1), torch.ones(3))
    assert (weights[0, 3:] == 0).all()
    assert (weights[0, :3] > 0).all()


# ------------------------------------------------------------------------------------------------------ in a model


def test_only_the_cosine_pools():
    config = TrainConfig(model=ModelConfig(similarity="sgr", pooling="gpo"))
    with pytest.raises(InputError, match=r"model\.pooling: sgr compares regions with words and pools neither"):
        check_config(config)


def model_of(pooling, caption_tower="gru", caption_dim=None):
    torch.manual_seed(0)
    shape = DataShape(image_dim=5, regions=4, vocabulary_size=None if caption_dim else 12, caption_dim=caption_dim)
    config = ModelConfig(similarity="cosine", pooling=pooling, embed_dim=8, word_dim=6, caption_tower=caption_tower)
    return build_model(config, shape).eval()


@pytest.mark.parametrize("pooling", ["mean", "gpo", "raw"])
@pytest.mark.parametrize("caption_tower", ["gru", "bag"])
@torch.no_grad()
def test_a_model_reads_each_caption_at_its_length_and_regions_in_any_order(pooling, caption_tower):
    model = model_of(pooling, caption_tower)
    images, tokens = torch.randn(3, 4, 5), torch.randint(4, 12, (2, 6))
    lengths = torch.tensor([6, 2])
    tokens[1, 2:] = 0
    S = model.similarity(images, tokens, lengths)
    assert S.shape == (3, 2)
    assert (S.abs() <= 1 + 1e-6).all()
    torch.testing.assert_close(model.similarity(images.flip(1), tokens, lengths), S)
    alone = model.similarity(images, tokens[1:, :2], lengths[1:])
    torch.testing.assert_close(alone, S[:, 1:])


@pytest.mark.parametrize("pooling", ["gpo", "raw"])
@torch.no_grad()
def test_vectors_on_both_sides(pooling):
    model = model_of(pooling, caption_dim=7)
    assert model.similarity(torch.randn(3, 5), torch.randn(2, 7)).shape == (3, 2)


@torch.no_grad()
def test_raw_pooling_commutes_with_the_projection():
    model = model_of("raw")
    images = torch.randn(3, 4, 5)
    weight, bias = model.image_tower.project.weight, model.image_tower.project.bias
    projected = torch.stack([torch.stack([weight @ region + bias for region in image]).mean(0) for image in images])
    expected = projected / projected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(model.encode_images(images).whole, expected)
    pooled = Features(array=images.numpy()).pooled()
    assert torch.equal(model.encode_images(pooled.batch(np.arange(3))).whole, model.encode_images(images).whole)
