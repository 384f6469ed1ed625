"""Rules and composites as values: what they refuse and say, how they print, compare, hash, pickle and stay the same."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import lrphooks
from lrphooks import Composite, composites, matching, rules
from lrphooks.matching import Activation, AnyLinear, AvgPool, BatchNorm, Convolution, First, Linear, MaxPool
from lrphooks.rules import AlphaBeta, Epsilon, Flat, Gamma, Pass, Stabilizer, WSquare, ZBox, ZPlus

WITH_STABILIZER = {
    "Gamma": lambda value: Gamma(0.25, value),
    "ZPlus": ZPlus,
    "AlphaBeta": lambda value: AlphaBeta(2.0, 1.0, value),
    "ZBox": lambda value: ZBox(-1.0, 1.0, value),
    "WSquare": WSquare,
    "Flat": Flat,
    "Epsilon": Epsilon,
}
NOT_FINITE = [math.nan, math.inf, -math.inf]
NOT_NUMBERS = ["0.1", None, [0.1], {"epsilon": 0.1}, 1j]


def refused(exception, call, *words):
    """The call raises, and the message has every one of the words, in any case."""
    with pytest.raises(exception) as caught:
        call()
    message = str(caught.value)
    missing = [word for word in words if word.lower() not in message.lower()]
    assert not missing, f"{missing} not in the message: {message}"
    return message


# Arguments of rules


@pytest.mark.parametrize("name", WITH_STABILIZER)
@pytest.mark.parametrize("value", [-1e-6, *NOT_FINITE])
def test_a_stabilizer_is_finite_and_not_negative(name, value):
    """The message names the rule, the argument and the value."""
    argument = "epsilon" if name == "Epsilon" else "stabilizer"
    refused(ValueError, lambda: WITH_STABILIZER[name](value), name, argument, str(value))


@pytest.mark.parametrize("name", WITH_STABILIZER)
@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_a_stabilizer_is_a_number_or_a_stabilizer(name, value):
    """A wrong type is named."""
    argument = "epsilon" if name == "Epsilon" else "stabilizer"
    refused(TypeError, lambda: WITH_STABILIZER[name](value), name, argument, type(value).__name__)


@pytest.mark.parametrize("value", [-1e-6, *NOT_FINITE])
def test_stabilizer_values(value):
    """The stabiliser class checks its own epsilon."""
    refused(ValueError, lambda: Stabilizer(value), "epsilon", str(value))


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_stabilizer_types(value):
    """The stabiliser's epsilon is a number."""
    refused(TypeError, lambda: Stabilizer(value), "epsilon", type(value).__name__)


@pytest.mark.parametrize("value", ["0", 0.5, (0.5,)], ids=repr)
def test_stabilizer_dim(value):
    """The stabiliser's dimensions are integers."""
    refused((TypeError, ValueError), lambda: Stabilizer(norm_scale=True, dim=value), "dim")


@pytest.mark.parametrize("value", [-0.25, *NOT_FINITE])
def test_gamma_values(value):
    """Gamma is finite and not negative."""
    refused(ValueError, lambda: Gamma(value), "gamma", str(value))


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_gamma_types(value):
    """Gamma is a number."""
    refused(TypeError, lambda: Gamma(value), "gamma", type(value).__name__)


@pytest.mark.parametrize(("alpha", "beta"), [(2.0, 0.5), (1.0, 1.0), (0.0, 1.0), (2.0, 1.0001), (3, 1), (1.5, 0.499)])
def test_alpha_minus_beta_is_one(alpha, beta):
    """The message names both values and their difference's target."""
    refused(ValueError, lambda: AlphaBeta(alpha, beta), "alpha", "beta", str(alpha), str(beta), "1")


@pytest.mark.parametrize(
    ("alpha", "beta"), [(2.3, 1.3), (1.1, 0.1), (1.0, 0.0), (1.7, 0.7), (5, 4), (100.1, 99.1), (1 + 1e-9, 1e-9)]
)
def test_alpha_minus_beta_is_one_up_to_rounding(alpha, beta):
    """2.3 - 1.3 is not 1 in floating point, and is meant to be."""
    rule = AlphaBeta(alpha, beta)
    assert (rule.alpha, rule.beta) == (alpha, beta)


@pytest.mark.parametrize(("alpha", "beta", "bad"), [(0.5, -0.5, "beta"), (-1.0, -2.0, "alpha"), (0.0, -1.0, "beta")])
def test_alpha_and_beta_are_not_negative(alpha, beta, bad):
    """Neither may be below zero, whatever their difference."""
    refused(ValueError, lambda: AlphaBeta(alpha, beta), bad, str(beta if bad == "beta" else alpha))


@pytest.mark.parametrize("value", NOT_FINITE)
def test_alpha_and_beta_are_finite(value):
    """Infinity minus infinity is not one."""
    refused(ValueError, lambda: AlphaBeta(value, 1.0), "alpha", str(value))
    refused(ValueError, lambda: AlphaBeta(2.0, value), "beta", str(value))


@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_alpha_and_beta_are_numbers(value):
    """A wrong type is named."""
    refused(TypeError, lambda: AlphaBeta(value, 1.0), "alpha", type(value).__name__)
    refused(TypeError, lambda: AlphaBeta(2.0, value), "beta", type(value).__name__)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (1.0, 0.0),
        (1, -1),
        (torch.tensor(2.0), 1.0),
        (torch.zeros(3, 1, 1), torch.tensor([1.0, -0.5, 1.0]).view(3, 1, 1)),
        (torch.zeros(1, 3, 1, 1), -0.5),
        (0.5, torch.linspace(0, 1, 3)),
    ],
    ids=["numbers", "integers", "0d", "one channel", "tensor above number", "number above tensor"],
)
def test_low_is_not_above_high(low, high):
    """The message names both bounds."""
    refused(ValueError, lambda: ZBox(low, high), "ZBox", "low", "high")


@pytest.mark.parametrize("value", [*NOT_FINITE, torch.tensor([0.0, math.nan])], ids=str)
def test_bounds_are_finite(value):
    """A bound that is not finite makes every relevance nan."""
    refused(ValueError, lambda: ZBox(value, 1.0), "low")
    refused(ValueError, lambda: ZBox(-1.0, value), "high")


@pytest.mark.parametrize("value", ["0", None, 1j, {}], ids=repr)
def test_bounds_are_numbers_or_tensors(value):
    """A wrong type is named."""
    refused(TypeError, lambda: ZBox(value, 1.0), "low", type(value).__name__)
    refused(TypeError, lambda: ZBox(-1.0, value), "high", type(value).__name__)


def test_bounds_are_required():
    """There is no default box."""
    refused(TypeError, lambda: ZBox(), "low", "high")


def test_bounds_that_do_not_fit_the_input():
    """Bounds for three channels on an input of two: the message names the module and both shapes."""
    model = nn.Sequential(nn.Conv2d(2, 3, 3))
    x = torch.randn(1, 2, 5, 5, requires_grad=True)

    def explain():
        with Composite([("0", ZBox(-torch.ones(3, 1, 1), 1.0))]).context(model):
            model(x).sum().backward()

    refused((ValueError, RuntimeError), explain, "'0'", "ZBox", "(3, 1, 1)", "(1, 2, 5, 5)")


@pytest.mark.parametrize("rule", [Epsilon, Gamma, ZPlus, AlphaBeta, WSquare, Flat, Pass])
def test_unknown_arguments(rule):
    """An option of another library is not swallowed."""
    with pytest.raises(TypeError, match="zero_params"):
        rule(zero_params="bias")


# A rule on a layer that it cannot serve


@pytest.mark.parametrize("rule", [Gamma(), ZPlus(), AlphaBeta(), ZBox(-1, 1), WSquare(), Flat()], ids=repr)
@pytest.mark.parametrize("layer", [nn.ReLU(), nn.LayerNorm(4), nn.Softmax(-1)], ids=lambda layer: type(layer).__name__)
def test_a_rule_for_linear_maps_on_something_else(rule, layer):
    """The message names the module, its type and the rule."""
    model = nn.Sequential(nn.Linear(4, 4), layer)
    x = torch.randn(2, 4, requires_grad=True)

    def explain():
        with Composite([("1", rule), (Linear, Epsilon())]).context(model):
            model(x).sum().backward()

    refused((TypeError, ValueError, RuntimeError), explain, "'1'", type(rule).__name__, type(layer).__name__)


def test_pass_on_a_layer_that_changes_the_shape():
    """Relevance cannot pass unchanged from three values to four."""
    model = nn.Sequential(nn.Linear(4, 3))
    x = torch.randn(2, 4, requires_grad=True)

    def explain():
        with Composite([("0", Pass())]).context(model):
            model(x).sum().backward()

    refused((TypeError, ValueError, RuntimeError), explain, "'0'", "Pass", "Linear", "(2, 4)", "(2, 3)")


# Rules and composites as values


VALUES = [
    Epsilon(),
    Epsilon(0),
    Epsilon(0.25),
    Epsilon(Stabilizer(0.1, clip=True)),
    Gamma(),
    Gamma(0.5, stabilizer=1e-3),
    Gamma(stabilizer=Stabilizer(0.1, norm_scale=True, dim=(1, 2))),
    ZPlus(),
    ZPlus(1e-9),
    AlphaBeta(),
    AlphaBeta(2.3, 1.3),
    AlphaBeta(1, 0, stabilizer=0.1),
    ZBox(-1, 1),
    ZBox(low=-2.5, high=3.25, stabilizer=Stabilizer(1e-3)),
    WSquare(),
    WSquare(0.01),
    Flat(),
    Flat(Stabilizer(norm_scale=True)),
    Pass(),
    Stabilizer(),
    Stabilizer(1e-4, True, True, (1,)),
]
COMPOSITES = [
    composites.EpsilonPlus(),
    composites.EpsilonPlus(epsilon=1e-3, stabilizer=Stabilizer(1e-5, clip=True)),
    composites.EpsilonPlusFlat(),
    composites.EpsilonAlpha2Beta1(),
    composites.EpsilonAlpha2Beta1Flat(stabilizer=1e-4),
    composites.EpsilonGammaBox(-1.0, 2.0),
    composites.EpsilonGammaBox(low=-1.0, high=2.0, gamma=0.5),
    composites.ExcitationBackprop(),
    composites.GuidedBackprop(),
    composites.DeconvNet(),
    Composite([(nn.Conv2d, Gamma(0.5)), (nn.Linear, Epsilon())]),
    Composite([((nn.Conv1d, nn.Conv2d), ZPlus()), ("head.*", Epsilon(0.1))], unmatched="gradient"),
    Composite([(First(AnyLinear), Flat()), (Activation, Pass()), (Convolution, ZPlus())], unmatched="warn"),
    Composite([(AvgPool, Epsilon()), (MaxPool, Pass()), (BatchNorm, Pass()), (Linear, Epsilon())]),
]
NAMES = {name: getattr(module, name) for module in (lrphooks, rules, matching, composites) for name in dir(module)}


def evaluated(value):
    """The value that the printed form makes; layer types may print with or without a module path."""
    names = {name: getattr(nn, name) for name in ("Conv1d", "Conv2d", "Linear")}
    return eval(repr(value), {"torch": torch, "nn": nn, **names, "tensor": torch.tensor, **NAMES})


@pytest.mark.parametrize("value", VALUES + COMPOSITES, ids=repr)
def test_printing_makes_the_value_again(value):
    """A rule or composite prints as the call that made it."""
    assert repr(value).startswith(type(value).__name__ + "(") or type(value) is Composite
    assert evaluated(value) == value


@pytest.mark.parametrize("value", VALUES + COMPOSITES, ids=repr)
def test_pickle_and_copies(value):
    """Pickling and copying keep the value and its hash."""
    for twin in (pickle.loads(pickle.dumps(value)), copy.copy(value), copy.deepcopy(value)):
        assert type(twin) is type(value)
        assert twin == value
        assert not twin != value  # noqa: SIM202
        assert hash(twin) == hash(value)
        assert repr(twin) == repr(value)


@pytest.mark.parametrize("values", [VALUES, COMPOSITES], ids=["rules", "composites"])
def test_equality_and_hash(values):
    """Different values differ, equal ones are found in sets."""
    for i, one in enumerate(values):
        for j, other in enumerate(values):
            assert (one == other) == (i == j), (one, other)
    assert len(set(values) | {pickle.loads(pickle.dumps(value)) for value in values}) == len(values)
    assert values[0] != "something else"


def test_numbers_compare_by_value():
    """An integer is the number it stands for; a rule is not equal to another one with the same numbers."""
    assert Epsilon(1) == Epsilon(1.0)
    assert hash(Epsilon(1)) == hash(Epsilon(1.0))
    assert ZPlus(0.1) != WSquare(0.1)
    assert Epsilon(0.1) != Epsilon(0.2)


@pytest.mark.parametrize("value", VALUES + COMPOSITES, ids=repr)
def test_values_cannot_be_changed(value):
    """Attributes can be neither set, nor added, nor deleted."""
    for name in ("epsilon", "stabilizer", "gamma", "alpha", "low", "entries", "unmatched", "anything"):
        with pytest.raises((AttributeError, TypeError)):
            setattr(value, name, 1)
        with pytest.raises((AttributeError, TypeError)):
            delattr(value, name)
    assert evaluated(value) == value


def test_entries_cannot_be_changed_from_outside():
    """A composite keeps its own copy of the list it was made from."""
    entries = [(nn.Linear, Epsilon())]
    composite = Composite(entries)
    entries.append((nn.Conv2d, ZPlus()))
    assert composite == Composite([(nn.Linear, Epsilon())])


class TestTensorBounds:
    """The z^B rule with tensors for bounds is a value like the others."""

    low = torch.tensor([-2.1179, -2.0357, -1.8044]).view(1, 3, 1, 1)
    high = torch.tensor([2.2489, 2.4286, 2.64]).view(1, 3, 1, 1)

    def test_equality(self):
        rule = ZBox(self.low, self.high)
        twin = ZBox(self.low.clone(), self.high.clone())
        assert rule == twin
        assert hash(rule) == hash(twin)
        assert rule != ZBox(self.low, self.high + 1)
        assert rule != ZBox(self.low.view(3, 1, 1), self.high)
        assert rule != ZBox(-2.0, 2.0)
        assert ZBox(-2.0, 2.0) != rule

    def test_pickle_and_copies(self):
        rule = ZBox(self.low, self.high)
        for twin in (pickle.loads(pickle.dumps(rule)), copy.copy(rule), copy.deepcopy(rule)):
            assert twin == rule
            assert hash(twin) == hash(rule)

    def test_printing(self):
        rule = ZBox(self.low, self.high)
        assert evaluated(rule) == rule
        assert evaluated(composites.EpsilonGammaBox(self.low, self.high)) == composites.EpsilonGammaBox(
            self.low, self.high
        )

    def test_the_callers_tensor_may_change(self):
        low = self.low.clone()
        rule = ZBox(low, self.high)
        before = hash(rule), repr(rule)
        low.add_(1)
        assert rule == ZBox(self.low, self.high)
        assert (hash(rule), repr(rule)) == before


# Arguments of composites


@pytest.mark.parametrize("value", ["ignore", None, True, 3], ids=repr)
def test_unmatched_is_one_of_three(value):
    """The message lists what is possible."""
    refused((TypeError, ValueError), lambda: Composite([], unmatched=value), "unmatched", "error", "warn", "gradient")


@pytest.mark.parametrize(
    "entry",
    [
        nn.Linear,
        (nn.Linear,),
        (nn.Linear, Epsilon(), 3),
        (nn.Linear, Epsilon),
        (nn.Linear, "epsilon"),
        (nn.Linear, None),
        (3, Epsilon()),
        (None, Epsilon()),
        (torch.Tensor, Epsilon()),
        ((nn.Linear, 3), Epsilon()),
        ((), Epsilon()),
        ("", Epsilon()),
    ],
    ids=repr,
)
def test_entries_are_pairs_of_a_matcher_and_a_rule(entry):
    """The message says which entry it is and what was found."""
    message = refused((TypeError, ValueError), lambda: Composite([(nn.Conv2d, ZPlus()), entry]))
    assert "1" in message, f"does not say which entry: {message}"


def test_a_rule_given_as_its_class():
    """The likely mistake gets its way out: call the class."""
    refused(TypeError, lambda: Composite([(nn.Linear, Epsilon)]), "Epsilon", "Epsilon()")


def test_entries_are_a_list():
    """A dictionary has no place for groups; a single entry is no list."""
    refused((TypeError, ValueError), lambda: Composite((nn.Linear, Epsilon())))
    refused((TypeError, ValueError), lambda: Composite(3))


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("EpsilonPlus", {"epsilon": -1.0}, ["epsilon", "-1.0"]),
        ("EpsilonAlpha2Beta1", {"stabilizer": math.nan}, ["stabilizer", "nan"]),
        ("EpsilonGammaBox", {"low": 1.0, "high": 0.0}, ["low", "high"]),
        ("EpsilonGammaBox", {"low": 0.0, "high": 1.0, "gamma": -0.5}, ["gamma", "-0.5"]),
    ],
)
def test_presets_check_their_arguments_when_they_are_made(name, arguments, words):
    """Not when they are used."""
    refused(ValueError, lambda: getattr(composites, name)(**arguments), *words)
