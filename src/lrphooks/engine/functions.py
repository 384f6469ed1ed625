"""What the model computes out of sight: what goes in and comes out can be seen, by the nodes that it leaves.

It is in autograd functions of the model's own, TorchScript, other threads, and extensions in C++.

A result is met when something consumes it. A function that acts on one tensor may have the identity rule if it keeps
that tensor for its backward pass, which is where it can be found.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from lrphooks.engine import facts
from lrphooks.engine.conventions import CONVENTIONS
from lrphooks.engine.errors import LRPError
from lrphooks.engine.function_nodes import PassNode
from lrphooks.engine.handlers.common import stop
from lrphooks.engine.nodes import zero_link
from lrphooks.engine.operation_node import BehindNode
from lrphooks.engine.passes import Passes
from lrphooks.engine.passing import passed, source
from lrphooks.engine.provenance import function_of, made_at, past_hooks
from lrphooks.engine.serving import SUMS
from lrphooks.engine.unmatched import KEEP, entry, report
from lrphooks.operations import by_node
from lrphooks.rules.operation import Constant, Gradient, Identity, OperationRule, Pass
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
        ctx: Any, passes: Passes, a: Tensor, values: Tensor, y: Tensor, link_in: Tensor | None, kept: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(y)
        ctx.passes = passes
        ctx.save_for_backward(values, kept)
        return y, zero_link(y)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, relevance: Tensor | None) -> tuple[Tensor | None, ...]:
        return *PassNode.backward(ctx, gradient, relevance), None

    @classmethod
    def behind(
        cls, passes: Passes, a: Tensor, values: Tensor, y: Tensor, link_in: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Set the node."""
        kept = y.clone()
        # The data stays as it is, so the function may go on using what it kept.
        with preserve_version(y):
            return cls.apply(passes, a, values, y, link_in, kept)  # type: ignore[no-any-return]


def serve(run: Run, tensor: Tensor) -> facts.Constant:
    """Give a tensor that no call in sight made its rule, or tell that it keeps the gradient of what made it.

    Returns what kind of constant it is.

    Raises
    ------
    LRPError
        If the autograd function that made it cannot have the rule that the composite gives it.
    """
    node, _ = made_at(tensor)
    function = function_of(node)
    hidden = _out_of_sight(run, node)
    if hidden:
        _report_hidden(run, hidden, tuple(tensor.shape))
    # So that the next consumer need not look again.
    run.provenance.see((tensor,))
    return "" if function is None else _serve_function(run, tensor, node, function)


def _serve_function(run: Run, tensor: Tensor, node: Any, function: type[Function]) -> facts.Constant:
    """Give a result of a function its rule, or tell that it keeps the gradient that the function defines."""
    _check_functions_before(run, tensor, function)
    rule = run.plan.function_rule(function)
    if isinstance(rule, Constant):
        stop(run, tensor)
        return "stopped"
    facts.write(tensor, run)
    if isinstance(rule, Identity | Pass | OperationRule):
        _pass(run, tensor, function, rule)
    elif rule is None:
        _report(run, node, function, tuple(tensor.shape))
    return ""


def _report(run: Run, node: Any, function: type[Function], *shapes: tuple[int, ...]) -> None:
    reason = (
        "what it computes cannot be seen, and it keeps the gradient that it defines. If it acts on each element by "
        "itself and keeps 0, as activations do, give it lrphooks.rules.Identity()"
    )
    report(run, f"autograd function {function.__name__}", reason, entry(function.__name__), shapes, [node])


def _out_of_sight(run: Run, start: Any) -> list[Any]:
    """Return the nodes of torch, or of C++ extensions, that are behind one and that no call in sight made.

    Those whose gradient is what the rules ask for anyway do not count, nor do those of autograd functions in Python.
    """
    nodes = run.provenance.unseen(start)
    return [n for n in nodes if not isinstance(n, BackwardCFunction) and not _keeps_gradient(run, n)]


def _keeps_gradient(run: Run, node: Any) -> bool:
    """Whether the operation that made a node would have its plain gradient in sight too."""
    found = _NODE.fullmatch(node.name().rpartition("::")[2])
    if found is None:
        # What was written to through a view: the operation that wrote is in sight, or another node tells of it.
        return type(node).__name__ == "CopySlices"
    operation = by_node(found[1])
    if run.plan.rules_sums and operation.name in SUMS:
        return False
    rule = run.plan.operation_rule(operation, run.frames)
    return isinstance(rule or (CONVENTIONS.get(operation.kind) if run.times_input else Gradient()), Gradient)


#: The name of a node of torch, after what made it.
_NODE = re.compile(r"(\w+)Backward\d*")


def _report_hidden(run: Run, nodes: list[Any], *shapes: tuple[int, ...]) -> None:
    names = dict.fromkeys(n.name().rpartition("::")[2].rstrip("0123456789").removesuffix("Backward") for n in nodes)
    made = (
        f"node {', '.join(names)}, which keeps its"
        if len(names) == 1
        else f"nodes {', '.join(names)}, which keep their"
    )
    reason = (
        f"a tensor that is used here was made out of sight of lrphooks, by the autograd {made} plain gradient: in a "
        "function of TorchScript, in a thread that the model started, or in an extension in C++"
    )
    way = (
        "Let the model run the Python function that the TorchScript was made from (the environment variable "
        "PYTORCH_JIT=0 does so for all), or the operations in its own thread, or write them in operations of torch, or "
        f"{KEEP}"
    )
    report(run, "operations out of sight", reason, way, shapes, nodes)


def _pass(run: Run, y: Tensor, function: type[Function], rule: Identity | Pass | OperationRule) -> None:
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
    if isinstance(rule, OperationRule):
        copy = y.clone()
        # The data stays as it is, so the function may go on using what it kept.
        with preserve_version(y):
            BehindNode.apply(run.passes, rule, f"autograd function {function.__name__}", kept[0], y, copy)
        return
    if kept[0].shape != y.shape:
        raise LRPError(
            f"{who} needs an output of the input's shape {tuple(kept[0].shape)}, got {tuple(y.shape)}. {instead}"
        )
    passed(run, source(run, kept[0]), y, f"autograd function {function.__name__}", rule, FunctionNode.behind)


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
                _report(run, node, before)
            elif isinstance(rule, Constant | Identity | Pass | OperationRule):
                raise LRPError(
                    f"{rule!r} on autograd function {before.__name__} in {run.name_of_running()} cannot be set, "
                    f"because autograd function {function.__name__} consumes its result out of sight. Give it "
                    "lrphooks.rules.Gradient(), or put an operation between the two, such as x * 1."
                )
