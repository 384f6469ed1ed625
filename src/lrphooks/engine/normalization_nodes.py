"""The autograd nodes of normalisations, whose standard deviation counts as constant in a relevance pass."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrphooks.engine.derivatives import of_parameters, true_derivative
from lrphooks.engine.nodes import Node, absent, unaliased

if TYPE_CHECKING:
    from lrphooks.engine.passes import Passes


class NormalizationNode(Node):
    """A normalisation: centred and scaled by a standard deviation that counts as constant.

    ``function`` returns the value and, where the operation tells it, one over the standard deviation.
    """

    of_model = True

    @staticmethod
    def forward(
        ctx: Any,
        passes: Passes,
        function: Callable[..., tuple[Tensor, Tensor | None]],
        again: Callable[..., Tensor],
        linearized: Callable[..., Tensor],
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        # What runs again for the derivative must not record its statistics a second time.
        ctx.passes, ctx.function, ctx.linearized = passes, again, linearized
        out, scale = function(*tensors)
        ctx.save_for_backward(scale, *tensors)
        return unaliased(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        scale, *saved = ctx.saved_tensors
        tensors = tuple(saved)
        need = ctx.needs_input_grad[4:]
        if ctx.passes.relevance:
            others = of_parameters(ctx.passes, ctx.function, tensors, gradient, need)
            return None, None, None, None, ctx.linearized(gradient, scale, *tensors), *others
        return None, None, None, None, *true_derivative(ctx.function, tensors, gradient, need)


class BatchNormNode(Node):
    """An evaluated BatchNorm: a fixed factor for each channel.

    torch's own backward is not used for the input: for a batch of one whose gradient is laid out channels last, that
    of torch 2.13 on the CPU is wrong.
    """

    of_model = True

    @staticmethod
    def forward(
        ctx: Any, passes: Passes, function: Callable[..., Tensor], eps: float, x: Tensor, *parameters: Tensor | None
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.passes, ctx.function, ctx.eps = passes, function, eps
        # The input itself is needed for derivatives with respect to parameters alone.
        ctx.save_for_backward(x if any(ctx.needs_input_grad[4:]) else None, *parameters)
        return function(x, *parameters)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        x, *parameters = ctx.saved_tensors
        _, variance, gain, _ = parameters
        scale = (variance + ctx.eps).rsqrt()
        if gain is not None:
            scale = scale * gain
        through = gradient * scale.to(gradient.dtype).reshape(1, -1, *(1,) * (gradient.dim() - 2))
        if x is None or (ctx.passes.relevance and not ctx.passes.parameters):
            return None, None, None, through, *(None for _ in parameters)
        need = (False, *ctx.needs_input_grad[4:])
        others = true_derivative(ctx.function, (x, *parameters), gradient.contiguous(), need)
        return None, None, None, through, *others[1:]
