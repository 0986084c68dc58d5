"""The linear layer against torch's own, however the product is computed."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import gradcheck, gradgradcheck

from l2rm.encoders import linear
from l2rm.encoders.linear import Linear, apply_linear, product

INPUTS = {
    "rows": lambda: torch.randn(6, 5),
    "one row": lambda: torch.randn(1, 5),
    "a vector": lambda: torch.randn(5),
    "sets of rows": lambda: torch.randn(3, 4, 5),
    "sets of sets": lambda: torch.randn(2, 3, 4, 5),
    "turned": lambda: torch.randn(5, 6).t(),
    "sets turned": lambda: torch.randn(4, 3, 5).transpose(0, 1),
    "every other column": lambda: torch.randn(6, 10)[:, ::2],
    "columns from the second on": lambda: torch.randn(6, 6)[:, 1:],
    "a row of each set": lambda: torch.randn(3, 4, 5)[:, 1],
    "rows of each set": lambda: torch.randn(3, 6, 5)[:, 2:4],
    "one row many times": lambda: torch.randn(1, 5).expand(6, 5),
    "no rows": lambda: torch.randn(0, 5),
    "no sets": lambda: torch.randn(0, 4, 5),
}


@pytest.fixture
def layer():
    torch.manual_seed(0)
    made = Linear(5, 3)
    torch.nn.init.normal_(made.bias)
    return made


def test_starts_xavier_uniform_with_zero_bias():
    torch.manual_seed(0)
    layer = Linear(300, 200)
    bound = math.sqrt(6 / 500)
    assert not layer.bias.any()
    assert layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


@pytest.mark.parametrize("kind", INPUTS)
def test_value_and_gradients_are_those_of_torch_s_linear(layer, kind):
    x = INPUTS[kind]().requires_grad_()
    ours, theirs = layer(x), F.linear(x, layer.weight, layer.bias)
    torch.testing.assert_close(ours, theirs)
    outer = torch.randn_like(theirs)
    for name, got, expected in zip(
        ("x", "weight", "bias"),
        torch.autograd.grad(ours, [x, *layer.parameters()], outer),
        torch.autograd.grad(theirs, [x, *layer.parameters()], outer),
        strict=True,
    ):
        torch.testing.assert_close(got, expected, msg=name)


def test_gradient_that_comes_expanded_or_turned(layer):
    x = torch.randn(3, 4, 5)
    for whole in (torch.Tensor.sum, lambda y: (y.transpose(0, 1) * torch.arange(36.0).view(4, 3, 3)).sum()):
        got, expected = (
            torch.autograd.grad(whole(y), list(layer.parameters()))
            for y in (layer(x), F.linear(x, layer.weight, layer.bias))
        )
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("wanted", ["x", "weight", "bias"])
def test_each_gradient_can_be_had_alone(wanted):
    torch.manual_seed(0)
    given = {"x": torch.randn(6, 5), "weight": torch.randn(3, 5), "bias": torch.randn(3)}
    given[wanted].requires_grad_()
    (got,) = torch.autograd.grad(apply_linear(**given).square().sum(), given[wanted])
    (expected,) = torch.autograd.grad(F.linear(*given.values()).square().sum(), given[wanted])
    torch.testing.assert_close(got, expected)


def test_without_bias_and_with_a_weight_that_is_turned():
    torch.manual_seed(0)
    x, turned = torch.randn(6, 5, requires_grad=True), torch.randn(5, 3, requires_grad=True)
    ours = apply_linear(x, turned.t())
    torch.testing.assert_close(ours, x @ turned)
    torch.testing.assert_close(product(x, turned.t()).detach(), (x @ turned).detach())
    got, expected = (torch.autograd.grad(y.square().sum(), [x, turned]) for y in (ours, x @ turned))
    torch.testing.assert_close(got, expected)


def test_gradients_of_gradients_are_those_of_torch_s_linear(layer):
    x = torch.randn(6, 5, requires_grad=True)

    def twice(y):
        (once,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(once.square().sum(), [x, layer.weight])

    torch.testing.assert_close(twice(layer(x)), twice(F.linear(x, layer.weight, layer.bias)))


def test_gradient_in_double_precision_by_differences():
    """The gradient written out, too, which double precision does not otherwise come to."""
    torch.manual_seed(0)
    given = [torch.randn(*shape, dtype=torch.double, requires_grad=True) for shape in ((2, 3, 5), (4, 5), (4,))]
    assert gradcheck(linear._Apply.apply, given)
    assert gradgradcheck(linear._Apply.apply, given)


def test_where_onednn_is_missing_it_is_torch_s_linear(layer, monkeypatch):
    monkeypatch.setattr(linear, "ONEDNN", False)
    x = torch.randn(6, 5)
    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_stay_what_they_are(dtype):
    layer = Linear(5, 3).to(dtype)
    assert layer(torch.randn(6, 5, dtype=dtype)).dtype == dtype


def test_autocast_gives_bfloat16_and_gradients_of_the_parameters_type(layer):
    x = torch.randn(6, 5)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), F.linear(x, layer.weight, layer.bias), atol=3e-2, rtol=3e-2)
    y.float().sum().backward()
    assert {parameter.grad.dtype for parameter in layer.parameters()} == {torch.float32}
    torch.testing.assert_close(layer.weight.grad, x.sum(0).expand(3, 5), atol=3e-2, rtol=3e-2)


def test_where_there_is_nothing_to_multiply_the_bias_is_left():
    x, weight, bias = torch.randn(6, 0), torch.randn(3, 0), torch.randn(3)
    assert torch.equal(apply_linear(x, weight, bias), bias.expand(6, 3))
