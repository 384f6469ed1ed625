"""Autograd functions of the model's own: what they compute cannot be seen, what goes in and comes out can.

A result is met when something consumes it. A function that acts on one tensor may have the identity rule if it keeps
that tensor for its backward pass, which is where it can be found.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrphooks.engine import notes
from lrphooks.engine.errors import LRPError
from lrphooks.engine.handlers.common import stop
from lrphooks.engine.nodes import PassNode, zero_link
from lrphooks.engine.passing import Source, passed
from lrphooks.engine.provenance import function_of, made_at, past_hooks
from lrphooks.engine.reporting import report
from lrphooks.rules.operation import Constant, Identity, Pass
from lrphooks.torch_private import is_view, preserve_version

if TYPE_CHECKING:
    from torch.autograd.function import Function

    from lrphooks.engine.run import Run


class FunctionNode(PassNode):
    """In place behind the result of a function: every consumer, seen or not, sends relevance past the function.

    kept: a copy of the result, which the model may overwrite.
    """

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, run: Run, a: Tensor, values: Tensor, y: Tensor, link_in: Tensor | None, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(y)
        ctx.run = run
        ctx.save_for_backward(values, kept)
        return y, zero_link(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, relevance: Tensor | None) -> tuple[Tensor | None, ...]:
        return *PassNode.backward(ctx, gradient, relevance), None

    @classmethod
    def behind(cls, run: Run, a: Tensor, values: Tensor, y: Tensor, link_in: Tensor | None) -> tuple[Tensor, Tensor]:
        """Set the node."""
        kept = y.clone()
        # The data stays as it is, so the function may go on using what it kept.
        with preserve_version(y):
            return cls.apply(run, a, values, y, link_in, kept)  # type: ignore[no-any-return]


def serve(run: Run, tensor: Tensor, function: type[Function]) -> notes.Constant:
    """Give a result of a function its rule, or tell that it keeps the gradient that the function defines.

    Returns what kind of constant the result is.

    Raises
    ------
    LRPError
        If the function cannot have the rule that the composite gives it.
    """
    _check_functions_before(run, tensor, function)
    rule = run.plan.function_rule(function)
    if isinstance(rule, Constant):
        stop(run, tensor)
        return "stopped"
    notes.write(tensor, run)
    if isinstance(rule, Identity | Pass):
        _pass(run, tensor, function, rule)
    elif rule is None:
        _report(run, function, tuple(tensor.shape))
    return ""


def _report(run: Run, function: type[Function], *shapes: tuple[int, ...]) -> None:
    reason = (
        "what it computes cannot be seen, and it keeps the gradient that it defines. If it acts on each element by "
        "itself and keeps 0, as activations do, give it lrphooks.rules.Identity()"
    )
    report(run, f"autograd function {function.__name__}", reason, function.__name__, shapes)


def _pass(run: Run, y: Tensor, function: type[Function], rule: Identity | Pass) -> None:
    who = f"{rule!r} on autograd function {function.__name__} in {run.name_of_running()}"
    instead = f"Give it lrphooks.rules.Gradient() or Constant(), or write {function.__name__} in operations of torch."
    if is_view(y):
        raise LRPError(f"{who} needs a result of its own, but it is a view of another tensor. {instead}")
    node, _ = made_at(y)
    sources = _sources(run, node)
    if len(sources) != 1:
        raise LRPError(
            f"{who} needs one input to hand relevance to, but {len(sources)} of its inputs depend on the explained "
            f"input. {instead}"
        )
    # What carries relevance among what a function keeps are its operands and results.
    kept = [t for t in node.saved_tensors if run.carries(t) and t.grad_fn is not node]
    if not kept:
        raise LRPError(
            f"{who} needs the function's input, which it does not keep for its backward pass (ctx.save_for_backward). "
            f"{instead}"
        )
    if kept[0].shape != y.shape:
        raise LRPError(
            f"{who} needs an output of the input's shape {tuple(kept[0].shape)}, got {tuple(y.shape)}. {instead}"
        )
    passed(run, Source.of(run, kept[0]), y, f"autograd function {function.__name__}", rule, FunctionNode.behind)


def _sources(run: Run, node: Any) -> list[tuple[Any, int]]:
    """Return the places in the graph that a node takes its operands from and that lead to the explained input."""
    return [
        edge for edge in dict.fromkeys(node.next_functions) if edge[0] is not None and run.provenance.reaches(edge[0])
    ]


def _check_functions_before(run: Run, y: Tensor, function: type[Function]) -> None:
    """Tell of functions whose results another function consumes, since nothing else meets these."""
    waiting = [made_at(y)[0]]
    while waiting:
        for edge in _sources(run, waiting.pop()):
            node, _ = past_hooks(*edge)
            before = function_of(node)
            if before is None:
                continue
            waiting.append(node)
            rule = run.plan.function_rule(before)
            if rule is None:
                _report(run, before)
            elif isinstance(rule, Constant | Identity | Pass):
                raise LRPError(
                    f"{rule!r} on autograd function {before.__name__} in {run.name_of_running()} cannot be set, "
                    f"because autograd function {function.__name__} consumes its result out of sight. Give it "
                    "lrphooks.rules.Gradient(), or put an operation between the two, such as x * 1."
                )
