"""Functions of lists of tensors, torch.foreach and its private names, are their functions of a tensor one by one."""

import pytest
import torch
from torch import nn

from lrphooks import Composite
from lrphooks.matching import AnyLinear
from lrphooks.rules import Gradient, ZPlus
from small_networks import equal, every_layer, relevance


class Lists(nn.Module):
    """Two layers whose outputs, all positive, go through a function of lists."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.head = nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2)
        self.function = function
        self.double()

    def forward(self, x):
        a, b = (torch.sigmoid(layer(x)) * layer(x).abs() + 0.1 for layer in (self.first, self.second))
        return self.head(sum(self.function([a, b], [b, a])))


def private(name):
    if not hasattr(torch, f"_foreach_{name}"):
        pytest.skip(f"this torch has no {name} of lists")
    return getattr(torch, f"_foreach_{name}")


def public(name):
    if not hasattr(torch, "foreach"):
        pytest.skip("this torch has no torch.foreach")
    return getattr(torch.foreach, name)


def written(f):
    """What a function in place leaves in a copy."""

    def function(a, b):
        a = [t * 1.0 for t in a]
        f(a, b)
        return a

    return function


CASES = {
    "abs": (lambda f, a, b: f(a), torch.abs),
    "sigmoid": (lambda f, a, b: [t * s for t, s in zip(a, f(a), strict=True)], lambda t: t * torch.sigmoid(t)),
    "exp": (lambda f, a, b: [t * s for t, s in zip(a, f(a), strict=True)], lambda t: t * torch.exp(t)),
    "sqrt": (lambda f, a, b: f(a), torch.sqrt),
    "norm": (lambda f, a, b: [t + n for t, n in zip(a, f(a), strict=True)], lambda t: t + torch.linalg.vector_norm(t)),
    "clone": (lambda f, a, b: f(a), torch.clone),
    "add": (lambda f, a, b: f(a, b, alpha=0.3), lambda a, b: torch.add(a, b, alpha=0.3)),
    "sub": (lambda f, a, b: f(a, [0.2, 0.2]), lambda a: a - 0.2),
    "mul": (lambda f, a, b: f(a, b), torch.mul),
    "div": (lambda f, a, b: f(a, b), torch.div),
    "pow": (lambda f, a, b: f(a, 3), lambda a: a**3),
    "lerp": (lambda f, a, b: f(a, b, 0.3), lambda a, b: torch.lerp(a, b, 0.3)),
    "maximum": (lambda f, a, b: f(a, b), torch.maximum),
    "clamp_min": (lambda f, a, b: f(a, 0.3), lambda a: a.clamp_min(0.3)),
    "addcmul": (lambda f, a, b: f(a, b, b, value=0.5), lambda a, b: torch.addcmul(a, b, b, value=0.5)),
    "mul_": (lambda f, a, b: written(f)(a, b), lambda a, b: (a * 1.0).mul_(b)),
    "tanh_": (lambda f, a, b: written(lambda a, b: f(a))(a, b), lambda a: (a * 1.0).tanh_()),
    "copy_": (lambda f, a, b: written(f)(a, b), lambda a, b: (a * 1.0).copy_(b)),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("spelling", [private, public])
def test_a_function_of_lists_is_that_of_a_tensor_for_each(name, spelling):
    call, one = CASES[name]
    function = spelling(name)
    operands = one.__code__.co_argcount if hasattr(one, "__code__") else 2 - (name in ("abs", "sqrt", "clone"))
    x = torch.randn(4, 3, dtype=torch.float64)
    expected = Lists(lambda a, b: [one(*pair[:operands]) for pair in zip(a, b, strict=True)])
    equal(
        relevance(every_layer(ZPlus()), Lists(lambda a, b: call(function, a, b)), x),
        relevance(every_layer(ZPlus()), expected, x),
    )


@pytest.mark.parametrize("spelling", [private, public])
def test_what_is_written_to_is_returned_by_torch_foreach(spelling):
    same = []

    def function(a, b):
        a = [t * 1.0 for t in a]
        same.append(spelling("add_")(a, b) is a)
        return a

    relevance(every_layer(ZPlus()), Lists(function), torch.randn(4, 3, dtype=torch.float64))
    plain = [torch.ones(2)]
    assert same == [spelling("add_")(plain, 1.0) is plain]


@pytest.mark.parametrize("spelling", [private, public])
def test_an_entry_for_a_function_of_lists_is_one_for_that_of_a_tensor(spelling):
    x = torch.randn(4, 3, dtype=torch.float64)
    layers = (AnyLinear, ZPlus())
    given, plain = Composite([(spelling("mul"), Gradient()), layers]), Composite([(torch.mul, Gradient()), layers])
    expected = relevance(plain, Lists(lambda a, b: [a[0] * b[0]]), x)
    equal(relevance(given, Lists(lambda a, b: spelling("mul")(a[:1], b[:1])), x), expected)
    assert not torch.allclose(expected, relevance(Composite([layers]), Lists(lambda a, b: [a[0] * b[0]]), x))
