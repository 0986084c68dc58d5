"""SGR and SAF against golden vectors of the public code and against a plain per-pair loop."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from l2rm.encoders.towers import l2_normalise
from l2rm.rematching import objectives
from l2rm.similarity.graph import GraphStep
from l2rm.similarity.model import build_model
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


def test_gradients_equal_the_unfolded_attention():
    torch.manual_seed(1)
    step = GraphStep(6).double()
    for layer in (step.query, step.key):
        torch.nn.init.normal_(layer.bias)
    nodes = torch.randn(3, 5, 6, dtype=torch.double)
    folded = torch.autograd.grad(step(nodes, 5).square().sum(), [step.query.weight, step.key.weight])
    plain = F.relu(step.out((step.query(nodes) @ step.key(nodes).transpose(1, 2)).softmax(-1) @ nodes))
    expected = torch.autograd.grad(plain.square().sum(), [step.query.weight, step.key.weight])
    for ours, theirs in zip(folded, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


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


def test_padding_never_matters(kind):
    torch.manual_seed(2)
    model = build_model(
        ModelConfig(similarity=kind, embed_dim=12, word_dim=6, similarity_dim=8),
        DataShape(image_dim=10, regions=5, vocabulary_size=30),
    )
    images, tokens, lengths = torch.randn(3, 5, 10), torch.tensor([[5, 6, 7]]), torch.tensor([3])
    padded = torch.cat([tokens, torch.zeros(1, 9, dtype=torch.long)], 1)
    torch.testing.assert_close(model.similarity(images, tokens, lengths), model.similarity(images, padded, lengths))
