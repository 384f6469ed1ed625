"""The conventions for operations, written as plain float64 functions whose own gradient times input is relevance.

A *surrogate* has the value of the operation, but what a convention calls constant is detached. No surrogate
uses the package: outside of any context autograd then gives the modified gradient of the convention.
"""

import inspect
import math
import operator

import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import Composite
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon

#: LRP-0 on linear maps, and the conventions for everything else.
EXACT = Composite([(AnyLinear, Epsilon(0))])

# --- surrogates ---


def identity(function):
    """R_in = R_out for each element: a * f(a) / a with the quotient constant, which is f'(0) where a is 0."""

    def surrogate(a):
        zero = torch.zeros_like(a, requires_grad=True)
        slope = torch.autograd.grad(function(zero).sum(), zero)[0]
        quotient = torch.where(a == 0, slope, function(a.detach()) / torch.where(a == 0, 1.0, a))
        return a * quotient.detach()

    return surrogate


def constant(function):
    """No relevance."""
    return lambda *operands: function(*(a.detach() for a in operands))


def shared(function):
    """A multilinear function of n operands hands each R / n."""

    def surrogate(*operands):
        n = len(operands)
        parts = [function(*(a if i == k else a.detach() for i, a in enumerate(operands))) for k in range(n)]
        return sum(parts) / n

    return surrogate


# --- models ---


class Sandwich(nn.Module):
    """An operation between linear maps without bias, which give its operands the values asked for."""

    def __init__(self, x, operation, operands):
        super().__init__()
        self.operation = operation
        self.shapes = [tuple(a.shape) for a in operands]
        self.maps = nn.ModuleList()
        for a in operands:
            rows = a.reshape(len(x), -1) if a.numel() % len(x) == 0 else a.reshape(1, -1).expand(len(x), -1)
            linear = nn.Linear(x.shape[1], rows.shape[1], bias=False, dtype=torch.float64)
            # Columns that are 0 for the whole batch have a row of exact zeros.
            linear.weight.data = (torch.linalg.pinv(x) @ rows).T.contiguous()
            self.maps.append(linear)

    def forward(self, x):
        hidden = [linear(x) for linear in self.maps]
        hidden = [
            h if h.shape == s else h.reshape(-1)[: math.prod(s)].reshape(s)
            for h, s in zip(hidden, self.shapes, strict=True)
        ]
        return self.readout(self.operation(*hidden))

    @staticmethod
    def readout(results):
        """A fixed weighting of every value of every result."""
        flat = torch.cat([r.reshape(-1) for r in floating(results)])
        return flat @ torch.linspace(0.3, 8.1, flat.numel(), dtype=torch.float64).cos()


def floating(results):
    """The results of an operation that may carry relevance, in order."""
    results = [results] if isinstance(results, torch.Tensor) else results
    return [r for r in results if r.is_floating_point()]


def values(*shape, seed=0, domain="signed"):
    """Values of a domain: signed ones with exact zeros in one column, positive, above one, or inside (-1, 1)."""
    a = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(100 + seed))
    if domain == "signed":
        a[..., 1:2] = 0.0
    return {"signed": a, "nonzero": a, "positive": a.abs() + 0.2, "above": a.abs() + 1.1, "unit": a.tanh() * 0.9}[
        domain
    ]


def inputs(batch=2):
    """The same input for every model, of both signs."""
    return values(batch, 5, seed=-1, domain="nonzero")


def gradient_times_input(model, x):
    """Relevance of a surrogate model, outside of any context."""
    x = x.detach().clone().requires_grad_()
    return x.detach() * torch.autograd.grad(model(x).sum(), x)[0]


# --- spellings ---

OPERATORS = {
    "add": (operator.add, operator.iadd), "sub": (operator.sub, operator.isub), "mul": (operator.mul, operator.imul),
    "matmul": (operator.matmul,), "div": (operator.truediv, operator.itruediv), "pow": (operator.pow, operator.ipow),
    "neg": (operator.neg,), "positive": (operator.pos,), "abs": (operator.abs, abs),
    "floor_divide": (operator.floordiv, operator.ifloordiv), "remainder": (operator.mod, operator.imod),
}  # fmt: skip
REFLECTED = {
    "add": "__radd__", "sub": "__rsub__", "mul": "__rmul__", "matmul": "__rmatmul__", "div": "__rtruediv__",
    "pow": "__rpow__", "floor_divide": "__rfloordiv__", "remainder": "__rmod__",
}  # fmt: skip
_SPACES = {
    "torch": torch, "Tensor": torch.Tensor, "F": F, "torch.special": torch.special, "torch.linalg": torch.linalg,
    "torch.fft": torch.fft, "torch.functional": torch.functional,
}  # fmt: skip


def spellings(name, count, options):
    """Yield (spelling, function of ``count`` operands) for every way to call an operation that torch offers.

    Namespaces, in-place forms, the ``inplace`` flag, operators, packets and overloads of ``torch.ops.aten``, with the
    operands and options by position and by keyword. Not every one accepts these arguments; the caller finds out.
    """
    for function in OPERATORS.get(name, ()):
        yield f"operator.{function.__name__}", lambda *a, f=function: f(*a, *options.values())
    if name in REFLECTED:
        reflected = getattr(torch.Tensor, REFLECTED[name])
        yield REFLECTED[name], lambda a, b, f=reflected: f(b, a)
    for space, holder in _SPACES.items():
        for full in (name, f"{name}_"):
            if callable(function := getattr(holder, full, None)):
                yield from _forms(f"{space}.{full}", function, count, options, _names(name, function))
    for full in (name, f"{name}_", f"special_{name}", f"linalg_{name}", f"fft_{name}"):
        packet = getattr(torch.ops.aten, full, None)
        if packet is not None:
            yield from _forms(f"aten.{full}", packet, count, options, _names(full, packet))
            for overload in packet.overloads():
                if "out" not in overload:
                    function = getattr(packet, overload)
                    yield from _forms(f"aten.{full}.{overload}", function, count, options, _names(full, packet))


def _names(name, function):
    """The names of the operands: of a Python function's own signature, or of torch's schema."""
    try:
        return [[p for p in inspect.signature(function).parameters if p not in ("args", "kwargs")]]
    except (TypeError, ValueError):
        pass
    found = []
    for prefix in ("", "special_", "linalg_", "fft_"):
        for schema in torch._C._jit_get_schemas_for_operator(f"aten::{prefix}{name}"):
            known = [a.name for a in schema.arguments]
            for names in (known, ["input" if n == "self" else n for n in known]):
                if names not in found:
                    found.append(names)
    return found


def _forms(spelling, function, count, options, keywords):
    yield spelling, lambda *a: function(*a, **options)
    if options:
        yield f"{spelling} by position", lambda *a: function(*a, *options.values())
    for names in keywords:
        if len(names) >= count:
            yield (
                f"{spelling}({', '.join(names[:count])})",
                lambda *a, n=names: function(**dict(zip(n, a, strict=False)), **options),
            )
            if count > 1:
                yield (
                    f"{spelling}(., {', '.join(names[1:count])})",
                    lambda *a, n=names: function(a[0], **dict(zip(n[1:], a[1:], strict=False)), **options),
                )
        if "inplace" in names:
            yield f"{spelling}(inplace=True)", lambda *a: function(*a, **options, inplace=True)


def serves(function, operands, expected):
    """Whether a spelling accepts the operands and computes what is expected."""
    try:
        sources = [a.clone().requires_grad_() for a in operands]
        found = floating(function(*(a.clone() for a in sources)))
        torch.autograd.grad(Sandwich.readout(found), sources, allow_unused=True)
    except (TypeError, RuntimeError, IndexError, KeyError, ValueError, AttributeError):
        return False
    return len(found) == len(expected) and all(
        f.shape == e.shape and torch.allclose(f, e, rtol=1e-12, atol=1e-12)
        for f, e in zip(found, expected, strict=True)
    )


def agrees(function, surrogate, operands, composite=EXACT, tol=1e-10):
    """The operation under a composite has the relevance of its surrogate, and the value that it has elsewhere."""
    x = inputs()
    model = Sandwich(x, function, operands)
    expected = gradient_times_input(Sandwich(x, surrogate, operands), x)
    explained = x.clone().requires_grad_()
    with composite.context(model):
        output = model(explained)
        output.backward()
    assert torch.equal(output, model(x)), "another value inside the context"
    error = float((explained.grad - expected).abs().max() / expected.abs().max())
    assert error <= tol, f"largest difference over largest relevance: {error:.3g}"
