"""An operation under a rule of the user's own: the rule says what becomes of the modified gradient."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine.call import Call
from lrphooks.engine.derivatives import true_derivative
from lrphooks.engine.errors import LRPError
from lrphooks.engine.handlers.common import in_place
from lrphooks.engine.nodes import Node, absent, unaliased
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import OperationRule

if TYPE_CHECKING:
    from lrphooks.engine.passes import Passes
    from lrphooks.engine.run import Run


class OperationNode(Node):
    """An operation under a rule of the user's own, which is asked in a relevance pass."""

    of_model = True

    @staticmethod
    def forward(
        ctx: Any, passes: Passes, rule: OperationRule, where: str, function: Callable[..., Tensor], *operands: Tensor
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.passes, ctx.rule, ctx.where, ctx.function = passes, rule, where, function
        out = function(*operands)
        if not isinstance(out, Tensor):
            raise LRPError(
                f"{rule!r} cannot serve {where}, which returns a {type(out).__name__}: such a rule is told of one "
                "output. Give it Gradient() or Constant(), or write the operation as several of one output each."
            )
        # A copy, since the model may overwrite the output.
        ctx.save_for_backward(out.clone(), *operands)
        return unaliased(out)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        output, *operands = ctx.saved_tensors
        if not ctx.passes.relevance:
            needed = ctx.needs_input_grad[4:]
            return None, None, None, None, *true_derivative(ctx.function, tuple(operands), gradient, needed)
        if torch.is_grad_enabled():
            # Made again, so that it can be differentiated.
            output = ctx.function(*operands)
        return None, None, None, None, *asked(ctx.rule, ctx.where, gradient, output, tuple(operands))


class BehindNode(Node):
    """A rule of the user's own in place behind the result y of a function whose inside is out of sight.

    a: the function's operand. kept: a copy of y, which the model may overwrite.
    """

    @staticmethod
    def forward(
        ctx: Any, passes: Passes, rule: OperationRule, where: str, a: Tensor, y: Tensor, kept: Tensor
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(y)
        ctx.passes, ctx.rule, ctx.where = passes, rule, where
        ctx.save_for_backward(a, kept)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        if not ctx.passes.relevance:
            return None, None, None, None, gradient, None
        a, y = ctx.saved_tensors
        return None, None, None, *asked(ctx.rule, ctx.where, gradient, y, (a,)), None, None


def asked(
    rule: OperationRule, where: str, gradient: Tensor, output: Tensor, operands: tuple[Tensor, ...]
) -> tuple[Tensor | None, ...]:
    """Return what a rule answers, or raise an error that says what it had to be."""
    found = tuple(rule.modified_gradients(gradient, output, operands))
    expected = [tuple(a.shape) for a in operands]
    got = [tuple(g.shape) if isinstance(g, Tensor) else None if g is None else type(g).__name__ for g in found]
    if len(found) != len(operands) or any(g is not None and g != e for g, e in zip(got, expected, strict=True)):
        raise LRPError(
            f"{rule!r} on {where} must return a modified gradient for each of its {len(operands)} operands that "
            f"depend on the explained input, of shapes {expected} or None, but returned {got}."
        )
    return found


def operation(run: Run, call: Call, rule: Rule) -> Any:
    """Run a call under a rule of the user's own."""
    assert isinstance(rule, OperationRule)
    if call.writes_in_place:
        return in_place(run, call, operation, rule)
    operands = list({id(t): t for t in call.dependent}.values())
    where = f"operation {call.operation.name} in {run.name_of_running()}"
    out: Tensor = OperationNode.apply(run.passes, rule, where, call.over(operands), *operands)
    return out
