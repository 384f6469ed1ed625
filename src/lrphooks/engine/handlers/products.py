"""Products and quotients of activations."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.handlers.common import in_place, plain
from lrphooks.engine.nodes import ScaleNode
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Constant, Gradient, TakesAll

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


def product(run: Run, call: Call, rule: Rule) -> Any:
    """Products: each factor that carries relevance receives its share."""
    return _multiply(run, call, rule, first=0)


def added_product(run: Run, call: Call, rule: Rule) -> Any:
    """A summand and a product in one operation, such as addmm."""
    return _multiply(run, call, rule, first=1)


def _multiply(run: Run, call: Call, rule: Rule, first: int) -> Any:
    factors = [*call.args[first:], *(v for k, v in call.kwargs.items() if k not in ("input", "self") or not first)]
    carriers = [t for t in tensors_in(factors) if run.carries(t)]
    name = call.operation.name
    if isinstance(rule, Gradient | Constant):
        return plain(run, call, rule)
    if name == "prod":
        source = call.dependent[0]
        dim = call.argument(1, "dim")
        count = source.numel() if dim is None else source.shape[dim]
        return call.replaced({id(source): ScaleNode.apply(run, 1.0 / count, source)}).invoke()
    if name in ("lerp", "grid_sample"):
        weight = call.argument(2, "weight") if name == "lerp" else call.argument(1, "grid")
        if isinstance(weight, Tensor) and run.carries(weight):
            run.unmatched(call, "its weights depend on the explained input")
        return call.invoke()
    if len(carriers) < 2:
        return plain(run, call, rule)
    if isinstance(rule, TakesAll):
        chosen = carriers[min(int(rule.operand), len(carriers) - 1)]
        shares = {id(t): float(t is chosen) for t in carriers}
    else:
        shares = {id(t): 1.0 / len(carriers) for t in carriers}
    if call.operation.in_place and id(call.args[0]) in shares:
        return in_place(run, call, partial(_multiply_handler, first=first), rule)
    change = {id(t): ScaleNode.apply(run, shares[id(t)], t) for t in carriers}
    return call.replaced(change).invoke()


def _multiply_handler(run: Run, call: Call, rule: Rule, *, first: int) -> Any:
    return _multiply(run, call, rule, first)


def division(run: Run, call: Call, rule: Rule) -> Any:
    """The denominator is a constant; a quotient of a constant is one."""
    if isinstance(rule, Gradient):
        return call.invoke()
    last = 2 if call.operation.name == "addcdiv" else 1
    denominator = call.argument(last, "tensor2" if last == 2 else "other")
    if call.operation.reversed:
        denominator = call.args[0]
    if not isinstance(denominator, Tensor) or not run.carries(denominator):
        return plain(run, call, rule)
    others = [t for t in tensors_in((call.args, call.kwargs)) if t is not denominator and run.carries(t)]
    if not others:
        return plain(run, call, Constant())
    return call.replaced({id(denominator): ScaleNode.apply(run, 0.0, denominator)}).invoke()
