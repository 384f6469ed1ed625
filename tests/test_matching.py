"""Matchers: types, tuples, groups, names, predicates, functions, and the first executed layer."""

import re

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import Composite, LRPError, UnmatchedError, matching
from lrphooks.matching import Activation, AnyLinear, Convolution, First, Linear, Product, Within
from lrphooks.rules import (
    Constant,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    GuidedReLU,
    Identity,
    Pass,
    TakesAll,
    Uniform,
    ZBox,
    ZPlus,
)
from small_networks import equal, every_layer, network, relevance


class Model(nn.Module):
    """Registers its layers in another order than it runs them, one of them never."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 3)
        self.unused = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.act = nn.ReLU()
        self.first = nn.Linear(6, 6)
        self.double()

    def forward(self, x):
        return self.head(self.act(self.second(self.act(self.first(x)))))


X = torch.linspace(-1, 1.5, 18, dtype=torch.float64).reshape(3, 6)


def same(one, two, model=None, x=X):
    model = Model() if model is None else model
    equal(relevance(one, model, x), relevance(two, model, x))


def by_name(**rules):
    """The reference: every layer by its own name."""
    return Composite(list(rules.items()))


REFERENCE = by_name(first=ZPlus(), second=Gamma(1.0), head=Epsilon(0.1), unused=Epsilon())


class Own(nn.Linear):
    pass


def is_second(name, module):
    assert isinstance(name, str)
    assert isinstance(module, nn.Module)
    return name == "second"


@pytest.mark.parametrize(
    "entries",
    [
        [("first", ZPlus()), ("second", Gamma(1.0)), (nn.Linear, Epsilon(0.1))],
        [("fi*", ZPlus()), ("*con?", Gamma(1.0)), (Linear, Epsilon(0.1))],
        [("[f]irst", ZPlus()), (is_second, Gamma(1.0)), (AnyLinear, Epsilon(0.1))],
        [(("first", nn.Conv2d), ZPlus()), ((is_second,), Gamma(1.0)), ((nn.Linear, nn.Conv2d), Epsilon(0.1))],
        [(First(nn.Linear), ZPlus()), ("second", Gamma(1.0)), ("*", Epsilon(0.1))],
        [(First(("second", "first")), ZPlus()), (First(("first", "second")), Gamma(1.0)), (F.linear, Epsilon(0.1))],
        [("head", Epsilon(0.1)), ("unused", Gradient()), (First(F.linear), ZPlus()), (F.linear, Gamma(1.0))],
        [("first", ZPlus()), ("first", Gamma(9.0)), ("second", Gamma(1.0)), (nn.Linear, Epsilon(0.1))],
    ],
    ids=["type", "glob", "predicate", "tuple", "first", "two firsts", "functions", "first match wins"],
)
def test_ways_to_write_one_composite(entries):
    same(Composite(entries), REFERENCE)


def test_subclasses_match_their_base():
    model = Model()
    model.second = Own(6, 6).double()
    reference = by_name(first=Epsilon(0.1), second=ZPlus(), head=Epsilon(0.1), unused=Epsilon())
    same(Composite([(Own, ZPlus()), (nn.Linear, Epsilon(0.1))]), reference, model)
    same(Composite([("second", ZPlus()), (AnyLinear, Epsilon(0.1))]), reference, model)


# --- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unmatched", ["error", "warn", "gradient"])
@pytest.mark.parametrize("matcher", ["secnd", "block.*", "Second", "head.weight", First("secnd"), ("first", "secnd")])
def test_a_name_that_no_module_has_is_an_error(matcher, unmatched):
    """Whatever ``unmatched`` says, with the names that there are."""
    composite = Composite([("first", ZPlus()), (matcher, Gamma()), (AnyLinear, Epsilon())], unmatched=unmatched)
    (pattern,) = [p for p in matching.patterns(matcher) if p != "first"]
    message = rf"pattern '{re.escape(pattern)}' of entry 1 matches no module.*misspelt.*'head', 'unused', 'second'"
    with pytest.raises(LRPError, match=message):
        composite.assign(Model())
    with pytest.raises(LRPError, match=message), composite.context(Model()):
        pass


def test_a_name_that_another_entry_took_is_no_error():
    same(Composite([(nn.Linear, ZPlus()), ("second", Gamma())]), every_layer(ZPlus()))


class Tied(nn.Module):
    """One layer under two names."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(6, 6).double()
        self.decoder = self.encoder

    def forward(self, x):
        return self.decoder(F.relu(self.encoder(x)))


@pytest.mark.parametrize("name", ["encoder", "decoder", "dec*"])
def test_every_name_of_a_shared_module_is_one(name):
    same(Composite([(name, ZPlus())]), every_layer(ZPlus()), Tied())


def test_a_row_knows_every_name():
    """A shared layer has one row; a container of it has none of its own for the second name."""

    class Nested(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Sequential(nn.Linear(6, 6))
            self.two = self.one

    assignment = Composite([("two.*", ZPlus())]).assign(Nested())
    assert [row.names for row in assignment] == [("",), ("one", "two"), ("one.0", "two.0")]
    assert assignment["one.0"] == assignment["two.0"]
    assert assignment["two.0"].rule == ZPlus()
    assert "one.0, two.0  Linear" in str(assignment)


# --- First -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matcher", [nn.Linear, AnyLinear, Linear, "*", (nn.Linear, nn.Conv2d), ("first", "head")])
def test_first_is_the_first_executed(matcher):
    """Not the first registered: ``head`` is, and ``unused`` never runs."""
    reference = by_name(first=Flat(), second=ZPlus(), head=ZPlus(), unused=ZPlus())
    same(Composite([(First(matcher), Flat()), (AnyLinear, ZPlus())]), reference)


class Functions(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.w2, self.w1 = (nn.Parameter(torch.randn(6, 6, dtype=torch.float64)) for _ in range(2))

    def forward(self, x):
        return F.linear(F.relu(F.linear(x, self.w1)), self.w2)


def test_first_counts_functions_too():
    model = Functions()
    twin = nn.Sequential(nn.Linear(6, 6, bias=False), nn.ReLU(), nn.Linear(6, 6, bias=False)).double()
    twin[0].weight, twin[2].weight = model.w1, model.w2
    composite = Composite([(First(AnyLinear), Flat()), (AnyLinear, ZPlus())])
    equal(relevance(composite, model, X), relevance(by_name(**{"0": Flat(), "2": ZPlus()}), twin, X))


class Branches(nn.Module):
    """Which layer runs first depends on the input; a layer runs before it on constants alone."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.position, self.left, self.right, self.head = (nn.Linear(6, 6) for _ in range(4))
        self.register_buffer("grid", torch.randn(3, 6))
        self.double()

    def forward(self, x):
        position = self.position(self.grid)
        x = self.left(x) if x.sum() > 0 else self.right(x)
        return self.head(F.relu(x + position))


@pytest.mark.parametrize("sign", [1, -1])
def test_first_is_decided_in_each_forward_pass(sign):
    """By layers that see the explained input, so not by the one that makes a constant."""
    composite = Composite([(First(nn.Linear), Flat()), (nn.Linear, ZPlus())])
    first, other = ("left", "right") if sign > 0 else ("right", "left")
    reference = by_name(**{first: Flat(), other: ZPlus(), "head": ZPlus(), "position": ZPlus()})
    same(composite, reference, Branches(), sign * X.abs())


def test_first_alone_leaves_the_others_unmatched():
    """Which is an error that names a layer, not a silent gradient."""
    with pytest.raises(UnmatchedError, match=r"(head|second|unused|linear)"):
        relevance(Composite([(First(nn.Linear), Flat())]), Model(), X)


def test_first_of_convolutions_leaves_an_earlier_dense_layer_alone():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.conv2, self.conv1 = nn.Conv1d(1, 2, 3), nn.Conv1d(1, 1, 3, padding=1)
            self.fc = nn.Linear(6, 6)
            self.double()

        def forward(self, x):
            return self.conv2(self.conv1(self.fc(x).unsqueeze(1)).relu()).flatten(1)

    reference = by_name(fc=Epsilon(0.1), conv1=ZBox(-3, 3), conv2=ZPlus())
    composite = Composite([(First(Convolution), ZBox(-3, 3)), (Convolution, ZPlus()), (Linear, Epsilon(0.1))])
    same(composite, reference, Mixed())


# --- the model itself, groups, functions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "matcher",
    [nn.Linear, Linear, AnyLinear, (nn.Linear, nn.Conv2d), First(nn.Linear), F.linear, lambda n, m: True, "*"],
    ids=["type", "group", "any", "tuple", "first", "function", "predicate", "star"],
)
def test_a_model_that_is_one_layer(matcher):
    """It has no name, so patterns do not see it, but everything else does."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 3).double()
    if matcher == "*":
        with pytest.raises(LRPError, match=r"pattern '\*'.*matches no module"):
            relevance(Composite([(matcher, ZPlus())]), layer, X)
        return
    expected = relevance(Composite([("0", ZPlus())]), nn.Sequential(layer), X)
    equal(relevance(Composite([(matcher, ZPlus())]), layer, X), expected)


def test_pass_serves_the_model_itself():
    """Relevance of the output is that of the input, whatever is computed between."""

    class Shift(nn.Module):
        def forward(self, x):
            return 2 * x + 1

    found = relevance(Composite([(Shift, Pass())]), Shift(), X)
    seed = torch.linspace(1, -0.5, X.numel(), dtype=X.dtype).reshape(X.shape)
    equal(found, (2 * X + 1) * seed)


def test_a_layer_before_a_module_that_passes_relevance_keeps_its_rule():
    """The closed form of z-plus, layer by layer, with the ReLU between two layers passed over."""
    torch.manual_seed(0)
    one, two, head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)
    model = nn.Sequential(one, nn.ReLU(), two, nn.Sequential(nn.ReLU()), head).double()

    def z_plus(layer, a, relevances):
        up, down = layer.weight.clamp(min=0), layer.weight.clamp(max=0)
        positive = a.clamp(min=0) @ up.t() + a.clamp(max=0) @ down.t()
        share = torch.where(positive == 0, 0, relevances / (positive + layer.bias.clamp(min=0) + 1e-6))
        return a.clamp(min=0) * (share @ up) + a.clamp(max=0) * (share @ down)

    with torch.no_grad():
        first = one(X).relu()
        second = two(first).relu()
        output = head(second)
        seed = torch.linspace(1, -0.5, 9, dtype=X.dtype).reshape(3, 3)
        expected = z_plus(one, X, z_plus(two, first, z_plus(head, second, output * seed)))
    equal(relevance(Composite([("3", Pass()), (AnyLinear, ZPlus())]), model, X), expected, 1e-10)


@pytest.mark.parametrize("call", [F.relu, torch.relu, torch.Tensor.relu, torch.Tensor.relu_, "inplace", nn.ReLU()])
@pytest.mark.parametrize("matcher", [F.relu, torch.relu, torch.Tensor.relu, torch.relu_, Activation, matching.ReLU])
def test_every_alias_of_a_function_counts(call, matcher):
    class Calls(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.first, self.second, self.act = nn.Linear(6, 6), nn.Linear(6, 3), call
            self.double()

        def forward(self, x):
            x = self.first(x)
            return self.second(F.relu(x, inplace=True) if call == "inplace" else call(x))

    composite = Composite([(matcher, GuidedReLU()), (AnyLinear, Gradient())], attribution="gradient")
    model = Calls()
    z = (X @ model.first.weight.t() + model.first.bias).detach()
    seed = torch.linspace(1, -0.5, 9, dtype=X.dtype).reshape(3, 3)
    expected = ((seed @ model.second.weight).clamp(min=0) * (z > 0)) @ model.first.weight
    equal(relevance(composite, model, X), expected.detach())


def test_a_rule_for_functions_inside_a_module_ends_with_it():
    """A module's rule holds for what it calls; outside of it the convention does."""

    class Inner(nn.Module):
        def forward(self, x):
            return F.gelu(x)

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.inner, self.act = nn.Linear(6, 6).double(), Inner(), nn.GELU()

        def forward(self, x):
            return F.gelu(self.act(self.inner(self.fc(x))))

    model = Both()
    inner = Composite([("inner", Gradient()), (AnyLinear, Epsilon(0))])
    leaf = X.clone().requires_grad_()
    z = model.fc(leaf)
    h = F.gelu(z)
    seed = torch.linspace(1, -0.5, 18, dtype=X.dtype).reshape(3, 6)
    g = seed * (F.gelu(F.gelu(h)) / F.gelu(h)) * (F.gelu(h) / h)
    (expected,) = torch.autograd.grad(h, leaf, g.detach())
    equal(relevance(inner, model, X), (expected * X).detach())
    everywhere = Composite([(F.gelu, Gradient()), (AnyLinear, Epsilon(0))])
    (plain,) = torch.autograd.grad(model(leaf), leaf, seed)
    equal(relevance(everywhere, model, X), (plain * X).detach())
    same(Composite([(F.gelu, Identity()), (AnyLinear, Epsilon(0))]), every_layer(Epsilon(0)), model)


def test_groups_hold_what_they_say():
    """A module type and a function of each kind, in all dimensions."""
    expected = {
        "Convolution": ["Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"],
        "AnyLinear": ["Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"],
        "Activation": ["ReLU", "LeakyReLU", "GELU", "SiLU", "Tanh", "Sigmoid", "Hardswish", "PReLU", "ELU"],
        "AvgPool": [f"{a}AvgPool{n}d" for a in ("", "Adaptive") for n in (1, 2, 3)],
        "MaxPool": [f"{a}MaxPool{n}d" for a in ("", "Adaptive") for n in (1, 2, 3)],
        "BatchNorm": ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "SyncBatchNorm"],
        "Normalization": ["BatchNorm2d", "LayerNorm", "GroupNorm", "InstanceNorm2d", "RMSNorm"],
        "Dropout": ["Dropout", "Dropout1d", "Dropout2d", "Dropout3d"],
    }
    for name, types in expected.items():
        group = getattr(matching, name)
        for type_name in types:
            assert issubclass(getattr(nn, type_name), group.types), (name, type_name)


def test_an_identity_rule_on_a_module_is_the_convention():
    model, x = network("gates")
    same(Composite([("act", Identity()), (AnyLinear, Epsilon(0))]), every_layer(Epsilon(0)), model, x)


def test_a_constant_layer_receives_no_relevance():
    """The branch that a rule declares constant only scales; all relevance goes the other way."""

    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.signal, self.gate = (nn.Linear(6, 3, bias=False).double() for _ in range(2))

        def forward(self, x):
            return self.signal(x) * self.gate(x)

    model = Gated()
    gate = (X @ model.gate.weight.t()).detach()
    seed = torch.linspace(1, -0.5, 9, dtype=X.dtype).reshape(3, 3)
    expected = X * ((seed * gate) @ model.signal.weight.detach())
    equal(relevance(Composite([("gate", Constant()), (AnyLinear, Epsilon(0))]), model, X), expected)


# --- Within ---------------------------------------------------------------------------------------------------------


class Multiply(nn.Module):
    """A product of its own, of two layers that it holds."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.product(self.one(x), self.two(x))

    def product(self, a, b):
        return a * b


class Holds(nn.Module):
    """A module around the one that multiplies."""

    def __init__(self):
        super().__init__()
        self.inner = Multiply()

    def forward(self, x):
        return self.inner(x)


class Products(nn.Module):
    """Products in three places: inside of modules of two types, and in the model itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.left, self.right, self.head = Holds(), Multiply(), nn.Linear(6, 6)
        self.double()

    def forward(self, x):
        a, b = self.left(x), self.right(x)
        return self.head(a * b)


FIRST, SECOND = TakesAll(0), TakesAll(1)


def products(left, right, model):
    """The gradient times input of Products(), each product by one operand, worked out by detaching the other."""
    net, x = Products(), X.clone().requires_grad_()

    def multiply(rule, a, b):
        if rule == Uniform():
            return (a * b.detach() + a.detach() * b) / 2
        return a * b.detach() if rule == FIRST else a.detach() * b

    sides = [multiply(r, m.one(x), m.two(x)) for r, m in ((left, net.left.inner), (right, net.right))]
    # The halves of Uniform() change values; only the derivative is wanted.
    with torch.no_grad():
        true = [m.one(x) * m.two(x) for m in (net.left.inner, net.right)]
    a, b = (side + (value - side).detach() for side, value in zip(sides, true, strict=True))
    output = net.head(multiply(model, a, b))
    seed = torch.linspace(1, -0.5, output.numel(), dtype=X.dtype).reshape(output.shape)
    (gradient,) = torch.autograd.grad(output, x, seed)
    return X * gradient


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([(Within("left", torch.mul), FIRST)], (FIRST, Uniform(), Uniform())),
        ([(Within("left.inner", torch.mul), FIRST)], (FIRST, Uniform(), Uniform())),
        ([(Within(Multiply, Product), FIRST)], (FIRST, FIRST, Uniform())),
        ([(Within(("right", Holds), torch.Tensor.__mul__), FIRST)], (FIRST, FIRST, Uniform())),
        ([(Within(lambda name, module: name == "right", Product), FIRST)], (Uniform(), FIRST, Uniform())),
        ([(Within(Products, Product), FIRST)], (FIRST, FIRST, FIRST)),
        ([(Within("*.inner", Product), FIRST), (torch.mul, SECOND)], (FIRST, SECOND, SECOND)),
        ([(torch.mul, SECOND), (Within("left", Product), FIRST)], (SECOND, SECOND, SECOND)),
        ([((Within("left", Product), Within("right", Product)), FIRST)], (FIRST, FIRST, Uniform())),
        # A module that multiplies itself: its rule comes before entries for products anywhere, in order with others.
        ([(torch.mul, SECOND), (Multiply, FIRST)], (FIRST, FIRST, SECOND)),
        ([(Within("left", torch.mul), SECOND), (Multiply, FIRST)], (SECOND, FIRST, Uniform())),
        ([((torch.mul, Within("left", torch.mul)), SECOND), (Multiply, FIRST)], (SECOND, FIRST, SECOND)),
        ([(Multiply, FIRST), (Within("left", torch.mul), SECOND)], (FIRST, FIRST, Uniform())),
        # A module around it: in order with all.
        ([(Within("left", torch.mul), SECOND), ("left", FIRST)], (SECOND, Uniform(), Uniform())),
        ([(torch.mul, SECOND), ("left", FIRST)], (SECOND, SECOND, SECOND)),
        ([("left", FIRST), (torch.mul, SECOND)], (FIRST, SECOND, SECOND)),
    ],
)
def test_operations_within_modules(entries, expected):
    """Any module that is running counts, not the one alone that runs the operation."""
    composite = Composite([*entries, (AnyLinear, Gradient())])
    equal(relevance(composite, Products(), X), products(*expected).detach())


@pytest.mark.parametrize("matcher", [nn.Linear, AnyLinear, F.linear, (nn.Conv2d, Linear)])
def test_layers_within_modules(matcher):
    """A layer is inside of the modules that it is registered in."""
    model = Products()
    composite = Composite([(Within("left", matcher), ZPlus()), (nn.Linear, Gamma(1.0))])
    inside = {"left.inner.one", "left.inner.two"}
    assert {row.name for row in composite.assign(model) if row.rule == ZPlus()} == inside
    same(composite, by_name(**dict.fromkeys(inside, ZPlus()), **{"*": Gamma(1.0)}), model)


def test_first_within_modules():
    model = Products()
    # Both see the input itself.
    reference = Composite([(("right.one", "right.two"), Flat()), (AnyLinear, ZPlus())])
    same(Composite([(First(Within("right", AnyLinear)), Flat()), (AnyLinear, ZPlus())]), reference, model)


class Dense(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return F.linear(x, self.weight)


def test_functions_of_weights_within_modules():
    torch.manual_seed(0)
    model = nn.Sequential(Dense(), nn.ReLU(), Dense()).double()
    composite = Composite([(Within("0", F.linear), ZPlus()), (F.linear, Gamma(1.0))])
    same(composite, Composite([("0", ZPlus()), ("2", Gamma(1.0))]), model)


def test_a_place_that_there_is_not_is_an_error():
    with pytest.raises(LRPError, match=r"pattern 'lefd' of entry 0 matches no module.*misspelt"):
        Composite([(Within("lefd", torch.mul), FIRST), (AnyLinear, Epsilon())]).assign(Products())


def test_a_rule_for_products_counts_behind_one_for_layers():
    """A product of activations is no linear layer, so the entry of all linear maps does not take it."""

    class Squares(nn.Module):
        def forward(self, x):
            return torch.matmul(x, x.t() + 1.0)

    first = Composite([(torch.matmul, TakesAll(0)), (AnyLinear, Epsilon(0))])
    behind = Composite([(AnyLinear, Epsilon(0)), (torch.matmul, TakesAll(0))])
    x = torch.randn(3, 3, dtype=torch.float64)
    equal(relevance(behind, Squares(), x), relevance(first, Squares(), x))
