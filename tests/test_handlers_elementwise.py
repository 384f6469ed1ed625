"""Activations where f(a) / a has no value: at zeros that come of contributions that cancel, and beside them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lrphooks import Composite
from lrphooks.rules import Epsilon
from references.operations import EXACT
from small_networks import relevance

#: f'(0) from the textbook.
SLOPES = {
    "gelu": (F.gelu, 0.5),
    "gelu, tanh": (lambda a: F.gelu(a, approximate="tanh"), 0.5),
    "silu": (F.silu, 0.5),
    "mish": (F.mish, 0.6),
    "tanh": (torch.tanh, 1.0),
    "tanh_": (torch.tanh_, 1.0),
    "hardtanh": (F.hardtanh, 1.0),
    "hardswish": (F.hardswish, 0.5),
    "elu": (lambda a: F.elu(a, 0.7), 0.7),
    "selu": (F.selu, 1.0507009873554804934193349852946 * 1.6732632423543772848170429916717),
    "celu": (lambda a: F.celu(a, 2.0), 1.0),
    "softsign": (F.softsign, 1.0),
    "tanhshrink": (F.tanhshrink, 0.0),
    "softshrink": (F.softshrink, 0.0),
    "expm1": (torch.expm1, 1.0),
    "log1p": (torch.log1p, 1.0),
    "erf": (torch.erf, 2 / math.sqrt(math.pi)),
    "erfinv": (torch.erfinv, math.sqrt(math.pi) / 2),
    "sin": (torch.sin, 1.0),
    "asinh": (torch.asinh, 1.0),
    "square": (torch.square, 0.0),
    "cube": (lambda a: a**3, 0.0),
    "identity power": (lambda a: a**1.0, 1.0),
    "abs": (torch.abs, 0.0),
    "sqrt": (torch.sqrt, 0.0),  # infinite: nothing is handed on
}


class Cancel(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.linear = nn.Linear(2, 1, bias=False, dtype=torch.float64)
        self.linear.weight.data = torch.tensor([[2.0, 1.0]], dtype=torch.float64)

    def forward(self, x):
        return self.function(self.linear(x))


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.parametrize("dimensions", [1, 2, 4])
def test_contributions_that_cancel_receive_the_slope(name, dimensions):
    """The limit of f(a) / a: what is handed to one contribution is taken from the other."""
    function, slope = SLOPES[name]
    x = torch.tensor([0.5, -1.0], dtype=torch.float64).expand(*[1] * (dimensions - 1), 2)
    found = relevance(EXACT, Cancel(function), x, torch.ones((), dtype=torch.float64).expand(*x.shape[:-1], 1))
    expected = torch.tensor([slope, -slope], dtype=torch.float64).expand_as(x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "name", [n for n in SLOPES if n not in ("sqrt", "abs", "hardtanh", "softshrink", "selu", "elu")]
)
def test_tiny_values_are_near_the_limit(name):
    function, slope = SLOPES[name]
    for tiny in (1e-9, 1e-100):
        x = torch.tensor([0.5, -1.0 + tiny], dtype=torch.float64)
        a = float(2 * x[0] + x[1])
        found = relevance(EXACT, Cancel(function), x, torch.ones(1, dtype=torch.float64))
        torch.testing.assert_close(found, torch.tensor([slope, -slope], dtype=torch.float64), rtol=0, atol=1e-6)
        assert float(found.sum()) == pytest.approx(float(function(torch.tensor(a, dtype=torch.float64))), abs=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("function", [F.gelu, F.silu, torch.tanh, torch.expm1], ids=lambda f: f.__name__)
def test_low_precision_stays_finite(function, dtype):
    x = torch.tensor([[0.0, 1e-7, -3e-5, 2.0, -9.0, 11.0]], dtype=dtype)

    class Net(nn.Module):
        def forward(self, x):
            return function(x)

    found = relevance(EXACT, Net(), x, torch.ones_like(x))
    torch.testing.assert_close(found, function(x), rtol=2e-2, atol=1e-6)


class Overwritten(nn.Module):
    """An activation whose input the model writes to later, or a copy of it, as plain torch allows for these."""

    def __init__(self, function, *, copied):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.function, self.copied = nn.Linear(4, 4).double(), function, copied

    def forward(self, x):
        z = self.linear(x)
        z = z.abs() if self.function is torch.sqrt else z
        y = self.function(z.clone() if self.copied else z)
        z.zero_()
        return y


@pytest.mark.parametrize("checkpointed", [False, True])
@pytest.mark.parametrize(
    "function", [torch.tanh, F.tanhshrink, torch.expm1, torch.tan, torch.sqrt], ids=lambda f: f.__name__
)
def test_an_activation_may_lose_its_input_where_torch_keeps_its_result(function, checkpointed):
    class Outer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return checkpoint(self.inner, x, use_reentrant=False) if checkpointed else self.inner(x)

    x = torch.randn(3, 4, dtype=torch.float64)
    plain = x.clone().requires_grad_()
    Outer(Overwritten(function, copied=False))(plain).sum().backward()
    for composite in (EXACT, Composite([(nn.Linear, Epsilon(0.1))])):
        expected = relevance(composite, Outer(Overwritten(function, copied=True)), x)
        torch.testing.assert_close(relevance(composite, Outer(Overwritten(function, copied=False)), x), expected)
