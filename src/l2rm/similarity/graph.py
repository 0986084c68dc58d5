"""A step of graph reasoning over the nodes of each pair, with a gradient that keeps little.

Shape suffixes: P pairs, K nodes, Q of them asked for (the first ones), S similarity space.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from l2rm.encoders.linear import Linear, product
from l2rm.similarity.nodes import at_once, working_type


class GraphStep(nn.Module):
    """`x ← relu(W softmax(q(x) k(x)ᵀ) x + b)` over the nodes of each pair.

    A term that only the query decides drops out of the softmax, so `q(x) k(x)ᵀ` is `(G x + g) xᵀ` with the folded
    `G = W_kᵀ W_q`, `g = W_kᵀ b_q`: one product instead of two, the same function.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query = Linear(dim, dim)
        self.key = Linear(dim, dim)
        self.out = Linear(dim, dim)

    def forward(self, nodes_PKS: Tensor, asked: int) -> Tensor:
        """(P, K, S) nodes -> the first `asked` of them, updated, (P, Q, S)."""
        fold = self.key.weight.T @ self.query.weight
        shift = self.key.weight.T @ self.query.bias
        updated: Tensor = _Update.apply(  # type: ignore[no-untyped-call]
            working_type(nodes_PKS),
            asked,
            torch.is_grad_enabled(),
            nodes_PKS,
            fold,
            shift,
            self.out.weight,
            self.out.bias,
        )
        return updated


class _Update(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, asked: int, keep: bool, *inputs: Tensor) -> Tensor:
        ctx.types = [x.dtype for x in inputs]
        nodes, fold, shift, weight, bias = (x.to(dtype) for x in inputs)
        updated = nodes.new_empty(len(nodes), asked, nodes.shape[2])
        ctx.parts, kept = _few(nodes), []
        for part in ctx.parts:
            x = nodes[part]
            query = product(x[:, :asked], fold, shift)
            share = torch.bmm(query, x.transpose(1, 2)).softmax(-1)
            torch.clamp_min(product(torch.bmm(share, x), weight, bias), 0, out=updated[part])
            if keep:
                kept += [query, share]
        ctx.save_for_backward(nodes, fold, weight, updated, *kept)
        return updated

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        nodes, fold, weight, updated, *kept = ctx.saved_tensors
        asked = updated.shape[1]
        to_nodes = torch.empty_like(nodes)
        exact = torch.promote_types(weight.dtype, torch.float32)
        to_fold, to_weight = (torch.zeros_like(x, dtype=exact) for x in (fold, weight))
        to_shift, to_bias = (torch.zeros_like(x[0], dtype=exact) for x in (fold, weight))
        for part, query, share in zip(ctx.parts, kept[::2], kept[1::2], strict=True):
            x, to_x = nodes[part], to_nodes[part]
            to_out = torch.where(updated[part] > 0, gradients[0][part], 0)
            to_weight += to_out.flatten(0, 1).t() @ torch.bmm(share, x).flatten(0, 1)
            to_bias += to_out.sum((0, 1))
            to_seen = product(to_out, weight.t())
            torch.bmm(share.transpose(1, 2), to_seen, out=to_x)
            to_share = torch.bmm(to_seen, x.transpose(1, 2)).mul_(share)
            to_logits = to_share.sub_(share * to_share.sum(-1, keepdim=True))
            to_x.baddbmm_(to_logits.transpose(1, 2), query)
            to_query = torch.bmm(to_logits, x)
            to_fold += to_query.flatten(0, 1).t() @ x[:, :asked].flatten(0, 1)
            to_shift += to_query.sum((0, 1))
            to_x[:, :asked] += product(to_query, fold.t())
        found = (to_nodes, to_fold, to_shift, to_weight, to_bias)
        return None, None, None, *(x.to(dtype) for x, dtype in zip(found, ctx.types, strict=True))


def _few(nodes: Tensor) -> list[slice]:
    """A few pairs at a time."""
    count = max(1, at_once(nodes) // nodes[0].numel())
    return [slice(start, start + count) for start in range(0, len(nodes), count)]
