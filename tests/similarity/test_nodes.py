"""The nodes of pairs, and the attention they rest on, against the formulas written out for all pairs at once."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from l2rm.encoders.towers import l2_normalise
from l2rm.similarity import nodes
from l2rm.similarity.nodes import affinities, attention, pair_nodes, products

D, S = 6, 4


def some_images(least):
    """So many images at a time: a number of numbers that `at_once` may give, for tensors (n, W, D) or (n, C, D)."""
    return lambda words: least * words[0].numel()


def make(N, R, C, L, *, B=1, seed=0, dtype=torch.double):
    """Regions, words, whole images, whole captions; weight and bias of the words' layer and of the whole pair's."""
    generator = torch.Generator().manual_seed(seed)
    shapes = [(N, R, D), (B, C, L, D), (N, D), (B, C, D), (S, D), (S,), (S, D), (S,)]
    made = [torch.randn(*shape, generator=generator, dtype=torch.double) for shape in shapes]
    made[:4] = [l2_normalise(x) for x in made[:4]]
    return [x.to(dtype).requires_grad_() for x in made]


def ours(region, word, whole, text, weight, bias, whole_weight, whole_bias):
    if len(word) == 1:
        (affinity,) = affinities(region, [word[0]])
    else:
        affinity = F.leaky_relu(torch.einsum("nrd,ncld->nrcl", region, word), 0.1)
    shares = attention(affinity, products(region))
    return pair_nodes(shares, (whole, region), (text, word), (whole_weight, whole_bias), (weight, bias))


def plain(region, word, whole, text, weight, bias, whole_weight, whole_bias):
    """The definition, (N, C, L, D) written out and nothing folded, with the gradient that torch finds."""
    N = len(region)
    word, text = word.expand(N, -1, -1, -1), text.expand(N, -1, -1)
    affinity = F.leaky_relu(torch.einsum("nrd,ncld->nrcl", region, word), 0.1)
    shares = (9 * l2_normalise(affinity, dim=3)).softmax(1)
    context = l2_normalise(torch.einsum("nrcl,nrd->ncld", shares, region))
    local = l2_normalise((context - word) ** 2 @ weight.T + bias)
    of_pair = l2_normalise((whole[:, None] - text) ** 2 @ whole_weight.T + whole_bias)
    return torch.cat([of_pair[:, :, None], local], 2)


def gradients(made, given, seed=0):
    outer = torch.randn(made.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)
    return torch.autograd.grad(made, given, outer.to(made.dtype))


NAMES = ("region", "word", "whole", "text", "weight", "bias", "whole_weight", "whole_bias")
SIZES = {
    "several": {"N": 5, "R": 3, "C": 4, "L": 2},
    "captions of their own": {"N": 5, "R": 3, "C": 2, "L": 3, "B": 5},
    "one caption of its own each": {"N": 5, "R": 3, "C": 1, "L": 2, "B": 5},
    "one image": {"N": 1, "R": 3, "C": 4, "L": 2},
    "one region": {"N": 5, "R": 1, "C": 4, "L": 2},
    "one caption": {"N": 5, "R": 3, "C": 1, "L": 2},
    "one word": {"N": 5, "R": 3, "C": 4, "L": 1},
    "one of each": {"N": 1, "R": 1, "C": 1, "L": 1},
}


@pytest.mark.parametrize("at_a_time", [None, 2, 1, 0])
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
def test_nodes_and_every_gradient_are_those_of_the_definition(monkeypatch, sizes, at_a_time):
    """`at_a_time`: images worked on together (of five, two leave one over); 0: a room too small even for one."""
    if at_a_time is not None:
        monkeypatch.setattr(nodes, "at_once", some_images(at_a_time))
    given = make(**sizes)
    got, expected = ours(*given), plain(*given)
    assert got.shape == (sizes["N"], sizes["C"], 1 + sizes["L"], S)
    torch.testing.assert_close(got, expected)
    for name, one, other in zip(NAMES, gradients(got, given), gradients(expected, given), strict=True):
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("B", [1, 3])
def test_gradient_of_the_nodes_by_differences(monkeypatch, B):
    monkeypatch.setattr(nodes, "at_once", some_images(2))
    given = make(N=3, R=2, C=2, L=2, B=B)
    shares = torch.rand(3, 2, 4, dtype=torch.double, generator=torch.Generator().manual_seed(1)).requires_grad_()

    def of(shares, region, word, whole, text, weight, bias, whole_weight, whole_bias):
        return pair_nodes(shares, (whole, region), (text, word), (whole_weight, whole_bias), (weight, bias))

    assert gradcheck(of, [shares, *given])


@settings(max_examples=25, deadline=None)
@given(at_a_time=st.integers(0, 8), images=st.integers(1, 7), own=st.booleans())
def test_how_many_images_are_worked_on_at_a_time_changes_rounding_alone(at_a_time, images, own):
    given = make(N=images, R=3, C=2, L=2, B=images if own else 1, dtype=torch.float32)
    all_at_once = ours(*given)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nodes, "at_once", some_images(at_a_time))
        got = ours(*given)
        torch.testing.assert_close(got, all_at_once)
        for one, other in zip(gradients(got, given), gradients(all_at_once, given), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("B", [1, 5])
def test_single_precision_is_close_to_double(B):
    exact, single = make(5, 3, 4, 3, B=B), make(5, 3, 4, 3, B=B, dtype=torch.float32)
    torch.testing.assert_close(ours(*single), ours(*exact).float(), rtol=1e-4, atol=1e-5)
    for one, other in zip(gradients(ours(*single), single), gradients(ours(*exact), exact), strict=True):
        torch.testing.assert_close(one, other.float(), rtol=1e-3, atol=1e-4)


def zeroed(what):
    """The same with something at zero; layers without bias would give a zero node where image and caption agree."""
    given = [x.detach().clone() for x in make(N=3, R=3, C=2, L=2)]
    region, word, whole, text, *_ = given
    if what == "a region":
        region[1, 0] = 0
    elif what == "a word":
        word[0, 1, 0] = 0
    elif what == "a caption":
        word[0, 1] = 0
        text[0, 1] = 0
    elif what == "an image":
        region[1] = 0
        whole[1] = 0
    elif what == "a node":
        whole[1] = text[0, 0]
        given[5], given[7] = torch.zeros_like(given[5]), torch.zeros_like(given[7])
    return given


@pytest.mark.parametrize("what", ["a region", "a word", "a caption", "an image", "a node"])
def test_zero_vectors_give_what_the_definition_gives_and_nothing_infinite(what):
    exact = [x.requires_grad_() for x in zeroed(what)]
    single = [x.float().requires_grad_() for x in zeroed(what)]
    got, expected, rounded = ours(*exact), plain(*exact), ours(*single)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(rounded, expected.float(), rtol=1e-3, atol=1e-4)
    for name, one, other, third in zip(
        NAMES, gradients(got, exact), gradients(expected, exact), gradients(rounded, single), strict=True
    ):
        assert third.isfinite().all(), name
        torch.testing.assert_close(one, other, msg=lambda text, name=name: f"{name}: {text}")


def test_affinities_of_groups_are_those_of_each_group():
    generator = torch.Generator().manual_seed(2)
    region = torch.randn(3, 4, D, generator=generator)
    words = [torch.randn(C, L, D, generator=generator) for C, L in ((2, 5), (1, 1), (4, 2))]
    for word, got in zip(words, affinities(region, words), strict=True):
        torch.testing.assert_close(got, F.leaky_relu(torch.einsum("nrd,cld->nrcl", region, word), 0.1))


def test_what_a_word_takes_has_length_one_even_in_bfloat16():
    generator = torch.Generator().manual_seed(3)
    region, word = (l2_normalise(torch.randn(*shape, generator=generator)) for shape in ((4, 9, 64), (5, 3, 64)))
    for dtype, within in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
        exact = region.to(dtype)
        shares = attention(affinities(exact, [word.to(dtype)])[0], products(exact))
        assert shares.shape == (4, 9, 15)
        assert shares.dtype == torch.float32
        length = (shares.transpose(1, 2) @ exact.float()).norm(dim=-1)
        torch.testing.assert_close(length, torch.ones(4, 15), rtol=0, atol=within)


def test_autocast_makes_nodes_in_bfloat16_and_gradients_of_the_inputs_type():
    given = make(5, 3, 4, 2, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = ours(*given)
    expected = ours(*given)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), expected, rtol=0, atol=5e-2)
    for name, one, other in zip(NAMES, gradients(got, given), gradients(expected, given), strict=True):
        assert one.dtype == torch.float32
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.99, name


def test_many_parts_in_bfloat16_add_up(monkeypatch):
    """Summed in bfloat16, which has three digits, hundreds of parts of one sign would stop to count."""
    given = make(600, 1, 1, 1, dtype=torch.float32)
    found = []
    for at_a_time in (600, 1):
        monkeypatch.setattr(nodes, "at_once", some_images(at_a_time))
        with torch.autocast("cpu", torch.bfloat16):
            got = ours(*given)
        found.append(torch.autograd.grad(got.float().square().sum() + 3 * got.float().sum(), given))
    for name, one, other in zip(NAMES, *found, strict=True):
        assert (one - other).norm() <= 1e-2 * one.norm(), name


def test_gradients_of_gradients_are_refused():
    given = make(2, 2, 2, 2)
    (once,) = torch.autograd.grad(ours(*given).square().sum(), given[4], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        once.sum().backward()
