"""Derivatives that nodes hand on: true ones, and in a relevance pass those of parameters, if they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lrphooks.torch_private import is_batched

if TYPE_CHECKING:
    from lrphooks.engine.passes import Passes


def several(gradient: Tensor) -> bool:
    """Whether a gradient stands for several that come in one batch, which no ordinary tensor has room for."""
    return is_batched(gradient)


def spare(values: Tensor, gradient: Tensor) -> Tensor | None:
    """Return values that nobody needs any longer, where a result of them and a gradient may overwrite them."""
    if several(gradient):
        return None
    return None if values.dtype != gradient.dtype or values.shape != gradient.shape else values


def true_derivative(
    function: Callable[..., Tensor | Sequence[Tensor]],
    inputs: tuple[Tensor | None, ...],
    gradient: Tensor | Sequence[Tensor],
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of ``function(*inputs)`` for the needed inputs, differentiable where grad mode is on."""
    create = torch.is_grad_enabled()
    wanted = [i for i, need in enumerate(needed) if need and inputs[i] is not None]
    if not wanted:
        return tuple(None for _ in inputs)
    with torch.enable_grad():
        # Fresh handles keep this derivative local; with create_graph they stay attached to the graph behind them.
        local = list(inputs)
        for i in wanted:
            tensor = inputs[i]
            assert tensor is not None
            local[i] = torch.ops.aten.alias.default(tensor) if create else tensor.detach().requires_grad_()
        out = function(*local)
        sources = [tensor for i in wanted if (tensor := local[i]) is not None]
        grads = torch.autograd.grad(out, sources, gradient, create_graph=create, allow_unused=True)
    result: list[Tensor | None] = [None] * len(inputs)
    for i, grad in zip(wanted, grads, strict=True):
        result[i] = grad
    return tuple(result)


def of_parameters(
    passes: Passes,
    function: Callable[..., Tensor],
    inputs: tuple[Tensor | None, ...],
    gradient: Tensor,
    needed: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of all inputs but the first in a relevance pass: of parameters, if they are asked for."""
    if not passes.parameters:
        return (None,) * (len(inputs) - 1)
    return true_derivative(function, inputs, gradient, (False, *needed[1:]))[1:]
