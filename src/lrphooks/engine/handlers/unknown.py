"""Operations that lrphooks has no rule for: they keep their plain gradient, if they have one, and are reported."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import cuts
from lrphooks.engine.call import Call, replace_tensors, tensors_in
from lrphooks.engine.errors import LRPError
from lrphooks.engine.handlers.common import stop
from lrphooks.engine.unmatched import KEEP, NO_DERIVATIVE, report, report_operation, way_without_derivative
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Constant
from lrphooks.torch_private import HigherOrder, has_derivative, version_of

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

#: The nodes that torch puts behind an operation that has no derivative.
_STUBS = ("NotImplemented", "torch::autograd::WarnNotImplemented")


def unknown(run: Run, call: Call, _: Rule) -> Any:
    """Run the operation."""
    rule = run.plan.operation_rule(call.operation, run.frames)
    if rule is None and isinstance(call.function, HigherOrder):
        _refuse_hidden(run, call)
    beside = [(t, version_of(t)) for t in tensors_in((call.args, call.kwargs)) if not t.requires_grad]
    out = _differentiate(run, call) if call.function is torch.autograd.grad else call.invoke()
    for tensor, version in beside:
        # What it wrote to would have a graph now, if the operation had a derivative.
        written = version_of(tensor) != version and not tensor.requires_grad and tensor.is_floating_point()
        if written and not isinstance(rule, Constant):
            cuts.without_derivative(run, call, tensor)
    made = [t for t in tensors_in((out,)) if t.requires_grad]
    if isinstance(rule, Constant):
        # A pass that comes to a node without a derivative fails, though it brings nothing.
        out = replace_tensors(out, {id(t): t.detach() for t in made if _lacks_derivative(call, t)})
        stop(run, out)
    elif call.function is torch.autograd.grad and made:
        raise LRPError(
            f"A model that differentiates within its forward pass, in {run.name_of_running()}, has no relevance: "
            "the operations of torch.autograd.grad(..., create_graph=True) cannot be seen. Explain what it "
            "differentiates (the energy), or leave out create_graph, which makes the derivative a constant."
        )
    elif any(_lacks_derivative(call, t) for t in made):
        way, shapes = way_without_derivative(call.operation), [tuple(t.shape) for t in call.dependent]
        report(run, f"operation {call.operation.name}", NO_DERIVATIVE, way, shapes, always=rule is not None)
    elif rule is None and made:
        report_operation(run, call, "lrphooks has no rule for it")
    return out


def _differentiate(run: Run, call: Call) -> Any:
    """Run torch.autograd.grad, which does not find values that rules stand in front of."""
    try:
        return call.invoke()
    except RuntimeError as error:
        if "not have been used in the graph" not in str(error):
            raise
        raise LRPError(
            f"A model that differentiates within its forward pass, in {run.name_of_running()}, has no relevance where "
            "it does so by an activation: rules stand between that and what is differentiated. Explain what it "
            "differentiates, or differentiate by a copy, x.detach().requires_grad_(), which makes it a constant."
        ) from error


def _refuse_hidden(run: Run, call: Call) -> None:
    """Tell of an operation that runs functions of the model's own out of sight, before it does: it may fail."""
    reason = "what it runs inside cannot be seen"
    way = (
        "Write it out in operations of torch, as torch.nn.functional.scaled_dot_product_attention for attention "
        f"(attn_implementation='sdpa' in transformers), or {KEEP}"
    )
    shapes = [tuple(t.shape) for t in call.dependent]
    report(run, f"operation {call.operation.name}", reason, way, shapes, nodes=[])


def _lacks_derivative(call: Call, result: Tensor) -> bool:
    """Whether the graph behind a result is there only to say that it cannot be gone back through."""
    if result.grad_fn is not None and result.grad_fn.name() in _STUBS:
        return True
    return has_derivative(call.operation.name.replace(".", "::", 1)) is False
