"""Composites are values: immutable, comparable, hashable, picklable, printed as the call that makes them."""

import copy
import dataclasses
import pickle
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import Composite, LRPError, UnmatchedError, UnmatchedWarning, composites, matching, rules
from lrphooks.matching import AnyLinear, Convolution, First, Group, Linear, Within
from lrphooks.operations import lookup
from lrphooks.rules import Epsilon, Flat, Gamma, Gradient, Identity, Stabilizer, ZBox, ZPlus
from small_networks import PRESETS, equal, network, relevance


class Own(nn.Linear):
    """A layer type of the user's."""


def ends_with_one(name, module):
    return name.endswith("1") and isinstance(module, nn.Linear)


MEAN, STD = (
    torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1),
    torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1),
)
LOW, HIGH = (0 - MEAN) / STD, (1 - MEAN) / STD

COMPOSITES = {
    **{name: make() for name, make in PRESETS.items()},
    "options": Composite([(nn.Linear, Epsilon())], unmatched="warn", attribution="gradient"),
    "empty": Composite([], unmatched="gradient"),
    "types": Composite([((nn.Linear, nn.Conv2d), Epsilon(0)), ((nn.Conv1d,), Gamma(0.5))]),
    "names": Composite([("features.*", ZPlus()), ("it's", Epsilon()), (("a", "b[0-9]"), Epsilon())]),
    "nested": Composite([(First((nn.Linear, (Convolution, "x"))), Flat())]),
    "places": Composite(
        [((Within(("a*", Own), (torch.mul, AnyLinear)), "b"), Epsilon()), (First(Within(Own, Linear)), Flat())]
    ),
    "predicate": Composite([(ends_with_one, Epsilon())]),
    "own type": Composite([(Own, Epsilon())]),
    "stabilizers": Composite([(AnyLinear, Gamma(0.3, Stabilizer(0.1, clip=True, norm_scale=True, dim=(1,))))]),
    "private type": Composite([(nn.modules.conv._ConvNd, Epsilon())]),
    "type in no namespace": Composite([(nn.modules.linear.NonDynamicallyQuantizableLinear, Epsilon())]),
    "box": composites.EpsilonGammaBox(-2.0, 2.0),
    "box of tensors": composites.EpsilonGammaBox(LOW, HIGH),
    "box in float64": composites.EpsilonGammaBox(LOW.double(), HIGH.double()),
    "box in float16": composites.EpsilonGammaBox(LOW.half(), HIGH.half()),
    "box a feature": Composite([(Linear, ZBox(-torch.rand(2000), torch.rand(2000)))]),
    "group of one's own": Composite([(Group("Mine", (nn.Linear,), ("linear",)), Epsilon())]),
}
FUNCTIONS = {
    "torch.matmul": torch.matmul,
    "torch.mul": torch.mul,
    "F.softmax": F.softmax,
    "F.gelu": F.gelu,
    "F.scaled_dot_product_attention": F.scaled_dot_product_attention,
    "F.layer_norm": F.layer_norm,
    "torch.special.expit": torch.special.expit,
    "torch.linalg.norm": torch.linalg.norm,
    "Tensor.add": torch.Tensor.add,
    "Tensor.__matmul__": torch.Tensor.__matmul__,
}
ALL = {**COMPOSITES, **{name: Composite([(f, Gradient())]) for name, f in FUNCTIONS.items()}}

NAMESPACE = {
    "torch": torch,
    **{name: getattr(rules, name) for name in rules.__all__},
    **{name: value for name, value in vars(matching).items() if not name.startswith("_")},
    "Composite": Composite,
    "Own": Own,
    "ends_with_one": ends_with_one,
}


@pytest.mark.parametrize("composite", ALL.values(), ids=ALL)
def test_repr_evaluates_to_an_equal_composite(composite):
    """With torch, the rules, the matchers and Composite in view, and the user's own types and predicates."""
    made = eval(repr(composite), dict(NAMESPACE))
    assert made == composite
    assert repr(made) == repr(composite)


@pytest.mark.parametrize("composite", ALL.values(), ids=ALL)
def test_pickle_copy_equality_and_hash(composite):
    for made in (pickle.loads(pickle.dumps(composite)), copy.copy(composite), copy.deepcopy(composite)):
        assert made == composite
        assert hash(made) == hash(composite)
        assert len({made, composite}) == 1


def test_composites_differ_in_everything_they_are_made_of():
    different = [
        Composite([(nn.Linear, Epsilon())]),
        Composite([(nn.Conv2d, Epsilon())]),
        Composite([("0", Epsilon())]),
        Composite([(First(nn.Linear), Epsilon())]),
        Composite([((nn.Linear,), Epsilon())]),
        Composite([(nn.Linear, Epsilon(1e-5))]),
        Composite([(nn.Linear, ZPlus())]),
        Composite([(nn.Linear, Epsilon())], unmatched="warn"),
        Composite([(nn.Linear, Epsilon())], attribution="gradient"),
        Composite([(nn.Linear, Epsilon()), (nn.Conv2d, Epsilon())]),
        Composite([(nn.Conv2d, Epsilon()), (nn.Linear, Epsilon())]),
        Composite([(ends_with_one, Epsilon())]),
    ]
    assert len(set(different)) == len(different)
    for i, one in enumerate(different):
        assert [one == other for other in different] == [i == j for j in range(len(different))]
    assert Composite([(nn.Linear, Epsilon())]) != [(nn.Linear, Epsilon())]


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
def test_composites_are_immutable(composite):
    for field in dataclasses.fields(composite):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(composite, field.name, None)
    with pytest.raises(AttributeError):
        composite.other = 1
    assert isinstance(composite.entries, tuple)
    assert all(isinstance(entry, tuple) for entry in composite.entries)


def test_a_composite_keeps_no_hold_on_what_it_was_made_from():
    """Lists, pairs as lists, tensors: what happens to them later does not matter."""
    names, low = ["a", "b"], torch.tensor([-1.0, -2.0])
    entries = [[names, Epsilon()], (nn.Linear, ZBox(low, 1.0))]
    composite = Composite(entries)
    before = repr(composite), hash(composite)
    entries.clear()
    names.append("c")
    low.fill_(-9)
    assert (repr(composite), hash(composite)) == before


def test_the_tensors_of_a_rule_cannot_be_changed_through_it():
    """A rule that is the key of a dictionary must not change its hash."""
    rule = ZBox(torch.tensor([-1.0, -2.0]), 1.0)
    before = hash(rule), repr(rule)
    rule.low.fill_(-9)
    assert (hash(rule), repr(rule)) == before


def test_entries_come_from_any_iterable():
    pairs = [(nn.Linear, Epsilon()), ("0", ZPlus())]
    assert Composite(tuple(pairs)) == Composite(iter(pairs)) == Composite(p for p in pairs) == Composite(pairs)


def test_a_composite_that_served_is_unchanged():
    model, x = network("residual")
    for name, make in PRESETS.items():
        composite, untouched = make(), make()
        relevance(composite, model, x)
        assert composite == untouched, name
        assert pickle.dumps(composite) == pickle.dumps(untouched), name


def test_a_pickled_composite_explains_alike():
    model, x = network("vgg")
    for name in ("predicate", "box of tensors", "EpsilonPlusFlat"):
        composite = COMPOSITES[name]
        if name == "predicate":
            composite = Composite([*composite.entries, (AnyLinear, Gamma())])
        equal(relevance(pickle.loads(pickle.dumps(composite)), model, x), relevance(composite, model, x))


# --- what is refused -----------------------------------------------------------------------------------------------


REFUSED = {
    "rule class": (lambda: Composite([(nn.Linear, Epsilon)]), TypeError, r"entry 0.*expected a rule.*mean Epsilon\(\)"),
    "no rule": (lambda: Composite([(nn.Linear, None)]), TypeError, r"entry 0.*expected a rule.*got None"),
    "number": (lambda: Composite([("a", Epsilon()), (nn.Linear, 0.5)]), TypeError, r"entry 1.*expected a rule.*0\.5"),
    "swapped": (lambda: Composite([(Epsilon(), nn.Linear)]), TypeError, r"entry 0.*matcher.*Epsilon\(epsilon=1e-06\)"),
    "no pair": (lambda: Composite([nn.Linear]), TypeError, r"entry 0 must be a \(matcher, rule\) pair"),
    "three": (lambda: Composite([(nn.Linear, Epsilon(), 1)]), TypeError, r"entry 0 must be a \(matcher, rule\) pair"),
    "one pair": (lambda: Composite((nn.Linear, Epsilon())), TypeError, r"must be a \(matcher, rule\) pair"),
    "arguments": (lambda: Composite(nn.Linear, Epsilon()), TypeError, r"must be a list of \(matcher, rule\) pairs"),
    "dict": (lambda: Composite({nn.Linear: Epsilon()}), TypeError, r"\(matcher, rule\) pair"),
    "string": (lambda: Composite("Linear"), TypeError, r"must be a list of \(matcher, rule\) pairs, got 'Linear'"),
    "other type": (lambda: Composite([(int, Epsilon())]), TypeError, r"entry 0.*torch\.nn\.Module class.*int"),
    "number for matcher": (lambda: Composite([(3, Epsilon())]), TypeError, r"entry 0: A matcher is.*got 3"),
    "empty tuple": (lambda: Composite([((), Epsilon())]), TypeError, r"entry 0: A matcher is.*got \(\)"),
    "empty name": (lambda: Composite([("", Epsilon())]), ValueError, r"entry 0.*pattern is empty.*\*"),
    "within": (lambda: Composite([((nn.Linear, 3), Epsilon())]), TypeError, r"entry 0: A matcher is.*got 3"),
    "first twice": (lambda: Composite([(First(First("a")), Epsilon())]), TypeError, r"entry 0.*First\(First"),
    "first in a tuple": (lambda: Composite([((First("a"), "b"), Epsilon())]), TypeError, r"entry 0.*First\(\(...\)\)"),
    "nowhere": (lambda: Composite([(Within("", F.relu), Gradient())]), ValueError, r"entry 0.*pattern is empty"),
    "within a function": (lambda: Composite([(Within(F.relu, F.relu), Gradient())]), TypeError, r"entry 0.*where must"),
    "within products": (
        lambda: Composite([(Within(matching.Product, F.relu), Gradient())]),
        TypeError,
        r"entry 0.*where must.*Product",
    ),
    "name within": (lambda: Composite([(Within("a", "b"), Epsilon())]), TypeError, r"entry 0.*matcher must.*'b'"),
    "first within": (
        lambda: Composite([(Within("a", First(nn.Linear)), Flat())]),
        TypeError,
        r"entry 0.*matcher must.*First\(Within",
    ),
    "first of nothing": (lambda: Composite([(First(None), Epsilon())]), TypeError, r"entry 0: A matcher is.*None"),
    "module instance": (
        lambda: Composite([(nn.Linear(2, 2), Epsilon())]),
        TypeError,
        r"entry 0.*(type|class).*Linear",
    ),
    "no torch operation": (lambda: Composite([(torch.save, Gradient())]), (TypeError, ValueError), r"entry 0.*save"),
    "python function": (lambda: Composite([(len, Gradient())]), (TypeError, ValueError), r"entry 0.*len"),
    "predicate of one": (lambda: Composite([(lambda m: True, Epsilon())]), TypeError, r"entry 0.*\(name, module\)"),
    "unmatched": (lambda: Composite([], unmatched="ignore"), ValueError, r"unmatched must be one of.*warn.*'ignore'"),
    "unmatched none": (lambda: Composite([], unmatched=None), ValueError, r"unmatched must be one of.*None"),
    "attribution": (lambda: Composite([], attribution="x"), ValueError, r"attribution must be one of.*'x'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_entry_is_refused_where_it_is_made(case):
    make, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("model", [F.relu, nn.Linear, None, "model"], ids=["function", "type", "none", "text"])
def test_only_a_module_has_a_context(model):
    composite = composites.EpsilonPlus()
    with pytest.raises(TypeError, match=r"Expected a torch\.nn\.Module"):
        composite.assign(model)
    with pytest.raises(TypeError, match=r"Expected a torch\.nn\.Module"), composite.context(model):
        pass


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: nn.LazyLinear(3), r"module '0'.*uninitialized.*Run the model once"),
        (lambda: torch.jit.script(nn.Linear(2, 2)), r"module '0'.*TorchScript.*Python model"),
        (lambda: torch.compile(nn.Linear(2, 2)), r"module '0'.*torch\.compile.*_orig_mod"),
    ],
    ids=["lazy", "script", "compiled"],
)
@pytest.mark.filterwarnings("ignore:`torch.jit")
def test_a_model_that_cannot_be_hooked_is_refused(make, message):
    model = nn.Sequential(make())
    with pytest.raises(LRPError, match=message), Composite([(AnyLinear, Epsilon())]).context(model):
        pass


# --- what has no rule ------------------------------------------------------------------------------------------------


class Mystery(nn.Module):
    """Uses an operation that no rule knows: it is not linear, and has no convention."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return torch.cholesky_inverse(self.layer(x) + 3 * torch.eye(4))


@pytest.mark.parametrize("policy", ["error", "warn", "gradient"])
def test_a_layer_that_no_entry_matches(policy):
    model, x = network("vgg")
    composite = Composite([(Convolution, ZPlus())], unmatched=policy)
    message = r"no entry.*'classifier\.0' \(Linear\).*'classifier\.3' \(Linear\).*Epsilon\(\).*unmatched=\"warn\""
    message = message.replace("no entry", "[Nn]o entry")
    if policy == "error":
        with pytest.raises(UnmatchedError, match=message):
            relevance(composite, model, x)
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = relevance(composite, model, x)
    told = [str(w.message) for w in caught]
    assert len(told) == (1 if policy == "warn" else 0), "each layer is reported once"
    assert all(re.search(message, text) for text in told)
    equal(found, relevance(Composite([*composite.entries, (nn.Linear, Gradient())]), model, x))


def test_a_warning_for_a_layer_points_at_the_users_line():
    model, _ = network("vgg")
    composite = Composite([(Convolution, ZPlus())], unmatched="warn")
    with (
        pytest.warns(UserWarning, match="without a forward pass"),
        pytest.warns(UnmatchedWarning) as caught,
        composite.context(model),
    ):
        pass
    assert caught[0].filename == __file__


@pytest.mark.parametrize("policy", ["error", "warn", "gradient"])
def test_an_operation_that_no_rule_knows(policy):
    """The message names the operation, the module, and the line of the model that calls it."""
    model, x = Mystery().double(), torch.randn(4, 4, dtype=torch.float64)
    composite = Composite([(AnyLinear, Epsilon(0))], unmatched=policy)
    line = Mystery.forward.__code__.co_firstlineno + 1
    message = rf"cholesky_inverse.*the model \(Mystery\).*test_composite\.py:{line}.*unmatched=\"warn\""
    if policy == "error":
        with pytest.raises(UnmatchedError, match=message):
            relevance(composite, model, x)
        return
    if policy == "warn":
        with pytest.warns(UnmatchedWarning, match=message):
            found = relevance(composite, model, x)
    else:
        found = relevance(composite, model, x)
    plain = x.clone().requires_grad_()
    output = model(plain)
    output.backward(torch.linspace(1, -0.5, 16, dtype=x.dtype).reshape(4, 4))
    equal(found, plain.grad * x)


def test_the_way_out_that_a_message_offers_is_one():
    """The entry that the error proposes is accepted, and then the model runs."""
    model, x = Mystery().double(), torch.randn(4, 4, dtype=torch.float64)
    composite = Composite([(torch.cholesky_inverse, Gradient()), (AnyLinear, Epsilon(0))])
    expected = relevance(Composite([(AnyLinear, Epsilon(0))], unmatched="gradient"), model, x)
    equal(relevance(composite, model, x), expected)


@pytest.mark.parametrize(
    ("operation", "rule"),
    [
        (torch.matmul, Identity()),
        (F.gelu, rules.GuidedReLU()),
        (F.softmax, Identity()),
        (F.relu, Epsilon()),
        (torch.sort, Epsilon()),
        (torch.sigmoid, rules.Uniform()),
        (F.linear, Identity()),
    ],
    ids=lambda value: getattr(value, "__name__", repr(value)),
)
def test_a_rule_that_cannot_serve_its_operation_is_refused(operation, rule):
    """It would silently be another rule, or none."""
    name = operation.__name__

    class Uses(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            x = torch.sigmoid(F.gelu(F.relu(self.layer(x)))) * x
            return x.softmax(-1) @ x.sort(-1)[0].t()

    with pytest.raises(
        (TypeError, LRPError), match=rf"(?s){type(rule).__name__}.*{name}|{name}.*{type(rule).__name__}"
    ):
        relevance(Composite([(operation, rule), (AnyLinear, Epsilon())]), Uses(), torch.randn(4, 4))


@pytest.mark.parametrize(
    ("function", "code"),
    [
        (F.softmax, "torch.softmax"),
        (torch.Tensor.softmax, "torch.softmax"),
        (torch.ops.aten.relu_.default, "torch.nn.functional.relu"),
        (F.linear, "torch.nn.functional.linear"),
        (torch.Tensor.__getitem__, "torch.Tensor.__getitem__"),
        (torch.Tensor.T.__get__, "torch.Tensor.T.__get__"),
        (torch.Tensor.copy_, "torch.Tensor.copy_"),
        (torch.Tensor.cholesky_inverse, "torch.cholesky_inverse"),
        (torch.ops.aten.cholesky_inverse.default, "torch.cholesky_inverse"),
        (torch.linalg.eigh, "torch.linalg.eigh"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_aliases_are_one_matcher(function, code):
    """Also those of an operation that no rule knows; its public function stands for all of them."""
    one, other = Composite([(function, Gradient())]), Composite([(eval(code), Gradient())])
    assert one == other
    assert hash(one) == hash(other)
    assert repr(one) == f"Composite([({code}, Gradient())])"
    assert Composite([(First((function, nn.Linear)), Epsilon())]) == Composite(
        [(First((eval(code), nn.Linear)), Epsilon())]
    )


def test_every_operation_of_torch_is_a_matcher_that_prints_as_code():
    """All that a function mode may see of a model, as torch itself lists it."""
    listed = [f for functions in torch.overrides.get_overridable_functions().values() for f in functions]
    functions = {f for f in listed if lookup(f).name not in ("autocast", "__dict__", "__torch_function__")}
    assert len(functions) > 1000
    for function in functions:
        composite = Composite([(function, Gradient())])
        assert eval(repr(composite), dict(NAMESPACE)) == composite


def test_an_unknown_operation_may_count_as_a_constant_and_have_no_other_rule():
    class Scaled(nn.Module):
        def forward(self, x):
            return x * torch.cholesky_inverse(x.detach() + 0 * x + 3 * torch.eye(4, dtype=x.dtype))

    x = torch.randn(4, 4, dtype=torch.float64)
    seed = torch.linspace(1, -0.5, 16, dtype=x.dtype).reshape(4, 4)
    constant = Composite([(torch.cholesky_inverse, rules.Constant())])
    equal(relevance(constant, Scaled(), x), Scaled()(x) * seed)
    message = r"Identity\(\) cannot serve operation cholesky_inverse.*torch\.cholesky_inverse.*Gradient, Constant"
    with pytest.raises(TypeError, match=message):
        relevance(Composite([(torch.cholesky_inverse, Identity())]), Scaled(), x)
