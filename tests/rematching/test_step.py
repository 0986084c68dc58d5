"""The L2RM step on a small set of pairs, with several captions an image."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from l2rm.data.batches import Batches
from l2rm.data.features import Features
from l2rm.data.pairs import Pairs
from l2rm.data.vocabulary import Vocabulary
from l2rm.rematching import objectives
from l2rm.rematching.cost import LinearCost, known_match_loss
from l2rm.rematching.equivariant import EquivariantCost
from l2rm.rematching.settings import RematchingConfig
from l2rm.rematching.step import RematchingStep, capacity
from l2rm.rematching.transport import _maximum_mass, partial_transport
from l2rm.similarity.model import build_model
from l2rm.similarity.settings import DataShape, ModelConfig

IMAGES = 12
MATCHED = np.array([0, 3, 6, 9, 12, 15])
MISMATCHED = np.array([1, 2, 4, 5, 7, 8, 10, 23])  # given images 0, 1, 2, 2, 3, 4, 5, 11
NO_QUEUE = torch.zeros(0, dtype=torch.long)


@pytest.fixture(scope="module")
def batches():
    generator = np.random.default_rng(0)
    pairs = Pairs(
        images=tuple(f"{image}" for image in range(IMAGES)),
        image_of=np.repeat(np.arange(IMAGES), 2),
        captions=tuple(f"a{row % 5} b{row % 3}" for row in range(2 * IMAGES)),
        features=Features(array=generator.normal(size=(IMAGES, 3, 7)).astype(np.float32)),
    )
    return Batches(pairs, Vocabulary.build(pairs.captions, min_count=1))


def make_step(dropout=0.0, similarity="cosine", precision="float32", **config):
    torch.manual_seed(0)
    sizes = {"embed_dim": 6, "word_dim": 4, "similarity_dim": 4}
    model = build_model(
        ModelConfig(similarity=similarity, dropout=dropout, precision=precision, **sizes),
        DataShape(image_dim=7, regions=3, vocabulary_size=12),
    )
    cost = LinearCost(8)
    return RematchingStep(
        model, cost, torch.optim.Adam(cost.parameters(), lr=1e-2), RematchingConfig(reg=0.05, **config)
    )


@pytest.mark.parametrize("similarity", ["cosine", "sgr"])
def test_loss_is_the_matched_objective_plus_the_divergence_from_the_plan(batches, similarity):
    step = make_step(similarity=similarity, rematch_weight=0.5)
    step.model.train()
    matched, mismatched = batches.batch(MATCHED), batches.batch(MISMATCHED)
    result = step(batches, matched, mismatched, NO_QUEUE)
    assert result.loss.item() == pytest.approx(result.terms["matched"].item() + 0.5 * result.terms["rematched"].item())
    S = step.model(matched.images, matched.captions, matched.lengths)  # no dropout: the same again
    assert result.terms["matched"].item() == pytest.approx(objectives.max_violation(S).item(), rel=1e-5)
    S = step.model(mismatched.images, mismatched.captions, mismatched.lengths)
    divergence = objectives.symmetric_kl(S, result.plan.matrix)
    assert result.terms["rematched"].item() == pytest.approx(divergence.item(), rel=1e-4)


def test_plan_carries_the_mass_and_leaves_no_caption_with_its_given_image(batches):
    step = make_step(mass=0.3)
    mismatched = batches.batch(MISMATCHED)
    plan = step(batches, batches.batch(MATCHED), mismatched, NO_QUEUE).plan
    given = batches.pairs.image_of[MISMATCHED]
    same = given[:, None] == given[None, :]
    assert plan.converged
    assert plan.mass == pytest.approx(0.3, abs=1e-5)
    assert (plan.matrix.numpy()[same] == 0).all()
    assert (plan.matrix.numpy()[~same] > 0).all()


def test_forbidding_pairs_forbids_the_diagonal_only(batches):
    step = make_step(forbid="pair", mass=0.3)
    plan = step(batches, batches.batch(MATCHED), batches.batch(MISMATCHED), NO_QUEUE).plan
    carried = plan.matrix.numpy() > 0
    assert (carried == ~np.eye(len(MISMATCHED), dtype=bool)).all()


def test_further_images_of_the_queue_can_be_rematched_to(batches):
    step = make_step(mass=0.3)
    queue = torch.tensor([0, 11, 9])  # image 0 is given to the first caption, image 11 to the last, image 9 to none
    result = step(batches, batches.batch(MATCHED), batches.batch(MISMATCHED), queue)
    matrix = result.plan.matrix.numpy()
    assert matrix.shape == (11, 8)
    assert result.candidates.tolist() == [*batches.pairs.image_of[MISMATCHED], 0, 11, 9]
    assert matrix[8, 0] == 0
    assert matrix[9, 7] == 0
    assert (matrix[10] > 0).all()
    result.loss.backward()


def test_gradient_flows_through_the_similarities_and_not_through_the_plan(batches):
    step = make_step()
    matched, mismatched = batches.batch(MATCHED), batches.batch(MISMATCHED)
    result = step(batches, matched, mismatched, NO_QUEUE)
    assert not result.plan.matrix.requires_grad
    step.cost.zero_grad()
    result.loss.backward()
    got = {name: parameter.grad.clone() for name, parameter in step.model.named_parameters()}
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in step.cost.parameters())
    step.model.zero_grad()
    S = step.model(matched.images, matched.captions, matched.lengths)
    T = step.model(mismatched.images, mismatched.captions, mismatched.lengths)
    (objectives.max_violation(S) + objectives.symmetric_kl(T, result.plan.matrix.clone())).backward()
    for name, parameter in step.model.named_parameters():
        torch.testing.assert_close(got[name], parameter.grad, msg=name, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("similarity", ["cosine", "sgr"])
def test_cost_update_teaches_the_cost_alone_and_leaves_the_mode(batches, training, similarity):
    step = make_step(dropout=0.5, similarity=similarity)
    step.model.train(training)
    before = {name: value.clone() for name, value in step.model.state_dict().items()}
    matched = batches.batch(MATCHED)
    S = step.model.similarity(matched.images, matched.captions, matched.lengths)
    first = known_match_loss(step.cost, S, torch.arange(len(S))).item()
    step.update_cost(matched, matched)
    assert step.model.training is training
    assert all(parameter.grad is None for parameter in step.model.parameters())
    assert all(torch.equal(before[name], value) for name, value in step.model.state_dict().items())
    for _ in range(20):
        step.update_cost(matched, matched)
    assert known_match_loss(step.cost, S, torch.arange(len(S))).item() < first
    assert not torch.equal(step.cost.weight, LinearCost(8).weight)


def test_cost_is_charged_in_evaluation_mode_for_known_matches(batches):
    step = make_step(dropout=0.5, planted=1 / 6)  # of six matched pairs, one
    step.model.train()
    matched = batches.batch(MATCHED)
    S = step.model.similarity(matched.images, matched.captions, matched.lengths)
    charges = (1 - S.diagonal()).tolist()
    charged = step.update_cost(matched, matched).item()
    assert min(abs(charged - charge) for charge in charges) < 1e-5


def test_without_mismatched_pairs_the_matched_teach_alone(batches):
    result = make_step()(batches, batches.batch(MATCHED), None, NO_QUEUE)
    assert result.plan is None
    assert result.candidates is None
    assert result.loss is result.terms["matched"]


def test_a_batch_of_one_image_is_left_out(batches):
    step = make_step()
    result = step(batches, batches.batch(MATCHED), batches.batch(np.array([4, 5])), NO_QUEUE)
    assert result.plan is None
    assert result.loss is result.terms["matched"]
    queue = torch.tensor([7])  # with one more image there is something to exchange
    assert step(batches, batches.batch(MATCHED), batches.batch(np.array([4, 5])), queue).plan is not None


@pytest.mark.parametrize("seed", range(12))
def test_capacity_is_the_maximum_flow(seed):
    generator = np.random.default_rng(seed)
    given = generator.integers(1 + seed % 4, size=generator.integers(2, 8))
    candidates = np.concatenate([given, generator.integers(5, size=generator.integers(0, 5))])
    forbidden = candidates[:, None] == given[None, :]
    expected = _maximum_mass(~forbidden)
    assert capacity(torch.from_numpy(forbidden)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["mean_violation", "infonce", "symmetric_cross_entropy"])
def test_matched_objective_can_be_chosen(batches, name):
    step = make_step(matched_objective=name)
    matched = batches.batch(MATCHED)
    S = step.model(matched.images, matched.captions, matched.lengths)
    expected = getattr(objectives, name)(S).item()
    assert step(batches, matched, None, NO_QUEUE).loss.item() == pytest.approx(expected, rel=1e-5)


def told(model, loss):
    """What each parameter is told by `loss`; None where it is told nothing."""
    model.zero_grad()
    loss.backward()
    return {name: None if x.grad is None else x.grad.clone() for name, x in model.named_parameters()}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("similarity", ["cosine", "sgr", "saf"])
def test_matched_pairs_teach_what_all_their_similarities_would(batches, similarity, training, weighted):
    step = make_step(similarity=similarity)
    step.model.train(training)
    matched, weights = batches.batch(MATCHED), torch.linspace(0, 1, len(MATCHED)) if weighted else None
    S = step.model(matched.images, matched.captions, matched.lengths)
    loss = objectives.max_violation(S, weights=weights)
    ours = step.learn_matched(matched, weights)
    torch.testing.assert_close(ours, loss)
    got, expected = told(step.model, ours), told(step.model, loss)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, rtol=1e-4, atol=1e-6, msg=lambda text, name=name: name + text)


@pytest.mark.parametrize(
    ("similarity", "training", "objective", "few"),
    [
        ("cosine", True, "max_violation", True),
        ("sgr", True, "max_violation", True),
        ("saf", False, "max_violation", True),
        ("saf", True, "max_violation", False),
        ("sgr", True, "infonce", False),
    ],
)
def test_few_pairs_carry_gradient_only_where_that_is_right_and_pays(
    batches, monkeypatch, similarity, training, objective, few
):
    step = make_step(similarity=similarity, matched_objective=objective)
    step.model.train(training)
    scored = []
    score = type(step.model).score
    monkeypatch.setattr(type(step.model), "score", lambda *given: scored.append(score(*given)) or scored[-1])
    step.learn_matched(batches.batch(MATCHED), None)
    (S,) = scored
    assert (S.grad_fn is None) is few


def test_statistics_of_the_gates_move_once_a_caption(batches):
    step = make_step(similarity="saf")
    step.model.train()
    step.learn_matched(batches.batch(MATCHED), None)
    assert step.model.gate_norm.num_batches_tracked == len(MATCHED)


@pytest.mark.parametrize("similarity", ["cosine", "sgr", "saf"])
def test_a_step_in_bfloat16_teaches_the_same_way(batches, similarity):
    directions = []
    for precision in ("float32", "bfloat16"):
        step = make_step(similarity=similarity, precision=precision)
        step.model.train()
        result = step(batches, batches.batch(MATCHED), batches.batch(MISMATCHED), torch.tensor([9]))
        assert result.loss.dtype == torch.float32
        assert result.plan.mass == pytest.approx(0.1, abs=1e-4)
        gradients = [x for x in told(step.model, result.loss).values() if x is not None]
        assert {x.dtype for x in [*step.model.parameters(), *gradients]} == {torch.float32}
        directions.append(torch.cat([x.flatten() for x in gradients]))
    exact, rough = directions
    assert rough.isfinite().all()
    assert not torch.equal(exact, rough)
    assert F.cosine_similarity(exact, rough, dim=0) > 0.9


@pytest.mark.parametrize(
    ("forbid", "expected"),
    [
        ("image", [[1, 0, 1], [0, 1, 0], [1, 0, 1], [0, 1, 0], [0, 0, 0]]),
        ("pair", [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]),
        ("nothing", [[0, 0, 0]] * 5),
    ],
)
def test_forbidden_cells(forbid, expected):
    """Captions are given images 4, 7 and 4; the queue brings 7 once more, and 5."""
    given, queue = torch.tensor([4, 7, 4]), torch.tensor([7, 5])
    forbidden = make_step(forbid=forbid).forbidden(torch.cat([given, queue]), given)
    assert forbidden.dtype == torch.bool
    assert forbidden.int().tolist() == expected


def test_a_plan_may_leave_a_caption_with_its_given_image() -> None:
    features = Features(array=np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32))
    pairs = Pairs(
        images=tuple(map(str, range(8))),
        image_of=np.arange(8),
        captions=("text",) * 8,
        features=features,
        caption_features=features,
    )
    batches = Batches(pairs, None)
    torch.manual_seed(0)
    model = build_model(ModelConfig(similarity="cosine", embed_dim=6), DataShape(image_dim=4, regions=1, caption_dim=4))
    carried = {}
    for forbid in ("nothing", "pair"):
        cost = LinearCost(4)
        config = RematchingConfig(reg=0.05, mass=0.3, forbid=forbid)
        step = RematchingStep(model, cost, torch.optim.Adam(cost.parameters()), config)
        matched, mismatched = (batches.batch(np.arange(start, start + 4)) for start in (0, 4))
        plan = step(batches, matched, mismatched, torch.zeros(0, dtype=torch.long)).plan
        assert plan is not None
        carried[forbid] = plan.matrix.diagonal()
    assert (carried["nothing"] > 0).all()
    assert not carried["pair"].any()


def test_the_plan_is_that_of_the_cost() -> None:
    step = make_step(mass=0.4)
    with torch.no_grad():
        step.cost.weight += 0.3 * torch.randn(8, 8, generator=torch.Generator().manual_seed(0))
    S = 2 * torch.rand(8, 8, generator=torch.Generator().manual_seed(1)) - 1
    forbidden = torch.eye(8, dtype=torch.bool)
    C = torch.relu(S @ step.cost.weight.T + step.cost.bias).detach()
    expected = partial_transport(C, mass=0.4, reg=0.05, forbidden=forbidden).matrix
    torch.testing.assert_close(step.rematch(S, forbidden).matrix, expected, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(step.rematch_from_many(S, forbidden).matrix, expected, atol=1e-5, rtol=1e-3)
    assert expected.std() > 0.3 * expected.mean()


def equivariant_step(**config):
    step, cost = make_step(cost="equivariant", **config), EquivariantCost(0.1)
    return RematchingStep(step.model, cost, torch.optim.Adam(cost.parameters(), lr=1e-2), step.config)


@pytest.mark.parametrize("weighted", [False, True])
def test_the_equivariant_cost_learns_from_planted_images_by_their_match_probability(batches, weighted):
    step = equivariant_step(planted=0.5)
    matched, mismatched = batches.batch(MATCHED), batches.batch(MISMATCHED)
    weights = torch.linspace(0.5, 1, len(MATCHED)) if weighted else None
    own = torch.tensor([4, 1])
    images = torch.cat([matched.images[own], mismatched.images[2:]])
    given = [*matched.image_ids[own].tolist(), *mismatched.image_ids[2:].tolist()]
    odds = step.cost.log_odds(step.model.similarity(images, matched.captions, matched.lengths)).tolist()
    missed, false, known, unknown = 0.0, 0.0, 0.0, 0.0
    for row, image in enumerate(given):
        for column, caption in enumerate(matched.image_ids.tolist()):
            chance = 1 / (1 + math.exp(-odds[row][column]))
            if image == caption:
                weight = float(weights[column]) if weighted else 1.0
                missed, known = missed - weight * math.log(chance), known + weight
            else:
                false, unknown = false - math.log(1 - chance), unknown + 1
    found = step._known_pairs(step.cost, matched, mismatched, own, weights)
    assert float(found.detach()) == pytest.approx(0.5 * (missed / known + false / unknown), rel=1e-4)
    before = [part.clone() for part in step.cost.parameters()]
    assert step(batches, matched, mismatched, NO_QUEUE, weights).terms["cost"].isfinite()
    assert any(not torch.equal(one, other) for one, other in zip(before, step.cost.parameters(), strict=True))


def test_a_cost_does_not_learn_from_what_is_not_finite(batches):
    step = equivariant_step()
    with torch.no_grad():
        next(step.model.parameters()).fill_(math.inf)
    with pytest.raises(FloatingPointError, match="not finite"):
        step._known_pairs(step.cost, batches.batch(MATCHED), batches.batch(MISMATCHED), torch.tensor([0]), weights=None)
