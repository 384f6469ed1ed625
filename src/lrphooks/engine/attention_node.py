"""Fused attention that may be differentiated twice."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lrphooks.engine.derivatives import true_derivative
from lrphooks.engine.errors import LRPError
from lrphooks.engine.nodes import Node
from lrphooks.torch_private import attention_by_products, is_fused_attention


class AttentionNode(Node):
    """Stands behind a fused kernel, whose backward pass has no derivative, and takes its place where one is asked for.

    An ordinary pass goes on to the kernel's own node. One with ``create_graph=True`` goes to the operands at once, by
    the derivative of the same function made of matrix products and a softmax.
    """

    @staticmethod
    def forward(ctx: Any, function: Callable[..., Tensor], out: Tensor, *operands: Tensor | None) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.function = function
        ctx.save_for_backward(*operands)
        # No view, which the model could not overwrite.
        return out.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None or not torch.is_grad_enabled():
            return None, gradient, *(None,) * (len(ctx.needs_input_grad) - 2)
        return None, None, *true_derivative(ctx.function, ctx.saved_tensors, gradient, ctx.needs_input_grad[2:])


def twice_differentiable(
    out: Tensor, operands: tuple[Tensor | None, ...], dropout: float, *, causal: bool, **settings: Any
) -> Tensor:
    """Return what attention gave for query, key, value and mask, with a second derivative if a fused kernel gave it."""
    if not is_fused_attention(out.grad_fn):
        return out
    function = partial(_by_products, out.dtype, dropout, causal, settings)
    return AttentionNode.apply(function, out, *operands)  # type: ignore[no-any-return]


def _by_products(
    dtype: torch.dtype, dropout: float, causal: bool, settings: dict[str, Any], *operands: Tensor | None
) -> Tensor:
    if dropout:
        raise LRPError(
            f"Relevance through scaled_dot_product_attention with dropout_p={dropout} cannot be differentiated "
            "(create_graph=True): the fused kernel has no second derivative, and what it dropped cannot be had again. "
            "Call model.eval(), or run the model within torch.nn.attention.sdpa_kernel(SDPBackend.MATH)."
        )
    # Autocasting gave the kernel copies of another type.
    query, key, value, mask = (t if t is None or not t.is_floating_point() else t.to(dtype) for t in operands)
    if mask is not None and mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -math.inf)
    return attention_by_products(query, key, value, mask, 0.0, causal, **settings)
