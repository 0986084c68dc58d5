"""SGR and SAF against golden vectors of the public code and against a plain per-pair loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from l2rm.encoders.towers import l2_normalise
from l2rm.rematching import objectives
from l2rm.similarity import graph, nodes, sgraf
from l2rm.similarity.model import Encoded, build_model
from l2rm.similarity.settings import DataShape, ModelConfig
from l2rm.similarity.sgraf import SGR, CaptionNorm
from l2rm.training.published import published_name

here = Path(__file__).parent


@pytest.fixture(scope="module", params=["sgr", "saf"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def golden(kind):
    with np.load(here / f"{kind}_golden.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


@pytest.fixture
def model(golden, kind):
    config = ModelConfig(similarity=kind, embed_dim=64, word_dim=24, similarity_dim=16)
    built = build_model(config, DataShape(image_dim=32, regions=36, vocabulary_size=50))
    built.load_state_dict(
        {
            name: value if name.endswith("num_batches_tracked") else golden["state/" + published_name(name)]
            for name, value in built.state_dict().items()
        }
    )
    return built.eval()


def test_state_dicts_map_one_to_one(golden, model):
    ours = {published_name(n) for n in model.state_dict() if not n.endswith("num_batches_tracked")}
    assert ours == {n.removeprefix("state/") for n in golden if n.startswith("state/")}


def test_embeddings_and_similarity_are_the_public_code_s(golden, model):
    images = model.encode_images(golden["images"])
    captions = model.encode_captions(golden["captions"], golden["lengths"])
    torch.testing.assert_close(images.local, golden["image_embedding"], atol=1e-5, rtol=0)
    torch.testing.assert_close(captions.local, golden["caption_embedding"], atol=1e-5, rtol=0)
    similarity = model.similarity(golden["images"], golden["captions"], golden["lengths"])
    torch.testing.assert_close(similarity, golden["similarity"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["rce", "max_violation", "symmetric_kl"])
def test_every_gradient_is_the_public_code_s(golden, model, name):
    S = model(golden["images"], golden["captions"], golden["lengths"])
    loss = {
        "rce": lambda: objectives.symmetric_cross_entropy(S),
        "max_violation": lambda: objectives.max_violation(S),
        "symmetric_kl": lambda: objectives.symmetric_kl(S, golden["soft_labels"]),
    }[name]()
    loss.backward()
    theirs = {n.removeprefix(f"grad/{name}/"): g for n, g in golden.items() if n.startswith(f"grad/{name}/")}
    # a bias that the softmax cancels has no gradient here and a rounding error there
    ours = {published_name(n): torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    assert ours.keys() == theirs.keys()
    # float32 noise in the recorded gradients themselves reaches 4e-5 of a parameter's largest entry (seen in float64)
    for parameter, expected in theirs.items():
        error = (ours[parameter] - expected).abs().max()
        assert error <= 1e-5 + 4e-5 * expected.abs().max(), f"{parameter}: {error:.1e}"


def naive_score(model, image, region, caption, word):
    """One pair in evaluation mode, straight from the definition: query and key apart, every node through every step."""
    affinity = l2_normalise(F.leaky_relu(region @ word.T, 0.1), dim=1)
    context = l2_normalise((9 * affinity).softmax(0).T @ region)
    nodes = torch.cat(
        [
            l2_normalise(model.global_node((image - caption) ** 2))[None],
            l2_normalise(model.local_node((context - word) ** 2)),
        ]
    )
    if isinstance(model, SGR):
        for step in model.graph:
            nodes = F.relu(step.out((step.query(nodes) @ step.key(nodes).T).softmax(-1) @ nodes))
        return torch.sigmoid(model.to_score(nodes[0]))
    gates = torch.sigmoid(torch.cat([model.gate_norm(model.gate(node)[None, None])[0] for node in nodes]))
    summary = sum(gate * node for gate, node in zip(gates / gates.sum(), nodes, strict=True))
    return torch.sigmoid(model.to_score(l2_normalise(summary)))


def test_scores_equal_a_per_pair_loop_at_any_lengths(kind):
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(similarity=kind, embed_dim=12, word_dim=6, similarity_dim=8),
        DataShape(image_dim=10, regions=5, vocabulary_size=30),
    ).eval()
    lengths = torch.tensor([3, 7, 1, 3, 4])
    tokens = torch.randint(4, 30, (5, 7)) * (torch.arange(7) < lengths[:, None])
    with torch.no_grad():
        images = model.encode_images(torch.randn(4, 5, 10))
        captions = model.encode_captions(tokens, lengths)
        expected = [
            [
                naive_score(
                    model, images.whole[i], images.local[i], captions.whole[c], captions.local[c, : lengths[c]]
                ).item()
                for c in range(5)
            ]
            for i in range(4)
        ]
        scores = model.score(images, captions)
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)


def test_captions_are_normalised_one_by_one_in_training():
    """As many captions at once as one after the other: the same gates, gradients and running statistics."""
    torch.manual_seed(3)
    together, apart = CaptionNorm(1).double(), torch.nn.BatchNorm1d(1).double()
    logits = torch.randn(6, 4, 5, dtype=torch.double, requires_grad=True)
    target = torch.randn(6, 4, 5, dtype=torch.double)
    one = together(logits)
    other = torch.stack([apart(logits[:, c, None]).squeeze(1) for c in range(4)], 1)
    torch.testing.assert_close(one, other)
    gradients = [
        torch.autograd.grad(((y - target) ** 2).sum(), [logits, *norm.parameters()])
        for y, norm in ((one, together), (other, apart))
    ]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)
    for name, value in apart.state_dict().items():
        torch.testing.assert_close(together.state_dict()[name], value)


def test_scores_in_training_need_no_gradient_to_be_the_same(kind):
    torch.manual_seed(4)
    config = ModelConfig(similarity=kind, embed_dim=12, word_dim=6, similarity_dim=8, dropout=0)
    model = build_model(config, DataShape(image_dim=10, regions=5, vocabulary_size=30)).train()
    given = torch.randn(4, 5, 10), torch.randint(4, 30, (6, 7)), torch.tensor([7, 7, 3, 3, 3, 1])
    with_gradient = model(*given)
    with torch.no_grad():
        torch.testing.assert_close(model(*given), with_gradient.detach())


def small(kind, seed=5, **config):
    torch.manual_seed(seed)
    config = {"similarity": kind, "embed_dim": 12, "word_dim": 6, "similarity_dim": 8, "dropout": 0} | config
    return build_model(ModelConfig(**config), DataShape(image_dim=10, regions=5, vocabulary_size=30))


def given_to(model):
    """Six images and seven captions of lengths 1 to 7, of which two are not alone, and the two encoded."""
    generator = torch.Generator().manual_seed(6)
    lengths = torch.tensor([3, 7, 1, 3, 4, 7, 3])
    tokens = torch.randint(4, 30, (7, 7), generator=generator) * (torch.arange(7) < lengths[:, None])
    images = torch.randn(6, 5, 10, generator=generator).to(model.to_score.weight.dtype)
    return model.encode_images(images), model.encode_captions(tokens, lengths)


def test_scores_of_pairs_are_entries_of_all_scores_with_the_same_gradients(kind):
    model = small(kind).double().eval()
    row, column = torch.tensor([0, 5, 2, 2, 3, 0]), torch.tensor([1, 6, 2, 0, 1, 1])  # one pair comes twice
    outer = torch.linspace(-1, 1, 6, dtype=torch.double)
    found = []
    for one_by_one in (True, False):
        images, captions = given_to(model)
        if one_by_one:
            scores = model.score_pairs(images.take(row), captions.take(column))
        else:
            scores = model.score(images, captions)[row, column]
        found.append((scores, torch.autograd.grad(scores, list(model.parameters()), outer, materialize_grads=True)))
    (ours, told), (theirs, expected) = found
    assert ours.shape == (6,)
    torch.testing.assert_close(ours, theirs)
    for (name, _), one, other in zip(model.named_parameters(), told, expected, strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("numbers", [1, 100, 2**20])
def test_scores_of_a_list_are_entries_of_all_scores_in_its_order(kind, monkeypatch, numbers):
    monkeypatch.setattr(sgraf, "at_once", lambda _: numbers)
    model = small(kind).eval()
    row, column = torch.tensor([0, 5, 2, 2, 3, 0, 4]), torch.tensor([1, 6, 2, 0, 1, 1, 5])
    with torch.no_grad():
        encoded = given_to(model)
        torch.testing.assert_close(model.score_listed(*encoded, row, column), model.score(*encoded)[row, column])
    none = torch.empty(0, dtype=torch.long)
    assert model.score_listed(*encoded, none, none).shape == (0,)


def test_pairs_stand_alone_but_for_saf_in_training(kind):
    """What the model says is what it does: with other images beside it, a pair keeps its score or does not."""
    model = small(kind)
    for training in (True, False):
        model.train(training)
        with torch.no_grad():
            images, captions = given_to(model)
            alone = model.score(images.take(slice(0, 1)), captions)
            together = model.score(images, captions)[:1]
        assert model.pairs_stand_alone is (kind == "sgr" or not training)
        assert torch.allclose(alone, together, atol=1e-6) is model.pairs_stand_alone


@settings(max_examples=15, deadline=None)
@given(image_order=st.permutations(range(6)), caption_order=st.permutations(range(7)), training=st.booleans())
def test_scores_move_with_their_images_and_captions(kind, image_order, caption_order, training):
    model = small(kind).train(training)
    with torch.no_grad():
        images, captions = given_to(model)
        moved = model.score(images.take(torch.tensor(image_order)), captions.take(torch.tensor(caption_order)))
        torch.testing.assert_close(moved, model.score(images, captions)[image_order][:, caption_order])


@settings(max_examples=10, deadline=None)
@given(room=st.integers(0, 2000))
def test_scores_and_gradients_hardly_depend_on_the_room_there_is(kind, room):
    model = small(kind).double()

    def found():
        scores = model(*inputs)
        outer = torch.linspace(-1, 1, scores.numel(), dtype=torch.double).view_as(scores)
        return scores, torch.autograd.grad(scores, list(model.parameters()), outer, materialize_grads=True)

    generator = torch.Generator().manual_seed(7)
    inputs = (
        torch.randn(5, 5, 10, generator=generator, dtype=torch.double),
        torch.randint(4, 30, (3, 4), generator=generator),
        torch.tensor([4, 2, 4]),
    )
    scores, told = found()
    with pytest.MonkeyPatch.context() as patch:
        for module in (nodes, graph):
            patch.setattr(module, "at_once", lambda x: room)
        ours, ours_told = found()
    torch.testing.assert_close(ours, scores)
    torch.testing.assert_close(ours_told, told)


def test_single_precision_scores_and_gradients_are_close_to_double(kind):
    model = small(kind)
    found = {}
    for dtype in (torch.float32, torch.float64):
        model.to(dtype)
        scores = model.score(*given_to(model))
        outer = torch.linspace(-1, 1, scores.numel(), dtype=dtype).view_as(scores)
        found[dtype] = scores, torch.autograd.grad(scores, list(model.parameters()), outer, materialize_grads=True)
    (single, single_told), (exact, exact_told) = found[torch.float32], found[torch.float64]
    torch.testing.assert_close(single, exact.float(), rtol=1e-4, atol=1e-6)
    for (name, _), one, other in zip(model.named_parameters(), single_told, exact_told, strict=True):
        error = (one - other).abs().max()
        assert error <= 1e-5 + 1e-4 * other.abs().max(), f"{name}: {error:.1e}"


def test_an_image_and_a_caption_of_zeros_have_finite_scores_and_gradients(kind):
    for training in (True, False):
        model = small(kind).train(training)
        images, captions = given_to(model)
        present = torch.ones(7, 1)
        present[0] = 0
        images = Encoded(images.whole * present[:6], images.local * present[:6, None])
        captions = Encoded(captions.whole * present, captions.local * present[:, None], captions.lengths)
        scores = model.score(images, captions)
        assert scores.isfinite().all()
        told = torch.autograd.grad(scores.sum(), list(model.parameters()), materialize_grads=True)
        assert all(x.isfinite().all() for x in told)


def in_both_precisions(kind, **config):
    exact = small(kind, embed_dim=32, similarity_dim=16, word_dim=16, **config)
    rough = small(kind, embed_dim=32, similarity_dim=16, word_dim=16, precision="bfloat16", **config)
    rough.load_state_dict(exact.state_dict())
    return exact, rough


@pytest.mark.parametrize("training", [True, False])
def test_scores_in_bfloat16_stay_float32_and_close(kind, training):
    exact, rough = (model.train(training) for model in in_both_precisions(kind))
    with torch.no_grad():
        encoded = given_to(rough)
        scores, expected = rough.score(*encoded), exact.score(*given_to(exact))
    assert [x.local.dtype for x in encoded] == [torch.bfloat16, torch.bfloat16]
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, expected, rtol=0, atol=3e-2)
    assert not torch.equal(scores, expected)
    if rough.pairs_stand_alone:
        pairs = rough.score_pairs(encoded[0], encoded[1].take(slice(0, 6)))
        assert pairs.dtype == torch.float32
        torch.testing.assert_close(pairs, expected.diagonal(), rtol=0, atol=3e-2)


def test_gradients_in_bfloat16_stay_float32_and_point_the_same_way(kind):
    directions = []
    for model in in_both_precisions(kind):
        model.train()
        scores = model.score(*given_to(model))
        (scores * torch.linspace(0, 1, 42).view(6, 7)).sum().backward()
        told = [p.grad for p in model.parameters() if p.grad is not None]
        assert {x.dtype for x in [*model.parameters(), *told]} == {torch.float32}
        directions.append(torch.cat([x.flatten() for x in told]))
    exact, rough = directions
    assert rough.isfinite().all()
    assert F.cosine_similarity(exact, rough, dim=0) > 0.9


def test_padding_never_matters(kind):
    torch.manual_seed(2)
    model = build_model(
        ModelConfig(similarity=kind, embed_dim=12, word_dim=6, similarity_dim=8),
        DataShape(image_dim=10, regions=5, vocabulary_size=30),
    )
    images, tokens, lengths = torch.randn(3, 5, 10), torch.tensor([[5, 6, 7]]), torch.tensor([3])
    padded = torch.cat([tokens, torch.zeros(1, 9, dtype=torch.long)], 1)
    torch.testing.assert_close(model.similarity(images, tokens, lengths), model.similarity(images, padded, lengths))
