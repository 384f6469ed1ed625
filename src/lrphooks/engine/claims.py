"""Which rule a linear layer gets, where some rules are for first layers alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lrphooks.engine.call import Call
from lrphooks.engine.facts import Facts
from lrphooks.engine.serving import serves
from lrphooks.engine.unmatched import report_operation
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Gradient
from lrphooks.torch_private import base_of, current_backward_pass

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


def rule_of_layer(run: Run, call: Call, known: Sequence[Facts | None]) -> Rule:
    """Return the rule of a call of a linear layer; one without any is told of, and keeps its gradient."""
    rule = layer_rule(run, call, call.argument(1, "weight"), known)
    if rule is None:
        report_operation(run, call, "no entry of the composite gives a rule for this linear layer")
        return Gradient()
    return rule


def layer_rule(run: Run, call: Call, weight: Any, known: Sequence[Facts | None]) -> Rule | None:
    """Return the rule of a linear layer: by the module that runs it, the owner of its weight, or the function.

    ``known`` is what is known of its input.
    """
    frame = run.frames[-1] if run.frames else None
    if frame is not None:
        frame.served = True
    module = run.plan.layer_module(frame.module if frame else None, weight)
    if module is not None and (sure := run.plan.sure_rule(module)) is not None:
        return sure
    fresh = all(each is not None and each.fresh for each in known)
    candidates = run.plan.layer_candidates(module, call.operation, run.frames)
    return _claimed(run, candidates, _owner(run, call, weight, module), fresh=fresh)


def sum_rule(run: Run, call: Call) -> Rule | None:
    """Return the rule for linear layers that a sum has, or None; the module that adds has no say in it."""
    candidates = run.plan.layer_candidates(None, call.operation, run.frames)
    served = ((rule, first) for rule, first in candidates if serves(rule, call.operation))
    return _claimed(run, served, _owner(run, call, None, None), fresh=False)


def _claimed(run: Run, candidates: Iterable[tuple[Rule, int | None]], owner: Any, *, fresh: bool) -> Rule | None:
    """Return the first of the rules that is not for a first layer which another was executed before.

    Each layer that sees the input before another linear layer did counts as first, and each of its calls.
    """
    # The cells of a recurrent layer are one layer; a checkpoint that runs again finds the first layer where it was.
    again = bool(run.unrolled) or current_backward_pass() != -1
    for rule, first in candidates:
        if first is None:
            return rule
        claimed = run.claimed.get(first)
        if claimed is None or fresh or (claimed == owner and again):
            if claimed is None:
                # What sees the input itself is found by that when it runs again.
                run.claimed[first] = owner if run.unrolled or not fresh else object()
            return rule
    return None


def _owner(run: Run, call: Call, weight: Tensor | None, module: nn.Module | None) -> Any:
    """Return what tells one layer of a forward pass from the others, as far as it is the same in another pass."""
    running = run.frames[-1].module if run.frames else None
    if run.unrolled:
        return id(running), run.unrolled
    if module is not None:
        return id(module)
    base = weight if weight is None else base_of(weight)
    base = weight if base is None else base
    return id(base) if base is not None and base.is_leaf else (id(running), call.operation.name)
