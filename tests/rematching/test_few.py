"""Learning from few pairs against learning from all of them."""

from functools import partial

import pytest
import torch

from l2rm.rematching.few import few_pairs
from l2rm.rematching.objectives import max_violation, mean_violation
from l2rm.similarity.model import Encoded, build_model
from l2rm.similarity.settings import DataShape, ModelConfig

PAIRS = 7
LENGTHS = torch.tensor([3, 1, 4, 3, 4, 2, 4])
WEIGHTS = torch.tensor([1.0, 0.0, 0.3, 0.9, 0.0, 0.5, 1.0])


@pytest.fixture(params=["cosine", "sgr", "saf"])
def model(request):
    torch.manual_seed(0)
    config = ModelConfig(similarity=request.param, embed_dim=8, word_dim=6, similarity_dim=6, dropout=0)
    made = build_model(config, DataShape(image_dim=5, regions=3, vocabulary_size=20))
    return made.double().train(made.pairs_stand_alone)


def encoded(model, device="cpu"):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(PAIRS, 3, 5, generator=generator, dtype=torch.double)
    tokens = torch.randint(1, 20, (PAIRS, 4), generator=generator) * (torch.arange(4) < LENGTHS[:, None])
    return model.encode_images(images.to(device)), model.encode_captions(tokens.to(device), LENGTHS)


def learned(model, loss):
    """The loss, and what each parameter is told; nothing is not zero."""
    model.zero_grad()
    loss.backward()
    return loss.detach(), {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


def assert_same(ours, theirs):
    torch.testing.assert_close(ours[0], theirs[0])
    assert ours[1].keys() == theirs[1].keys()
    for name, told in ours[1].items():
        torch.testing.assert_close(told, theirs[1][name], rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize(
    "objective",
    [
        max_violation,
        partial(max_violation, margin=0.02),
        partial(max_violation, weights=WEIGHTS),
        mean_violation,
        torch.trace,
    ],
    ids=["hardest negatives", "few above the margin", "weighted", "all pairs", "matched pairs"],
)
def test_loss_and_every_gradient_are_those_of_all_pairs(model, objective):
    images, captions = encoded(model)
    ours = learned(model, few_pairs(model, images, captions, objective))
    theirs = learned(model, objective(model.score(*encoded(model))))
    assert any(told.any() for told in theirs[1].values())
    assert_same(ours, theirs)


def test_three_pairs_of_each_are_enough_for_the_hardest_negatives(model, monkeypatch):
    scored = []
    score_pairs = type(model).score_pairs
    monkeypatch.setattr(type(model), "score_pairs", lambda *given: scored.append(len(given[1])) or score_pairs(*given))
    few_pairs(model, *encoded(model), max_violation).backward()
    assert len(scored) == 1
    assert PAIRS <= scored[0] <= 3 * PAIRS


def test_all_similarities_are_found_without_gradient(model, monkeypatch):
    seen = []
    score = type(model).score
    monkeypatch.setattr(type(model), "score", lambda *given: seen.append(score(*given)) or seen[-1])
    few_pairs(model, *encoded(model), max_violation)
    (S,) = seen
    assert S.grad_fn is None


@pytest.mark.parametrize("pairs", [PAIRS, 1])
def test_a_batch_without_loss_tells_every_parameter_zero_as_all_pairs_would(model, pairs):
    """Told nothing, a parameter would stand still, where momentum moves one that is told zero."""
    objective = partial(max_violation, margin=-3.0)
    images, captions = (side.take(slice(0, pairs)) for side in encoded(model))
    ours = learned(model, few_pairs(model, images, captions, objective))
    images, captions = (side.take(slice(0, pairs)) for side in encoded(model))
    theirs = learned(model, objective(model.score(images, captions)))
    assert ours[0] == 0
    assert not any(told.any() for told in ours[1].values())
    assert_same(ours, theirs)


def test_more_captions_than_images(model):
    def objective(S):
        return S[0, 2] * 3 - S[2, 6] ** 2

    images, captions = encoded(model)
    ours = learned(model, few_pairs(model, images.take(slice(0, 3)), captions, objective))
    images, captions = encoded(model)
    theirs = learned(model, objective(model.score(images.take(slice(0, 3)), captions)))
    assert_same(ours, theirs)


def test_similarities_that_are_not_numbers_stay_visible(model):
    images, captions = encoded(model)
    broken = Encoded(images.whole * torch.nan, images.local)
    assert few_pairs(model, broken, captions, max_violation).isnan()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_card_as_on_the_processor(model):
    expected = learned(model, few_pairs(model, *encoded(model), max_violation))
    model.to("cuda")
    loss, told = learned(model, few_pairs(model, *encoded(model, "cuda"), max_violation))
    assert_same((loss.cpu(), {name: value.cpu() for name, value in told.items()}), expected)
