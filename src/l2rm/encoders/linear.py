"""Linear layers in float32 on x86 processors by oneDNN, which torch otherwise keeps for bfloat16.

torch hands float32 products to MKL. On AMD processors MKL takes a slower path than oneDNN, by a third and more; on
Intel's the two are alike (benchmarks/speed.py). The function is the same, up to rounding.
"""

import platform
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ONEDNN = torch.backends.mkldnn.is_available() and platform.machine() in ("x86_64", "AMD64")


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weightᵀ + bias`, (…, I) and (O, I) -> (…, O), without gradient."""
    if ONEDNN and x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() and weight.numel():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return F.linear(x, weight, bias)


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        (outer,) = gradients
        rows = outer.reshape(-1, outer.shape[-1])
        to_x = apply_linear(outer, weight.t()) if ctx.needs_input_grad[0] else None
        to_weight = rows.t() @ x.reshape(-1, x.shape[-1]) if ctx.needs_input_grad[1] else None
        return to_x, to_weight, rows.sum(0) if ctx.needs_input_grad[2] else None


def apply_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x weightᵀ + bias` with gradient; as `F.linear`, autocast included."""
    if not ONEDNN or x.device.type != "cpu" or torch.is_autocast_enabled("cpu") or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    out: Tensor = _Apply.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return out


class Linear(nn.Linear):
    """A linear layer that starts Xavier uniform with zero bias, as every one of the published model does."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        nn.init.xavier_uniform_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return apply_linear(x, self.weight, self.bias)
