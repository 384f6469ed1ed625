"""Operations that move, select or add values: the plain gradient, and what is known of the elements goes along."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine.bounds import Bound, bounds_of, clips_as_activation
from lrphooks.engine.call import Call
from lrphooks.engine.handlers.common import plain
from lrphooks.engine.handlers.elementwise import activation, quotient_of, relu
from lrphooks.engine.unmatched import report_operation
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Gradient, Identity, Pass

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


def select(run: Run, call: Call, rule: Rule) -> Any:
    """Hand relevance to the values selected."""
    if isinstance(rule, Identity | Pass):
        return activation(run, call, rule)
    if call.operation.name == "prelu" and run.carries(call.argument(1, "weight")):
        _report(run, call, "its slope depends on the explained input")
    return plain(run, call, rule)


def clamp(run: Run, call: Call, rule: Rule) -> Any:
    """Clip to bounds: a lower one up to 0 and an upper one from 0 as activations, R_a = R_z; others are constants."""
    bounds = bounds_of(call)
    if bounds is None or not isinstance(rule, Identity):
        return select(run, call, Gradient() if isinstance(rule, Identity) else rule)
    (source,) = call.dependent
    low, high = bounds
    tensors = [bound for bound in bounds if isinstance(bound, Tensor)]
    if tensors and (shape := torch.broadcast_tensors(source, *tensors)[0].shape) != source.shape:  # type: ignore[no-untyped-call]
        return clamp(run, call.replaced({id(source): source.expand(shape)}), rule)
    if not tensors and bounds == (0, None):
        return relu(run, call, Gradient())
    if clips_as_activation(call):
        inside = (low is None or low < 0) and (high is None or high > 0)
        return activation(run, call, rule, quotient=partial(quotient_of, slope=float(inside)))
    return activation(run, call, rule, quotient=partial(_clipped, low, high))


def _clipped(
    low: Bound, high: Bound, function: Callable[..., Tensor], gradient: Tensor, x: Tensor, *learned: Tensor
) -> Tensor:
    """Return G f(x) / x, and nothing where a bound wins that is a constant."""
    zero = x == 0
    between, constant = torch.ones_like(zero), torch.zeros_like(zero)
    for given, sign in ((low, 1), (high, -1)):
        if given is not None:
            bound = sign * torch.as_tensor(given, device=x.device)
            between, constant = between & (bound < 0), constant | ((bound > 0) & (sign * x < bound))
    safe = torch.where(zero, torch.ones_like(x), x)
    quotient = torch.where(zero, between.to(x.dtype), function(safe, *learned) / safe)
    return gradient * torch.where(constant, torch.zeros_like(x), quotient)


#: Linear in their input as long as nothing else depends on what is explained.
_WEIGHTED = frozenset({"embedding_bag", "stft", "istft"})


def _report(run: Run, call: Call, reason: str) -> None:
    """Report a form of an operation that is not linear, unless the composite has a rule for it."""
    if run.plan.operation_rule(call.operation, run.frames) is None:
        report_operation(run, call, reason)


def combination(run: Run, call: Call, rule: Rule) -> Any:
    """Add, average or join: linear in all operands together."""
    name = call.operation.name
    if any(v == "prod" for v in (*call.args, *call.kwargs.values()) if isinstance(v, str)):
        _report(run, call, "it multiplies what it gathers")
    if name in _WEIGHTED and len(call.dependent) > 1:
        _report(run, call, "its weights depend on the explained input")
    return plain(run, call, rule)
