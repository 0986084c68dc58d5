"""A step of graph reasoning against the formula with query and key apart, for all pairs at once."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck
from torch.func import functional_call

from l2rm.similarity import graph
from l2rm.similarity.graph import GraphStep

S = 6


def make(seed=1):
    torch.manual_seed(seed)
    step = GraphStep(S).double()
    for layer in (step.query, step.key, step.out):
        torch.nn.init.normal_(layer.bias)
    return step


def some_nodes(P, K, seed=1):
    return torch.randn(P, K, S, generator=torch.Generator().manual_seed(seed), dtype=torch.double, requires_grad=True)


def some_pairs(count):
    return lambda nodes: count * nodes[0].numel()


def plain(step, nodes, asked):
    """`relu(W softmax(q(x) k(x)ᵀ) x + b)`, every node through the step and then the first ones taken."""
    shares = (step.query(nodes) @ step.key(nodes).transpose(1, 2)).softmax(-1)
    return F.relu(step.out(shares @ nodes))[:, :asked]


def gradients(updated, step, nodes):
    """Of nodes and layers; the key's bias shifts all that a query sees alike, so the softmax cancels it."""
    outer = torch.randn(updated.shape, generator=torch.Generator().manual_seed(2), dtype=torch.double)
    told = torch.autograd.grad(
        updated, [nodes, *step.parameters()], outer.to(updated.dtype), allow_unused=True, materialize_grads=True
    )
    return dict(zip(["nodes", *(name for name, _ in step.named_parameters())], told, strict=True))


@pytest.mark.parametrize("at_a_time", [None, 2, 1, 0])
@pytest.mark.parametrize(("P", "K", "asked"), [(5, 4, 4), (5, 4, 1), (5, 4, 2), (1, 4, 1), (5, 2, 1), (5, 1, 1)])
def test_update_and_every_gradient_are_those_of_the_definition(monkeypatch, P, K, asked, at_a_time):
    """`at_a_time`: pairs worked on together (of five, two leave one over); 0: a room too small even for one."""
    if at_a_time is not None:
        monkeypatch.setattr(graph, "at_once", some_pairs(at_a_time))
    step, nodes = make(), some_nodes(P, K)
    got, expected = step(nodes, asked), plain(step, nodes, asked)
    assert got.shape == (P, asked, S)
    torch.testing.assert_close(got, expected)
    assert 0 < (got > 0).sum() < got.numel()
    theirs = gradients(expected, step, nodes)
    for name, told in gradients(got, step, nodes).items():
        torch.testing.assert_close(told, theirs[name], msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("asked", [1, 3])
def test_gradient_by_differences(monkeypatch, asked):
    monkeypatch.setattr(graph, "at_once", some_pairs(2))
    step, nodes = make(), some_nodes(3, 3)
    names, values = zip(*step.named_parameters(), strict=True)

    def of(nodes, *values):
        return functional_call(step, dict(zip(names, values, strict=True)), (nodes, asked))

    assert gradcheck(of, [nodes, *values])


@settings(max_examples=25, deadline=None)
@given(at_a_time=st.integers(0, 8), pairs=st.integers(1, 7), asked=st.integers(1, 3))
def test_how_many_pairs_are_worked_on_at_a_time_changes_rounding_alone(at_a_time, pairs, asked):
    step, nodes = make().float(), some_nodes(pairs, 3).detach().float().requires_grad_()
    all_at_once = step(nodes, asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graph, "at_once", some_pairs(at_a_time))
        got = step(nodes, asked)
        torch.testing.assert_close(got, all_at_once)
        theirs = gradients(all_at_once, step, nodes)
        for name, told in gradients(got, step, nodes).items():
            torch.testing.assert_close(told, theirs[name], rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(order=st.permutations(range(3)))
def test_nodes_that_are_not_asked_may_come_in_any_order(order):
    step, nodes = make(), some_nodes(4, 4)
    moved = nodes[:, [0, *(1 + place for place in order)]]
    torch.testing.assert_close(step(moved, 1), step(nodes, 1))


def test_single_precision_is_close_to_double():
    step, nodes = make(), some_nodes(5, 4)
    updated, told = step(nodes, 4), gradients(step(nodes, 4), step, nodes)
    step, nodes = step.float(), nodes.detach().float().requires_grad_()
    torch.testing.assert_close(step(nodes, 4), updated.float(), rtol=1e-4, atol=1e-5)
    for name, single in gradients(step(nodes, 4), step, nodes).items():
        torch.testing.assert_close(single, told[name].float(), rtol=1e-3, atol=1e-4)


def test_nodes_of_zero_give_the_bias_and_finite_gradients():
    step = make()
    nodes = torch.zeros(2, 3, S, dtype=torch.double, requires_grad=True)
    updated = step(nodes, 3)
    torch.testing.assert_close(updated, F.relu(step.out.bias).expand(2, 3, S))
    theirs = gradients(plain(step, nodes, 3), step, nodes)
    for name, told in gradients(updated, step, nodes).items():
        torch.testing.assert_close(told, theirs[name])


def test_autocast_updates_in_bfloat16_and_gradients_have_the_parameters_type():
    step, nodes = make().float(), F.normalize(some_nodes(8, 4).detach().float(), dim=-1).requires_grad_()
    expected = step(nodes, 4)
    with torch.autocast("cpu", torch.bfloat16):
        got = step(nodes, 4)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=5e-2)
    theirs = gradients(expected, step, nodes)
    for name, told in gradients(got, step, nodes).items():
        assert told.dtype == torch.float32
        if theirs[name].any():
            assert F.cosine_similarity(told.flatten(), theirs[name].flatten(), dim=0) > 0.99, name


def test_many_parts_in_bfloat16_add_up(monkeypatch):
    """Summed in bfloat16, which has three digits, hundreds of parts of one sign would stop to count."""
    step, nodes = make().float(), F.normalize(some_nodes(600, 3).detach().float(), dim=-1)
    found = []
    for at_a_time in (600, 1):
        monkeypatch.setattr(graph, "at_once", some_pairs(at_a_time))
        with torch.autocast("cpu", torch.bfloat16):
            updated = step(nodes, 1)
        found.append(torch.autograd.grad(updated.float().sum(), [*step.query.parameters(), *step.out.parameters()]))
    for one, other in zip(*found, strict=True):
        assert (one - other).norm() <= 5e-2 * one.norm()


def test_gradients_of_gradients_are_refused():
    step, nodes = make(), some_nodes(2, 3)
    (once,) = torch.autograd.grad(step(nodes, 3).square().sum(), nodes, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()
