"""Products and quotients of activations."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import notes
from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.errors import LRPError
from lrphooks.engine.handlers.common import in_place, plain
from lrphooks.engine.nodes import ScaleNode, ShareNode
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Constant, Gradient, Proportional, TakesAll, Uniform

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


def product(run: Run, call: Call, rule: Rule) -> Any:
    """Products: each factor that carries relevance receives its share."""
    return (_proportional if isinstance(rule, Proportional) else _multiply)(run, call, rule, first=0)


def added_product(run: Run, call: Call, rule: Rule) -> Any:
    """A summand and a product in one operation, such as addmm."""
    return (_proportional if isinstance(rule, Proportional) else _multiply)(run, call, rule, first=1)


def _carriers(run: Run, call: Call, first: int) -> list[Tensor]:
    """Return the factors that carry relevance."""
    factors = [*call.args[first:], *(v for k, v in call.kwargs.items() if k not in ("input", "self") or not first)]
    return [t for t in tensors_in(factors) if run.carries(t)]


def _multiply(run: Run, call: Call, rule: Rule, first: int) -> Any:
    carriers = _carriers(run, call, first)
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
    offsets = [(note := notes.read(t, run)) is not None and note.offset for t in carriers]
    if len(carriers) < 2:
        out = plain(run, call, rule)
        if any(offsets) and isinstance(out, Tensor):
            notes.write(out, run, offset=True)
        return out
    if isinstance(rule, TakesAll):
        chosen = carriers[min(int(rule.operand), len(carriers) - 1)]
        shares = {id(t): float(t is chosen) for t in carriers}
    elif any(offsets) and not all(offsets):
        # What does not vanish with its input gates, as in x * (1 + tanh(u)); the others are the signal.
        signals = offsets.count(False)
        shares = {id(t): 0.0 if offset else 1.0 / signals for t, offset in zip(carriers, offsets, strict=True)}
    else:
        shares = {id(t): 1.0 / len(carriers) for t in carriers}
    if call.operation.in_place and id(call.args[0]) in shares:
        return in_place(run, call, partial(_multiply_handler, first=first), rule)
    change = {id(t): ScaleNode.apply(run, shares[id(t)], t) for t in carriers}
    return call.replaced(change).invoke()


def _proportional(run: Run, call: Call, rule: Rule, first: int) -> Any:
    """Share elementwise, by absolute values; where all factors are 0, no relevance arrives."""
    carriers = _carriers(run, call, first)
    if len(carriers) < 2:
        return _multiply(run, call, Uniform(), first)
    if call.operation.name not in ("mul", "multiply"):
        raise LRPError(
            f"Proportional() is for elementwise products and cannot serve {call.operation.name}. Give it to torch.mul, "
            "and Uniform() to the other products."
        )
    if call.operation.in_place and any(t is call.args[0] for t in carriers):
        return in_place(run, call, product, rule)
    factors = torch.broadcast_tensors(*carriers)
    sizes = [t.abs() for t in factors]
    total = torch.stack(sizes).sum(0)
    total = torch.where(total == 0, torch.ones_like(total), total)
    shared = [ShareNode.apply(run, size / total, t) for size, t in zip(sizes, factors, strict=True)]
    return call.replaced({id(t): s for t, s in zip(carriers, shared, strict=True)}).invoke()


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
