"""The cheap score against loops over pairs, words and regions."""

import pytest
import torch

from l2rm.similarity import first_pass as module
from l2rm.similarity.first_pass import FirstPass
from l2rm.similarity.model import Encoded


@pytest.fixture
def encoded():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, 1, 5, 2, 5, 4, 1])
    words = torch.randn(7, 5, 6, generator=generator) * (torch.arange(5) < lengths[:, None])[..., None]
    images = Encoded(torch.randn(4, 6, generator=generator), torch.randn(4, 3, 6, generator=generator))
    return images, Encoded(torch.randn(7, 6, generator=generator), words, lengths)


@pytest.fixture
def first_pass():
    torch.manual_seed(0)
    made = FirstPass(6)
    for layer in (made.image, made.caption, made.region, made.word):
        torch.nn.init.normal_(layer.bias)
    return made


def by_hand(first_pass: FirstPass, images: Encoded, captions: Encoded, i: int, c: int) -> torch.Tensor:
    words = captions.local[c, : captions.lengths[c]]
    image = first_pass.image(torch.cat([images.whole[i], images.local[i].mean(0)]))
    caption = first_pass.caption(torch.cat([captions.whole[c], words.mean(0)]))
    total = image @ caption
    for word in words:
        total = total + max(first_pass.region(region) @ first_pass.word(word) for region in images.local[i])
    return total


@pytest.mark.parametrize("captions_at_once", [1, 3, 32])
@pytest.mark.parametrize("numbers", [1, 40, 2**20])
def test_scores_are_what_the_formula_says(first_pass, encoded, monkeypatch, captions_at_once, numbers):
    monkeypatch.setattr(module, "AT_ONCE", captions_at_once)
    monkeypatch.setattr(module, "at_once", lambda _: numbers)
    wanted = torch.stack(
        [torch.stack([by_hand(first_pass, *encoded, i, c) for c in range(7)]) for i in range(4)]
    ).detach()
    torch.testing.assert_close(first_pass.score(*encoded), wanted, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(first_pass(*encoded).detach(), wanted, atol=1e-5, rtol=1e-5)


def test_half_precision_encodings_are_taken(first_pass, encoded):
    images, captions = encoded
    rough = (
        Encoded(images.whole.bfloat16(), images.local.bfloat16()),
        Encoded(captions.whole.bfloat16(), captions.local.bfloat16(), captions.lengths),
    )
    found = first_pass.score(*rough)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, first_pass.score(*encoded), atol=0.3, rtol=0.05)


def test_every_weight_learns(first_pass, encoded):
    first_pass(*encoded).square().sum().backward()
    for name, weight in first_pass.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.abs().max() > 0, name
