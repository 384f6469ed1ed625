"""Products and quotients of activations."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import facts
from lrphooks.engine.call import Call, broadcast_shape, tensors_in
from lrphooks.engine.errors import LRPError
from lrphooks.engine.function_nodes import GatedNode
from lrphooks.engine.handlers.common import exchanged, in_place, plain, positional
from lrphooks.engine.nodes import ScaleNode, ShareNode
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Constant, Gradient, Proportional, TakesAll, Uniform

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


#: The summand of an added product by keyword.
_SUMMAND = ("input", "self")


def product(run: Run, call: Call, rule: Rule) -> Any:
    """Products: each factor that carries relevance receives its share."""
    return (_proportional if isinstance(rule, Proportional) else _multiply)(run, call, rule, first=0)


def added_product(run: Run, call: Call, rule: Rule) -> Any:
    """A summand and a product in one operation, such as addmm."""
    return (_proportional if isinstance(rule, Proportional) else _multiply)(run, call, rule, first=1)


def _carriers(run: Run, call: Call, first: int) -> list[Tensor]:
    """Return the factors that carry relevance, as often as they occur."""
    factors = [*call.args[first:], *(v for k, v in call.kwargs.items() if k not in _SUMMAND or not first)]
    return [t for t in tensors_in(factors) if run.carries(t)]


def _exchanged(run: Run, call: Call, first: int, tensors: Iterable[Tensor]) -> Call:
    """Return the call with others in place of the factors that carry relevance, one for each occurrence."""
    others = iter(tensors)
    args = call.args[:first] + tuple(_exchange(run, v, others) for v in call.args[first:])
    kwargs = {k: v if first and k in _SUMMAND else _exchange(run, v, others) for k, v in call.kwargs.items()}
    return Call(call.operation, call.function, args, kwargs, call.dependent)


def _exchange(run: Run, value: Any, others: Iterator[Tensor]) -> Any:
    if isinstance(value, list | tuple):
        return type(value)([_exchange(run, v, others) for v in value])
    return next(others) if run.carries(value) else value


def _multiply(run: Run, call: Call, rule: Rule, first: int) -> Any:
    call = positional(call)
    carriers = _carriers(run, call, first)
    name = call.operation.name
    if isinstance(rule, Gradient | Constant):
        return plain(run, call, rule)
    if name == "prod":
        source = call.dependent[0]
        dim = call.argument(1, "dim", call.kwargs.get("axis"))
        count = source.shape[dim] if isinstance(dim, int) else source.numel()
        return call.replaced({id(source): ScaleNode.apply(run.passes, 1.0 / count, source)}).invoke()
    if name in ("lerp", "grid_sample"):
        # Where it samples, or how it mixes, is a gate: constant, so the signal takes all.
        weight = call.argument(2, "weight") if name == "lerp" else call.argument(1, "grid")
        if all(t is weight for t in carriers):
            return plain(run, call, Constant())
        if any(t is weight for t in carriers):
            call = call.replaced({id(weight): ScaleNode.apply(run.passes, 0.0, weight)})
        return call.invoke()
    if len(carriers) < 2:
        return _gated(run, call) if _has_gate(run, call) else plain(run, call, rule)
    shares = shares_of(run, carriers, rule)
    if call.operation.in_place and any(t is call.args[0] for t in carriers):
        return in_place(run, call, partial(_multiply_handler, first=first), rule)
    if len(set(shares)) == 1 and _is_smaller(call, carriers):
        # One pass over the product takes less than one over each factor.
        out = call.invoke()
        return ScaleNode.apply(run.passes, shares[0], out, True)  # autograd takes no keywords
    scaled = [ScaleNode.apply(run.passes, share, t) for share, t in zip(shares, carriers, strict=True)]
    return _exchanged(run, call, first, scaled).invoke()


def shares_of(run: Run, carriers: list[Tensor], rule: Rule) -> list[float]:
    """Return the share of each factor: one n-th for each of n, also of those that a factor is the product of."""
    if isinstance(rule, TakesAll):
        chosen = min(int(rule.operand), len(carriers) - 1)
        return [float(i == chosen) for i in range(len(carriers))]
    known = [facts.read(t, run) for t in carriers]
    gates = [each is not None and each.gates for each in known]
    degrees = [1 if each is None else each.degree for each in known]
    if not all(gates):
        # What does not vanish with its input gates, as in x * (1 + tanh(u)); the others are the signal.
        degrees = [0 if gate else degree for gate, degree in zip(gates, degrees, strict=True)]
    return [degree / sum(degrees) for degree in degrees]


def _is_smaller(call: Call, carriers: list[Tensor]) -> bool:
    """Whether a product of two activations alone has fewer elements than both together."""
    tensors = list(tensors_in((call.args, call.kwargs)))
    if len(tensors) != 2 or len(carriers) != 2 or call.kwargs or call.operation.name not in ("mul", "matmul", "bmm"):
        return False
    a, b = tensors
    if call.operation.name == "mul":
        shape = broadcast_shape(a.shape, b.shape)
    elif a.dim() < 2 or b.dim() < 2:
        return False
    else:
        batch = broadcast_shape(a.shape[:-2], b.shape[:-2])
        shape = (*batch, a.shape[-2], b.shape[-1])
    return bool(math.prod(shape) < a.numel() + b.numel())


def _has_gate(run: Run, call: Call) -> bool:
    """Whether the call multiplies an activation by a constant that has a derivative of its own, as a gate."""
    if call.writes_in_place or call.kwargs or len(call.args) != 2 or run.parameters:
        return False
    if call.operation.name != "mul" and not _multiplies_batches(call):
        return False
    gates = [t for t in tensors_in(call.args) if not run.carries(t)]
    return len(gates) == 1 and gates[0].requires_grad and not gates[0].is_leaf


def _multiplies_batches(call: Call) -> bool:
    """Whether the call multiplies batches of matrices, of which torch keeps those that it had to lay out anew."""
    if call.operation.name not in ("matmul", "bmm") or call.operation.reversed or call.kwargs or len(call.args) != 2:
        return False
    first, second = call.args
    if not (first.dim() == second.dim() > 2 and first.shape[:-2] == second.shape[:-2] and first.dtype == second.dtype):
        return False
    return not torch.is_autocast_enabled(first.device.type)


def _in_one_batch(tensor: Tensor) -> Tensor:
    """Return batches of matrices laid out as torch keeps them of a product."""
    return tensor.flatten(0, -3).view(tensor.shape)


def _gated(run: Run, call: Call) -> Tensor:
    """Multiply by a gate, for which torch would compute a derivative that goes nowhere."""
    (signal,) = call.dependent
    (gate,) = (t for t in tensors_in(call.args) if t is not signal)
    function, back = call.over((signal, gate)), _back_by_elements
    if call.operation.name != "mul":
        back = _back_from_left if signal is call.args[0] else _back_from_right
        signal = _in_one_batch(signal)
    out: Tensor = GatedNode.apply(run.passes, function, back, signal, gate)
    return out


def _back_by_elements(gradient: Tensor, gate: Tensor) -> Tensor:
    return gradient * gate.conj()


def _back_from_left(gradient: Tensor, gate: Tensor) -> Tensor:
    return gradient @ gate.mH


def _back_from_right(gradient: Tensor, gate: Tensor) -> Tensor:
    return gate.mH @ gradient


def _proportional(run: Run, call: Call, rule: Rule, first: int) -> Any:
    """Share elementwise, by absolute values; where all factors are 0, no relevance arrives."""
    call = positional(call)
    carriers = _carriers(run, call, first)
    if len(carriers) < 2:
        return _multiply(run, call, Uniform(), first)
    if call.operation.name != "mul":
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
    shared = [ShareNode.apply(run.passes, size / total, t) for size, t in zip(sizes, factors, strict=True)]
    return _exchanged(run, call, first, shared).invoke()


def _multiply_handler(run: Run, call: Call, rule: Rule, *, first: int) -> Any:
    return _multiply(run, call, rule, first)


#: Where the matrix stands that a solution is divided by, and its name.
_MATRIX = {"solve": (0, "A"), "solve_triangular": (0, "A"), "triangular_solve": (1, "A"), "cholesky_solve": (1, "L")}


def denominator_of(call: Call) -> tuple[int, str]:
    """Return the place and the name of the argument that a quotient is divided by."""
    name = call.operation.name
    if name in _MATRIX:
        place, key = _MATRIX[name]
        return place, next((k for k in (key, "input2", "input") if k in call.kwargs), key)
    if call.operation.reversed:
        return 0, "input"
    return (2, "tensor2") if name == "addcdiv" else (1, "x2" if "x2" in call.kwargs else "other")


def division(run: Run, call: Call, rule: Rule) -> Any:
    """The denominator is a constant; a quotient of a constant is one, and so is a rounded quotient.

    The matrix that a system of equations is solved with is a denominator.
    """
    if isinstance(rule, Gradient):
        return call.invoke()
    if call.kwargs.get("rounding_mode") is not None:
        return plain(run, call, Constant())
    call = positional(call)
    place, name = denominator_of(call)
    denominator = call.argument(place, name)
    if not isinstance(denominator, Tensor) or not run.carries(denominator):
        return plain(run, call, rule)
    if sum(run.carries(t) for t in tensors_in((call.args, call.kwargs))) == 1:
        return plain(run, call, Constant())
    if call.operation.in_place and denominator is call.args[0]:
        return in_place(run, call, division, rule)
    return exchanged(call, place, name, ScaleNode.apply(run.passes, 0.0, denominator)).invoke()
