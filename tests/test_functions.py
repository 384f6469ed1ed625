"""Autograd functions of the model's own: the rules that they can have, and what is refused."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from lrphooks import Composite, LRPError, audit, lrp
from lrphooks.engine.errors import UnmatchedError
from lrphooks.matching import AnyLinear
from lrphooks.rules import Constant, Epsilon, Gradient, Identity, Pass, Uniform, WSquare, ZPlus
from small_networks import equal
from test_derivatives import check

X = torch.linspace(-1, 1.5, 12, dtype=torch.float64).reshape(3, 4)


class Gelu(torch.autograd.Function):
    """As BLOOM computes it: the derivative comes from the kept input."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        slope = 0.5 * (1 + torch.erf(x / 2**0.5)) + x * torch.exp(-x * x / 2) / (2 * torch.pi) ** 0.5
        return gradient * slope


class Both(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        return x * y

    @staticmethod
    def backward(ctx, gradient):
        x, y = ctx.saved_tensors
        return gradient * y, gradient * x


class Straight(torch.autograd.Function):
    """Rounds, with the gradient of the identity; keeps nothing."""

    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sum(-1, keepdim=True)

    @staticmethod
    def backward(ctx, gradient):
        return gradient.expand_as(ctx.saved_tensors[0])


class Same(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Model(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.head, self.function = nn.Linear(4, 5), nn.Linear(5, 3), function
        self.double()

    def forward(self, x):
        return self.head(self.function(self.stem(x)))


USES = {
    "one use": lambda act: act,
    "two uses": lambda act: lambda z: (y := act(z)) * 0.5 + y.flip(-1),
    "changed in place": lambda act: lambda z: act(z).add_(z),
    "relu in place": lambda act: lambda z: act(z).relu_(),
    "after a product": lambda act: lambda z: act(z * z.flip(-1)),
    "used by another": lambda act: lambda z: (y := act(z)) * z + Straight.apply(y * 1),
    "checkpoint": lambda act: lambda z: checkpoint(lambda t: act(t * t) * t, z, use_reentrant=False),
    "before its input is used": lambda act: lambda z: act(z) * torch.sigmoid(z),
}


@pytest.mark.parametrize("linear", [Epsilon(0), ZPlus(), WSquare()], ids=repr)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_identity_is_that_of_the_same_operation(use, linear):
    composite = Composite([(Gelu, Identity()), (Straight, Gradient()), (AnyLinear, linear)])
    found, wanted = (lrp(Model(use(act)), X, 0, composite) for act in (Gelu.apply, F.gelu))
    equal(found, wanted)


@pytest.mark.parametrize("rule", [Identity(), Pass()], ids=repr)
@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_books_balance(use, rule):
    model = Model(use(Gelu.apply))
    composite = Composite([(Gelu, rule), (Straight, Gradient()), (AnyLinear, Epsilon(0))])
    report = audit(model, X, 0, composite)
    assert "Gelu" not in report.hidden
    assert ("pass", repr(rule)) in {(row.name, row.rule) for row in report.operations}
    if "Straight" not in report.hidden:
        assert report.unexplained < 1e-14


def test_the_model_may_end_with_a_function():
    composite = Composite([(Gelu, Identity()), (AnyLinear, Epsilon(0))])
    model = nn.Sequential(nn.Linear(4, 3, bias=False), Module(Gelu)).double()
    torch.testing.assert_close(lrp(model, X, 0, composite).sum(), model(X)[:, 0].sum().detach(), rtol=1e-12, atol=0)


class Module(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


@pytest.mark.parametrize("use", ["one use", "two uses", "after a product"])
def test_derivatives_of_relevance_are_exact(use):
    check(Composite([(Gelu, Identity()), (AnyLinear, Epsilon(0.25))]), Model(USES[use](Gelu.apply)), X)


def test_a_constant_function_is_a_gate():
    composite = Composite([(Gelu, Constant()), (AnyLinear, Epsilon(0))])
    found = lrp(Model(lambda z: z * Gelu.apply(z)), X, 0, composite)
    equal(found, lrp(Model(lambda z: z * F.gelu(z).detach()), X, 0, composite))


OUT_OF_SIGHT = r"Gelu in .* because autograd function Straight consumes its result"
REFUSED = {
    "two inputs": (lambda z: Both.apply(z, z * 2), Both, Identity(), r"one input .* but 2 of its inputs depend"),
    "input not kept": (Straight.apply, Straight, Pass(), r"Straight in .*does not keep for its backward pass"),
    "another shape": (lambda z: Sum.apply(z) * z, Sum, Identity(), r"Sum in .* input's shape \(3, 5\), got \(3, 1\)"),
    "a view": (Same.apply, Same, Identity(), r"Same in .* a view of another tensor"),
    "used out of sight": (lambda z: Straight.apply(Gelu.apply(z)), Gelu, Identity(), OUT_OF_SIGHT),
    "stopped out of sight": (lambda z: Straight.apply(Gelu.apply(z)), Gelu, Constant(), OUT_OF_SIGHT),
}


@pytest.mark.parametrize(("function", "kind", "rule", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_function_cannot_have_is_refused(function, kind, rule, message):
    composite = Composite([(kind, rule), ((Straight, Both), Gradient()), (AnyLinear, Epsilon(0))])
    with pytest.raises(LRPError, match=rf"{message}.*Give it lrphooks\.rules\.Gradient\(\)"):
        lrp(Model(function), X, 0, composite)


@pytest.mark.parametrize("rule", [Uniform(), Epsilon(0)], ids=repr)
def test_rules_that_no_function_can_have(rule):
    with pytest.raises(TypeError, match=r"cannot serve autograd function Gelu, .* Gradient, Constant, Identity, Pass"):
        lrp(Model(Gelu.apply), X, 0, Composite([(Gelu, rule), (AnyLinear, Epsilon(0))]))


def test_a_rule_for_layers_beside_a_function_is_for_the_layers():
    composite = Composite([((Gelu, nn.Linear), Epsilon(0)), (Gelu, Identity())])
    equal(lrp(Model(Gelu.apply), X, 0, composite), lrp(Model(F.gelu), X, 0, Composite([(AnyLinear, Epsilon(0))])))


def hooked(function):
    """A module that returns a function's result, and has a backward hook."""
    module = Module(function)
    module.register_full_backward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (Gelu.apply, "Gelu"),
        (lambda z: Straight.apply(Gelu.apply(z)), "Gelu"),
        (hooked(Gelu), "Gelu"),
        (lambda z: Straight.apply(hooked(Gelu)(z)), "Gelu"),
    ],
    ids=["seen", "used out of sight", "hooked", "hooked and out of sight"],
)
def test_functions_without_a_rule_are_told(function, name):
    composite = Composite([(Straight, Gradient()), (AnyLinear, Epsilon(0))])
    with pytest.raises(
        UnmatchedError, match=rf"autograd function {name}.*Identity\(\).*\({name}, lrphooks\.rules\.Grad"
    ):
        lrp(Model(function), X, 0, composite)
