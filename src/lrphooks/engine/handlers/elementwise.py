"""Activations, powers and gates: operations on each element by itself."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrphooks.engine.call import Call
from lrphooks.engine.derivatives import spare
from lrphooks.engine.function_nodes import ElementwiseNode
from lrphooks.engine.handlers.common import function_of, in_place, learned, plain, positional
from lrphooks.engine.passing import through
from lrphooks.operations import names
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Constant, DeconvReLU, Gradient, GuidedReLU, Pass
from lrphooks.torch_private import is_view

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


def relu(run: Run, call: Call, rule: Rule) -> Any:
    """ReLU: the plain gradient hands on all relevance; guided backpropagation and DeconvNet change it."""
    if not isinstance(rule, GuidedReLU | DeconvReLU):
        return plain(run, call, rule)
    if call.writes_in_place:
        return in_place(run, call, relu, rule)
    ratio = _guided if isinstance(rule, GuidedReLU) else _deconvolved
    return ElementwiseNode.apply(run.passes, function_of(call), ratio, None, None, call.dependent[0], *learned(call))


def activation(run: Run, call: Call, rule: Rule, *, quotient: Callable[..., Tensor] | None = None) -> Any:
    """Elementwise functions: f(a) / a in place of the derivative; ``quotient`` where that is not all of it."""
    if isinstance(rule, Gradient | Constant):
        return plain(run, call, rule)
    x = source = call.dependent[0]
    target, write = None, None
    if call.writes_in_place:
        call = positional(call)
        if isinstance(rule, Pass) or call.args[0] is not source or is_view(source):
            return in_place(run, call, partial(activation, quotient=quotient), rule)
        target, write = source, call.over([source])
        call = call.out_of_place()
    if isinstance(rule, Pass) and call.operation.kind == "constant":
        # It does not keep 0, so what falls on a 0 must pass too.
        return through(run, source, call.invoke())
    function = function_of(call)
    # Of these, only GELU has a further argument that matters.
    approximate = call.argument(1, "approximate", "none") if call.operation.name == "gelu" else "none"
    ratio = _RATIOS.get((call.operation.name, approximate), partial(quotient or quotient_of, function))
    if target is not None or (call.operation.name in _OF_RESULT and not run.unrolled):
        # Also where torch keeps results a model may write to the inputs. No cell of a recurrent layer does.
        x = x.clone()
    return ElementwiseNode.apply(run.passes, function, ratio, write, target, x, *learned(call))


def power(run: Run, call: Call, rule: Rule) -> Any:
    """Powers with a positive exponent keep zero; others, and exponentials, are constants."""
    name = call.operation.name
    exponent = {"square": 2.0, "sqrt": 0.5}.get(name, call.argument(1, "exponent"))
    base = call.argument(0, "input", call.kwargs.get("self"))
    if call.operation.reversed:
        exponent, base = base, exponent
    if isinstance(exponent, Tensor) and not run.carries(exponent):
        exponent = float(exponent.detach().min())
    keeps_zero = isinstance(exponent, int | float) and exponent > 0
    if keeps_zero or isinstance(rule, Gradient):
        return activation(run, call, rule)
    return plain(run, call, Constant())


def shift(run: Run, call: Call, rule: Rule) -> Any:
    """log_softmax(x) = x - logsumexp(x), a constant shift."""
    if isinstance(rule, Gradient | Constant):
        return plain(run, call, rule)
    return ElementwiseNode.apply(run.passes, function_of(call), _unchanged, None, None, call.dependent[0])


def gate(run: Run, call: Call, rule: Rule) -> Any:
    """GLU: the first half is the signal, the sigmoid of the second half a constant gate."""
    if isinstance(rule, Gradient | Constant):
        return plain(run, call, rule)
    dim = call.argument(1, "dim", -1)

    def ratio(gradient: Tensor, x: Tensor) -> Tensor:
        signal = gradient * x.chunk(2, dim)[1].sigmoid()
        return torch.cat((signal, torch.zeros_like(signal)), dim)

    return ElementwiseNode.apply(run.passes, function_of(call), ratio, None, None, call.dependent[0])


def quotient_of(
    function: Callable[..., Tensor], gradient: Tensor, x: Tensor, *learned: Tensor, slope: float | None = None
) -> Tensor:
    """Return G f(x) / x, and G f'(0) where x is 0, with a slope that is known or found by autograd."""
    zero = x == 0
    safe = torch.where(zero, torch.ones_like(x), x)
    limit = _slope_at_zero(function, x, *learned) if slope is None else x.new_full((), slope)
    # Of complex numbers, torch's gradients are conjugates.
    return gradient * torch.where(zero, limit, function(safe, *learned) / safe).conj()


def _slope_at_zero(function: Callable[..., Tensor], like: Tensor, *learned: Tensor) -> Tensor:
    with torch.enable_grad():
        zero = torch.zeros((1,) * like.dim(), dtype=like.dtype, device=like.device, requires_grad=True)
        try:
            slope = torch.autograd.grad(function(zero, *learned).sum(), zero)[0].sum()
        except RuntimeError:
            return like.new_zeros(())
    # As a tensor: to ask for its value would wait for the device, and a graph has none.
    return torch.where(torch.isfinite(slope), slope, torch.zeros_like(slope))


def _times(gradient: Tensor, values: Tensor) -> Tensor:
    """Return the product, in the memory of values that nobody needs any longer."""
    if torch.is_grad_enabled():
        return gradient * values
    return torch.mul(gradient, values, out=spare(values, gradient))


def _silu(gradient: Tensor, x: Tensor) -> Tensor:
    return _times(gradient, x.sigmoid())


def _gelu(gradient: Tensor, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled() and x.dtype != torch.float16:
        return _times(gradient, _quotient_of_gelu(x, "none"))
    return gradient * (torch.erf(x * math.sqrt(0.5)) * 0.5 + 0.5)


def _gelu_tanh(gradient: Tensor, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled() and x.dtype != torch.float16:
        return _times(gradient, _quotient_of_gelu(x, "tanh"))
    return gradient * (torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)) * 0.5 + 0.5)


def _quotient_of_gelu(x: Tensor, approximate: str) -> Tensor:
    """Return gelu(x) / x by the fused operation, which takes a third of the time of the error function."""
    # Changes nothing but what is 0, or as good as: there the quotient is 1/2.
    x = x + 8 * torch.finfo(x.dtype).tiny
    return F.gelu(x, approximate=approximate).div_(x)


def _mish(gradient: Tensor, x: Tensor) -> Tensor:
    return _times(gradient, F.softplus(x).tanh())


def _hardswish(gradient: Tensor, x: Tensor) -> Tensor:
    return _times(gradient, F.hardsigmoid(x))


def _unchanged(gradient: Tensor, x: Tensor) -> Tensor:
    return gradient


def _guided(gradient: Tensor, x: Tensor) -> Tensor:
    return gradient.clamp(min=0) * (x > 0)


def _deconvolved(gradient: Tensor, x: Tensor) -> Tensor:
    return gradient.clamp(min=0)


_OF_RESULT = frozenset(names.OF_RESULT.split())

#: f(a) / a in closed form, which also needs no limit at 0, or with one that is known: by operation and approximation.
_RATIOS: dict[tuple[str, str], Callable[..., Tensor]] = {
    ("silu", "none"): _silu,
    ("gelu", "none"): _gelu,
    ("gelu", "tanh"): _gelu_tanh,
    ("mish", "none"): _mish,
    ("hardswish", "none"): _hardswish,
    ("tanh", "none"): partial(quotient_of, torch.tanh, slope=1.0),
}
