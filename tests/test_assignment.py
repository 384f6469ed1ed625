"""``composite.assign(model)``: which rule each module gets, as plain data that prints well; nothing is run."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import Composite, LRPError, composites
from lrphooks.matching import Activation, AnyLinear, BatchNorm, Convolution, First, Linear
from lrphooks.rules import (
    Constant,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    GuidedReLU,
    Identity,
    Normalize,
    Pass,
    Uniform,
    WSquare,
    ZBox,
    ZPlus,
)


class Still(nn.Module):
    """A model that must not be run."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.norm = nn.BatchNorm2d(2)
        self.relu = nn.ReLU()
        self.up = nn.ConvTranspose1d(2, 2, 2)
        self.block = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        self.bilinear = nn.Bilinear(2, 2, 2)
        self.same = nn.Identity()
        self.head = nn.Linear(2, 2)

    def forward(self, x):
        raise AssertionError("assign() runs nothing")


NAMES = ["", "conv", "norm", "relu", "up", "block", "block.0", "block.1", "block.2", "bilinear", "same", "head"]


def test_every_module_has_a_row_in_order():
    """With its name, its type, and its rule where that is certain."""
    assignment = composites.EpsilonPlus().assign(Still())
    assert [row.name for row in assignment] == NAMES
    assert len(assignment) == len(NAMES)
    assert {row.name: row.rule for row in assignment if row.rule is not None} == {
        "conv": ZPlus(),
        "up": ZPlus(),
        "block.0": Epsilon(),
        "block.2": Epsilon(),
        "head": Epsilon(),
    }
    assert assignment["conv"].type == "Conv2d"
    assert assignment["conv"] == assignment[1]
    assert assignment[1:3] == (assignment["conv"], assignment["norm"])
    with pytest.raises(KeyError, match="no module is named 'missing'"):
        assignment["missing"]


def test_it_prints_as_a_table():
    """One line a module, in aligned columns, with what happens to those that have no rule."""
    composite = Composite([(First(AnyLinear), Flat()), (Convolution, ZPlus()), ("head", Gamma(0.5))], unmatched="warn")
    lines = str(composite.assign(Still())).splitlines()
    assert lines[0].split() == ["module", "type", "rule"]
    assert set(lines[1]) == {"-"}
    assert len(lines) == len(NAMES) + 2
    start = lines[0].index("rule")
    cells = {line.split()[0]: line[start:] for line in lines[2:]}
    assert cells["conv"] == "Flat(stabilizer=1e-06) if executed first, else ZPlus(stabilizer=1e-06)"
    assert cells["head"] == "Flat(stabilizer=1e-06) if executed first, else Gamma(gamma=0.5, stabilizer=1e-06)"
    assert cells["block.0"] == "Flat(stabilizer=1e-06) if executed first, else no rule"
    assert cells["relu"] == "by operation"
    assert lines[2].split()[:2] == ["(model)", "Still"]
    assert all(line == line.rstrip() for line in lines)
    assert repr(composite.assign(Still())) == str(composite.assign(Still()))


def test_it_is_plain_data():
    """Which compares, is pickled and copied, and holds nothing of the model."""
    assignment = composites.EpsilonPlusFlat().assign(Still())
    assert assignment == composites.EpsilonPlusFlat().assign(Still())
    assert assignment != composites.EpsilonPlus().assign(Still())
    for made in (pickle.loads(pickle.dumps(assignment)), copy.deepcopy(assignment)):
        assert made == assignment
    assert b"Still" not in pickle.dumps(assignment).replace(b"\x8c\x05Still", b"")


def test_it_changes_nothing():
    model = Still()
    before = {name: sorted(vars(module)) for name, module in model.named_modules()}
    composites.EpsilonPlus().assign(model)
    assert {name: sorted(vars(module)) for name, module in model.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_first_entry_that_matches_wins():
    assignment = Composite(
        [("block.*", ZPlus()), (nn.Linear, Epsilon()), ("head", Gamma()), (First("up"), Flat()), (AnyLinear, WSquare())]
    ).assign(Still())
    assert assignment["block.0"].rule == ZPlus()
    assert assignment["head"].rule == Epsilon()
    assert assignment["up"].rule is None
    assert str(assignment["up"]).startswith("Flat(stabilizer=1e-06) if executed first, else WSquare(")
    assert assignment["conv"].rule == WSquare()


def test_what_it_says_is_what_happens():
    """A network explained by the rules that assign() lists, each under its module's own name."""
    model = nn.Sequential(nn.Conv1d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.GELU(), nn.Linear(5, 3))
    model.double()
    x = torch.randn(2, 1, 6, dtype=torch.float64)
    composite = Composite(
        [("3", Gamma(1.0)), (Activation, Identity()), (F.linear, Epsilon(0.1)), (Convolution, ZPlus())]
    )
    written = Composite([(row.name, row.rule) for row in composite.assign(model) if row.rule is not None])
    grads = []
    for c in (composite, written):
        leaf = x.clone().requires_grad_()
        with c.context(model):
            model(leaf)[:, 0].sum().backward()
        grads.append(leaf.grad)
    assert torch.equal(*grads)
    assert dict(written.entries) == {
        "0": ZPlus(), "1": Identity(), "3": Gamma(1.0), "4": Identity(), "5": Epsilon(0.1),
    }  # fmt: skip


LINEAR_ONLY = [Epsilon(), ZPlus(), Gamma(), Flat(), WSquare(), ZBox(-1, 1)]


@pytest.mark.parametrize("rule", LINEAR_ONLY, ids=repr)
@pytest.mark.parametrize(
    ("matcher", "name", "kind", "why"),
    [
        ("relu", "relu", "ReLU", r"no linear layer.*Linear, ConvNd or ConvTransposeNd"),
        (nn.ReLU, "relu", "ReLU", r"no linear layer.*Linear, ConvNd or ConvTransposeNd"),
        (Activation, "relu", "ReLU", r"no linear layer"),
        ((nn.Linear, nn.ReLU), "relu", "ReLU", r"no linear layer"),
        ("norm", "norm", "BatchNorm2d", r"no linear layer"),
        (BatchNorm, "norm", "BatchNorm2d", r"no linear layer"),
        ("block", "block", "Sequential", r"container.*\"name\.\*\""),
        ("bilinear", "bilinear", "Bilinear", r"linear in each of two inputs"),
        (First("relu"), "relu", "ReLU", r"no linear layer"),
    ],
)
def test_a_rule_for_linear_layers_elsewhere_is_refused(rule, matcher, name, kind, why):
    """The message names the rule, the module, its type, the reason and the entry."""
    composite = Composite([(Convolution, Epsilon(0.5)), (matcher, rule), (AnyLinear, Epsilon())])
    message = rf"{type(rule).__name__}\(.*cannot serve module '{name}' \({kind}\): .*{why}.*entry 1"
    for act in (lambda: composite.assign(Still()), lambda: composite.context(Still()).__enter__()):
        with pytest.raises((TypeError, LRPError), match=message):
            act()


@pytest.mark.parametrize(
    ("matcher", "rule", "message"),
    [
        (nn.Linear, Identity(), r"Identity\(\) cannot serve module 'block\.0' \(Linear\).*not for linear layers"),
        ("head", Uniform(), r"Uniform\(\) cannot serve module 'head' \(Linear\).*not for linear layers"),
        (Linear, Normalize(), r"Normalize\(\) cannot serve module 'block\.0' \(Linear\)"),
        ("conv", GuidedReLU(), r"GuidedReLU\(\) cannot serve module 'conv' \(Conv2d\).*not for linear layers"),
        ("norm", GuidedReLU(), r"GuidedReLU\(\) cannot serve module 'norm' \(BatchNorm2d\).*ReLU"),
        ("block", Identity(), r"Identity\(\) cannot serve module 'block' \(Sequential\).*container.*Pass\(\)"),
        (lambda name, module: True, Epsilon(), r"Epsilon\(.*cannot serve the model.*Still.*container"),
    ],
    ids=["type", "name", "group", "guided", "norm", "container", "model"],
)
def test_a_rule_for_operations_on_the_wrong_module_is_refused(matcher, rule, message):
    with pytest.raises((TypeError, LRPError), match=message):
        Composite([(matcher, rule), (AnyLinear, Epsilon())]).assign(Still())


def test_a_wildcard_takes_the_layers_that_its_rule_can_serve():
    """``"*"`` with a rule for linear layers leaves activations and containers to what comes after."""
    assignment = Composite([("*", Epsilon(0.5)), (nn.ReLU, GuidedReLU())]).assign(Still())
    assert assignment["block.2"].rule == assignment["conv"].rule == Epsilon(0.5)
    assert assignment["relu"].rule == assignment["block.1"].rule == GuidedReLU()
    assert assignment["block"].rule is None


def test_rules_that_any_module_may_have():
    assignment = Composite(
        [("block", Pass()), ("conv", Gradient()), ("relu", Constant()), ("same", Pass()), (AnyLinear, Epsilon())]
    ).assign(Still())
    assert [assignment[n].rule for n in ("block", "conv", "relu", "same", "block.0")] == [
        Pass(), Gradient(), Constant(), Pass(), Epsilon(),
    ]  # fmt: skip


def test_an_uninitialized_layer_is_assigned_by_its_type():
    """Which is known before its size is."""
    assignment = composites.EpsilonPlus().assign(nn.Sequential(nn.LazyConv2d(3, 3), nn.LazyLinear(3)))
    assert [row.rule for row in assignment] == [None, ZPlus(), Epsilon()]


def test_a_misspelt_name_is_an_error_that_lists_the_names():
    message = r"pattern 'blok\.\*' of entry 1 matches no module.*misspelt.*'conv', 'norm', 'relu', 'up'.*\.\.\."
    with pytest.raises(LRPError, match=message):
        Composite([(AnyLinear, Epsilon()), ("blok.*", ZPlus())]).assign(Still())


def test_a_predicate_that_raises_is_not_hidden():
    def predicate(name, module):
        raise ZeroDivisionError(name)

    with pytest.raises(ZeroDivisionError):
        Composite([(predicate, Epsilon())]).assign(Still())
