"""Similarity vectors, the nodes of a pair: what each word of a caption finds in an image, and what the two share.

Shape suffixes: N images, R regions, C captions of one length, L words, D joint space, S similarity space. A tensor
(N, C, L, D) is what costs: written out for a batch, as a loop over captions does in the end, it takes gigabytes. Here
it exists for a few images at a time, small enough for a processor's cache, and is made again for the gradient.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from l2rm.encoders.linear import apply_linear, product
from l2rm.encoders.towers import NORM_FLOOR, l2_normalise

SHARPNESS = 9.0
LEAK = 0.1
LEAST_SQUARE = 1e-30


def at_once(x: Tensor) -> int:
    """Numbers in a tensor that is worked on at a time: what stays in a processor's cache, or fills a card."""
    return 2**20 if x.device.type == "cpu" else 2**28


def working_type(x: Tensor) -> torch.dtype:
    """What `x` is to be multiplied in: autocast's type where autocast is on, else its own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def affinities(region_NRD: Tensor, words: list[Tensor]) -> list[Tensor]:
    """`leaky_relu(v·w, 0.1)` of regions and words, (N, R, C, L) a group (C, L, D) of captions, in one product."""
    N, R, D = region_NRD.shape
    dtype = working_type(region_NRD)
    flat = torch.cat([word.reshape(-1, D) for word in words]).to(dtype)
    with torch.autocast(region_NRD.device.type, enabled=False):
        made = F.leaky_relu(apply_linear(region_NRD.to(dtype).flatten(0, 1), flat), LEAK)
    parts = made.view(N, R, -1).split([word.shape[0] * word.shape[1] for word in words], 2)
    return [part.unflatten(2, word.shape[:2]) for part, word in zip(parts, words, strict=True)]


def products(region_NRD: Tensor) -> Tensor:
    """The regions of each image with one another, (N, R, R)."""
    return region_NRD @ region_NRD.transpose(1, 2)


def attention(affinity_NRCL: Tensor, products_NRR: Tensor) -> Tensor:
    """How much each word takes of each region, so that what it takes has length one: (N, R, C·L).

    Affinity, l2 over the words of a caption, softmax over regions of 9 times that; then divided by the length of
    `Σ attention · region`, which the regions' products with one another give.
    """
    exact = torch.promote_types(affinity_NRCL.dtype, torch.float32)
    with torch.autocast(affinity_NRCL.device.type, enabled=False):
        shares = (SHARPNESS * l2_normalise(affinity_NRCL.to(exact))).softmax(1).flatten(2)
        square = (shares * (products_NRR.to(exact) @ shares)).sum(1, keepdim=True)
        return shares / (square.clamp(min=LEAST_SQUARE).sqrt() + NORM_FLOOR)


def pair_nodes(
    attention_NRW: Tensor,
    image: tuple[Tensor, Tensor],
    caption: tuple[Tensor, Tensor],
    whole_layer: tuple[Tensor, Tensor],
    local_layer: tuple[Tensor, Tensor],
) -> Tensor:
    """The nodes (N, C, 1 + L, S) of pairs: the whole pair's, then one a word; in autocast's type where that is on.

    `l2(W (image − caption)² + b)` and `l2(W' (Σ attention · region − word)² + b')`. Only the nodes and their lengths
    are kept for the gradient, which makes the rest again.

    Args:
        attention_NRW: `attention` of the regions and words, W = C·L.
        image: whole images (N, D) and their regions (N, R, D).
        caption: whole captions (B, C, D) and their words (B, C, L, D): B is 1 where all images meet the same captions,
            N where each has its own.
        whole_layer: weight (S, D) and bias (S,).
        local_layer: the same for words.
    """
    (whole, region), (text, word) = image, caption
    dtype = working_type(region)
    nodes: Tensor = _PairNodes.apply(  # type: ignore[no-untyped-call]
        dtype, attention_NRW, region, word, whole, text, *local_layer, *whole_layer
    )
    return nodes


class _PairNodes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *inputs: Tensor) -> Tensor:
        ctx.types = [x.dtype for x in inputs]
        attention, region, word, whole, text, local_weight, local_bias, weight, bias = (x.to(dtype) for x in inputs)
        N, (_, C, L, _), S = len(region), word.shape, len(weight)
        nodes, length = word.new_empty(N, C, 1 + L, S), word.new_empty(N, C, 1 + L, 1)
        words = word.flatten(1, 2)
        for part, difference, square in _few(N, words):
            _subtract(attention[part], region[part], _met(words, part), difference, square)
            made = product(square, local_weight, local_bias).view(-1, C, L, S)
            _unit(made, nodes[part, :, 1:], length[part, :, 1:])
        for part, difference, square in _few(N, text):
            torch.sub(whole[part, None], _met(text, part), out=difference)
            made = product(torch.mul(difference, difference, out=square), weight, bias)
            _unit(made, nodes[part, :, 0], length[part, :, 0])
        ctx.save_for_backward(attention, region, word, whole, text, local_weight, weight, nodes, length)
        return nodes

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        attention, region, word, whole, text, local_weight, weight, nodes, length = ctx.saved_tensors
        N, words = len(region), word.flatten(1, 2)
        exact = torch.promote_types(weight.dtype, torch.float32)
        to_attention, to_region, to_whole = (torch.empty_like(x) for x in (attention, region, whole))
        to_words, to_text = (torch.zeros_like(x, dtype=exact) for x in (words, text))
        local, layer = (_LayerGradient(x, exact) for x in (local_weight, weight))
        for part, difference, square in _few(N, words):
            met, to_met = _met(words, part), _met(to_words, part)
            _subtract(attention[part], region[part], met, difference, square)
            of = _through_l2(gradients[0][part, :, 1:], nodes[part, :, 1:], length[part, :, 1:])
            difference.mul_(local.through(of, square))
            to_met -= difference.sum_to_size(met.shape)
            torch.bmm(region[part], difference.transpose(1, 2), out=to_attention[part])
            torch.bmm(attention[part], difference, out=to_region[part])
        for part, difference, square in _few(N, text):
            met, to_met = _met(text, part), _met(to_text, part)
            torch.sub(whole[part, None], met, out=difference)
            torch.mul(difference, difference, out=square)
            of = _through_l2(gradients[0][part, :, 0], nodes[part, :, 0], length[part, :, 0])
            difference.mul_(layer.through(of, square))
            to_met -= difference.sum_to_size(met.shape)
            torch.sum(difference, 1, out=to_whole[part])
        found = (to_attention, to_region, to_words.view_as(word), to_whole, to_text, *local.found, *layer.found)
        return None, *(x.to(dtype) for x, dtype in zip(found, ctx.types, strict=True))


def _met(words: Tensor, part: slice) -> Tensor:
    """The words that some of the images meet: the same for all, or each its own."""
    return words if len(words) == 1 else words[part]


class _LayerGradient:
    """What the weight and bias of a layer on squares of differences are told, summed part by part."""

    def __init__(self, weight: Tensor, dtype: torch.dtype) -> None:
        self.twice = 2 * weight.t()
        # MKL makes squareᵀ · rows faster than rowsᵀ · square, by a sixth
        self._transposed = weight.new_zeros(weight.shape[::-1], dtype=dtype)
        self._bias = weight.new_zeros(len(weight), dtype=dtype)

    @property
    def found(self) -> tuple[Tensor, Tensor]:
        """Of the weight (S, D) and of the bias (S,)."""
        return self._transposed.t(), self._bias

    def through(self, gradient: Tensor, square: Tensor) -> Tensor:
        """Add what `gradient` (n, …, S) of the layer's output says; returns the factor of the difference, `2 Wᵀ g`."""
        rows = gradient.reshape(-1, gradient.shape[-1])
        self._transposed += square.view(len(rows), -1).t() @ rows
        self._bias += rows.sum(0)
        return product(rows, self.twice).view_as(square)


def _few(images: int, words: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """A few images at a time, with room for two tensors (n, W, D), which is the same room every time."""
    count = min(images, max(1, at_once(words) // max(1, words[0].numel())))
    room = words.new_empty(2, count, *words.shape[1:])
    for start in range(0, images, count):
        stop = min(start + count, images)
        yield slice(start, stop), room[0, : stop - start], room[1, : stop - start]


def _subtract(attention: Tensor, region: Tensor, words: Tensor, difference: Tensor, square: Tensor) -> None:
    """Write `Σ attention · region − word` and its square."""
    torch.bmm(attention.transpose(1, 2), region, out=difference)
    difference.sub_(words)
    torch.mul(difference, difference, out=square)


def _unit(x: Tensor, unit: Tensor, length: Tensor) -> None:
    """Write l2(x), and the length of x."""
    length.copy_(torch.linalg.vector_norm(x, dim=-1, keepdim=True))
    torch.div(x, length + NORM_FLOOR, out=unit)


def _through_l2(gradient: Tensor, unit: Tensor, length: Tensor) -> Tensor:
    """The gradient of `x` from that of `unit = x / (length + floor)`, where `length = ‖x‖`."""
    floored = length + NORM_FLOOR
    inner = (gradient * unit).sum(-1, keepdim=True).mul_(floored).div_(length.clamp(min=NORM_FLOOR))
    return torch.addcmul(gradient, unit, inner, value=-1).div_(floored)
