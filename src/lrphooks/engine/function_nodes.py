"""The autograd nodes of what a rule exchanges the derivative of: gates, layers, activations, whole modules."""

# Functions are called as autograd calls them, with a context of no public type.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrphooks.engine.derivatives import of_parameters, true_derivative
from lrphooks.engine.nodes import Node, _sum, absent, per_input, unaliased, zero_link

if TYPE_CHECKING:
    from lrphooks.engine.passes import Passes


class GatedNode(Node):
    """The product of a signal and a constant, which receives nothing in a relevance pass.

    ``back`` takes the gradient and the constant, and returns the gradient of the signal.
    """

    of_model = True

    @staticmethod
    def forward(
        ctx: Any,
        passes: Passes,
        function: Callable[..., Tensor],
        back: Callable[[Tensor, Tensor], Tensor],
        signal: Tensor,
        gate: Tensor,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.passes, ctx.function, ctx.back = passes, function, back
        ctx.save_for_backward(signal, gate)
        return function(signal, gate)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        signal, gate = ctx.saved_tensors
        if ctx.passes.relevance:
            return None, None, None, ctx.back(gradient, gate).sum_to_size(signal.shape).to(signal.dtype), None
        need = ctx.needs_input_grad[3:]
        return None, None, None, *true_derivative(ctx.function, (signal, gate), gradient, need)


class ParameterizedMapNode(Node):
    """A linear map whose parameters require gradients: the relevance pass computes none for them.

    Without it, a plain ``backward()`` would spend a third of its time on gradients that would then pollute
    ``parameter.grad``.
    """

    of_model = True

    @staticmethod
    def forward(
        ctx: Any,
        passes: Passes,
        function: Callable[..., Tensor],
        transpose: Callable[..., Tensor],
        *tensors: Tensor | None,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.passes, ctx.function, ctx.transpose = passes, function, transpose
        ctx.save_for_backward(*tensors)
        out = function(*tensors)
        return unaliased(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        # Unpacked once: a checkpoint hands out each saved tensor a single time.
        tensors = ctx.saved_tensors
        need = ctx.needs_input_grad[3:]
        if ctx.passes.relevance:
            grad = ctx.transpose(gradient, *tensors[:2]) if need[0] else None
            return None, None, None, grad, *of_parameters(ctx.passes, ctx.function, tensors, gradient, need)
        return None, None, None, *true_derivative(ctx.function, tensors, gradient, need)


class ElementwiseNode(Node):
    """An activation under a rule: ``ratio(G, x, ...)`` in the relevance pass, the derivative in any other.

    With a target, ``write`` overwrites that with the value, and x is a copy of what it held.
    """

    of_model = True

    @staticmethod
    def forward(
        ctx: Any,
        passes: Passes,
        function: Callable[..., Tensor],
        ratio: Callable[..., Tensor],
        write: Callable[[Tensor], Any] | None,
        target: Tensor | None,
        x: Tensor,
        *others: Tensor,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.passes, ctx.function, ctx.ratio = passes, function, ratio
        ctx.save_for_backward(x, *others)
        if target is None or write is None:
            return function(x, *others)
        ctx.mark_dirty(target)
        write(target)
        return target

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        tensors = ctx.saved_tensors
        if ctx.passes.relevance:
            others = of_parameters(ctx.passes, ctx.function, tensors, gradient, ctx.needs_input_grad[5:])
            return None, None, None, None, None, ctx.ratio(gradient, *tensors), *others
        derivatives = true_derivative(ctx.function, tensors, gradient, ctx.needs_input_grad[5:])
        return None, None, None, None, None, *derivatives


class PassNode(Node):
    """A whole module that passes relevance from its output y to its input a as it is."""

    @staticmethod
    def forward(
        ctx: Any, passes: Passes, a: Tensor, values: Tensor, y: Tensor, link_in: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.passes = passes
        ctx.save_for_backward(values, y)
        return y.clone(), zero_link(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, relevance: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.passes.relevance:
            return None, None, None, gradient, None
        a, y = ctx.saved_tensors
        total = _sum(None if gradient is None else gradient * y, relevance)
        if total is None or ctx.needs_input_grad[4]:
            return None, None, None, None, total
        return None, per_input(total, a), None, None, None
