"""A softmax that a model writes out follows the rule of softmax, where the composite gives one that passes relevance.

Recognised are exp(u) / sum(exp(u)), also to the base 2 and of u less its maximum, exp(log_softmax(u)) and
exp(u - logsumexp(u)). By convention, and where they are written in yet another way, they are constants, since
exponentials are.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import facts
from lrphooks.engine.facts import Part
from lrphooks.engine.nodes import TwinNode, unaliased

if TYPE_CHECKING:
    from lrphooks.engine.run import Run
    from lrphooks.operations import Operation


def recognize(run: Run, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
    """Return the result of an operation, with the graph of a softmax where it completes one."""
    if not isinstance(out, Tensor) or not args:
        return out
    part = STEPS[operation.name](run, args, kwargs)
    if part is None:
        return out
    if isinstance(part, Part):
        facts.write(out, run, softmax=part)
        return out
    logits, base, dim = part
    if logits.shape != out.shape:
        return out
    with run.mode():
        twin = torch.softmax(logits if base == math.e else logits * math.log(base), dim)
    note = facts.read(twin, run)
    whole: Tensor = TwinNode.apply((unaliased(out.detach()),), twin)
    facts.write(whole, run, maker=None if note is None else note.maker)
    return whole


#: The logits, base and dimension of a softmax that is complete.
_Complete = tuple[Tensor, float, int]


def _part(run: Run, value: Any) -> Part | None:
    note = facts.read(value, run) if isinstance(value, Tensor) else None
    return None if note is None else note.softmax


def _dim(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    dim = args[1] if len(args) > 1 else kwargs.get("dim")
    if isinstance(dim, list | tuple) and len(dim) == 1:
        dim = dim[0]
    return dim if isinstance(dim, int) and not isinstance(dim, bool) else None


def _exponential(
    run: Run, args: tuple[Any, ...], kwargs: dict[str, Any], base: float = math.e
) -> Part | _Complete | None:
    part = _part(run, args[0])
    if part is not None and part.kind == "log" and base == math.e:
        return part.logits, base, part.dim
    return Part("exp", args[0], base) if run.carries(args[0]) else None


def _exponential_of_2(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Part | _Complete | None:
    return _exponential(run, args, kwargs, 2.0)


def _sum(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Part | None:
    part, dim = _part(run, args[0]), _dim(args, kwargs)
    return None if part is None or part.kind != "exp" or dim is None else Part("sum", part.logits, part.base, dim)


def _logsumexp(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Part | None:
    dim = _dim(args, kwargs)
    return None if dim is None or not run.carries(args[0]) else Part("logsumexp", args[0], dim=dim)


def _log_softmax(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Part | None:
    dim = _dim(args, kwargs)
    return None if dim is None else Part("log", args[0], dim=dim)


def _quotient(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Complete | None:
    above, below = (_part(run, value) for value in (*args, None)[:2])
    if above is None or below is None or (above.kind, below.kind) != ("exp", "sum") or above.base != below.base:
        return None
    return (above.logits, above.base, below.dim) if _same(above.logits, below.logits) else None


def _difference(run: Run, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Part | None:
    below = _part(run, args[1]) if len(args) == 2 and not kwargs else None
    if below is None or below.kind != "logsumexp" or not isinstance(args[0], Tensor):
        return None
    return Part("log", below.logits, dim=below.dim) if _same(args[0], below.logits) else None


def _same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are one or hold the same numbers, as where a model computes exp(a) twice."""
    return first is second or (first.shape == second.shape and torch.equal(first, second))


#: The operations that a softmax may be written out in.
STEPS = {
    "exp": _exponential,
    "exp2": _exponential_of_2,
    "sum": _sum,
    "logsumexp": _logsumexp,
    "log_softmax": _log_softmax,
    "div": _quotient,
    "sub": _difference,
}
