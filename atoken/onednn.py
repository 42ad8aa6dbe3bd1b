"""oneDNN's matrix product on a CPU: torch takes MKL's in fp32, which has half its speed on AMD (docs/results.md)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_DTYPES = (torch.float32, torch.bfloat16) if _AVAILABLE else ()


def takes_onednn(x: Tensor) -> bool:
    """Whether these products can be called with ``x``: on a CPU, without autocast or compilation, not empty."""
    fits = x.device.type == "cpu" and x.dtype in _DTYPES and x.numel() > 0
    # The compiler has no rule for these operators.
    return fits and not torch.is_autocast_enabled("cpu") and not torch.compiler.is_compiling()


def onednn_product(x_ND: Tensor, weight: Tensor, bias: Tensor | None = None, *, gelu: str | None = None) -> Tensor:
    """``F.linear`` without a gradient, then ``F.gelu`` of that form if there is one; a matrix is contiguous."""
    after: tuple[str, list[Any], str] = ("gelu", [], gelu) if gelu else ("none", [], "")
    return torch.ops.mkldnn._linear_pointwise(x_ND, weight, bias, *after)


def onednn_swiglu(x_ND: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """``silu(gate) * value`` without a gradient, of outputs that are gate, then value; nothing is kept of both."""
    gates, values = zip(weight.chunk(2), bias.chunk(2), strict=True)
    gate_NH = torch.ops.mkldnn._linear_pointwise(x_ND, *gates, "swish", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(x_ND, gate_NH, *values, "mul")


class OneDNNProduct(torch.autograd.Function):
    """``F.linear`` with its gradients: (..., inputs), (outputs, inputs), (outputs,) or None -> (..., outputs)."""

    @staticmethod
    def forward(ctx: Any, x_ND: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """As ``F.linear``."""
        ctx.save_for_backward(x_ND, weight)
        return onednn_product(x_ND, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_ND: Tensor) -> tuple[Tensor | None, ...]:
        """Those of the three that are asked for."""
        x_ND, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        # Contiguous: of two matrices with gaps between rows the product is a hundred times slower.
        rows_ND, grads_ND = (y_ND.reshape(-1, y_ND.shape[-1]).contiguous() for y_ND in (x_ND, grad_ND))
        return (
            onednn_product(grads_ND, weight.T).view_as(x_ND) if of_x else None,
            onednn_product(grads_ND.T, rows_ND.T) if of_weight else None,
            grads_ND.sum(0) if of_bias else None,
        )
