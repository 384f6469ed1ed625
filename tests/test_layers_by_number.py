"""``Layers``: rules for ranges of layers by their number, as LRP is often told layer by layer."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchvision_shim  # noqa: F401
from lrphooks import Composite, LRPError, matching
from lrphooks.matching import AnyLinear, Convolution, First, Layers, Linear, Within
from lrphooks.rules import Epsilon, Flat, Gamma, ZBox, ZPlus
from small_networks import equal, network, relevance

CONFIGURATION = [4, 4, "M", 6, 6, "M", 8, 8, 8, "M", 8, 8, 8, "M", 8, 8, 8, "M"]
#: The names of the 16 layers of torchvision's VGG-16.
NAMES = [f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
NAMES += [f"classifier.{i}" for i in (0, 3, 6)]


def vgg16():
    """VGG-16 of few channels: torchvision's layers under torchvision's names."""
    from torchvision.models import vgg

    torch.manual_seed(0)
    model = vgg.VGG.__new__(vgg.VGG)
    nn.Module.__init__(model)
    model.features, model.avgpool = vgg.make_layers(CONFIGURATION), nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(
        nn.Linear(32, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 5)
    )
    return model.double().eval(), torch.randn(2, 3, 32, 32, dtype=torch.float64)


#: The overview of Montavon et al. (2019): z^B for pixels, gamma below, epsilon in the middle, LRP-0 on top.
OVERVIEW = Composite(
    [
        (Layers(AnyLinear, 0, 1), ZBox(-3.0, 3.0, 1e-9)),
        (Layers(AnyLinear, 1, 7), Gamma(0.25, 1e-9)),
        (Layers(AnyLinear, 7, 13), Epsilon(0.25)),
        (Layers(AnyLinear, -3), Epsilon(0)),
    ]
)
RULES = [ZBox(-3.0, 3.0, 1e-9), *[Gamma(0.25, 1e-9)] * 6, *[Epsilon(0.25)] * 6, *[Epsilon(0)] * 3]


def test_the_rules_of_vgg16_by_number():
    model, x = vgg16()
    assignment = OVERVIEW.assign(model)
    assert [assignment[name].rule for name in NAMES] == RULES
    equal(relevance(OVERVIEW, model, x), relevance(Composite(list(zip(NAMES, RULES, strict=True))), model, x))


def test_zennit_layer_by_layer():
    from zennit import composites, rules

    model, x = vgg16()
    bound = torch.full((1, 3, 32, 32), 3.0, dtype=torch.float64)
    theirs = [
        rules.ZBox(-bound, bound, stabilizer=1e-9),
        *(rules.Gamma(0.25, 1e-9) for _ in range(6)),
        *(rules.Epsilon(0.25) for _ in range(6)),
        *(rules.Epsilon(1e-12) for _ in range(3)),
    ]
    leaf = x.clone().requires_grad_()
    composite = composites.NameMapComposite([([name], rule) for name, rule in zip(NAMES, theirs, strict=True)])
    with composite.context(model) as modified:
        output = modified(leaf)
        seed = torch.zeros_like(output)
        seed[:, 3] = output.detach()[:, 3]
        (expected,) = torch.autograd.grad(output, leaf, seed)
    ours = torch.zeros_like(seed)
    ours[:, 3] = 1
    equal(relevance(OVERVIEW, model, x, ours), expected, tol=1e-6)


class Model(nn.Module):
    """Five linear layers, one of them twice, registered in another order than they run."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Linear(6, 3)
        self.block = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.again = self.block[0]
        self.conv = nn.Conv1d(1, 1, 3, padding=1)
        self.scale = nn.Parameter(torch.randn(6, 6))
        self.double()

    def forward(self, x):
        x = F.linear(self.conv(x.unsqueeze(1)).squeeze(1), self.scale).relu()
        return self.head(self.again(self.block(x).relu()).relu())


X = torch.linspace(-1, 1.5, 18, dtype=torch.float64).reshape(3, 6)
COUNTED = ["head", "block.0", "block.2", "conv"]


@pytest.mark.parametrize(
    ("layers", "names"),
    [
        (Layers(AnyLinear), COUNTED),
        (Layers(AnyLinear, 1), COUNTED[1:]),
        (Layers(AnyLinear, 1, 3), COUNTED[1:3]),
        (Layers(AnyLinear, None, 2), COUNTED[:2]),
        (Layers(AnyLinear, -2), COUNTED[-2:]),
        (Layers(AnyLinear, -3, -1), COUNTED[-3:-1]),
        (Layers(AnyLinear, 0, 99), COUNTED),
        (Layers(Linear, -1), ["block.2"]),
        (Layers(nn.Conv1d, 0), ["conv"]),
        (Layers((nn.Conv1d, "block.?"), 0, 1), ["block.0"]),
        (Layers("block.*", -1), ["block.2"]),
        (Layers(lambda name, module: name.startswith("b") and name[-1] in "02", 1), ["block.2"]),
        ((Layers(AnyLinear, 0, 1), Layers(AnyLinear, 3, 4)), ["head", "conv"]),
    ],
    ids=str,
)
def test_ranges(layers, names):
    model = Model()
    composite = Composite([(layers, ZPlus()), (AnyLinear, Epsilon(0.1))])
    by_name = Composite([*((name, ZPlus()) for name in names), (AnyLinear, Epsilon(0.1))])
    assert [row.rule for row in composite.assign(model)] == [row.rule for row in by_name.assign(model)]
    equal(relevance(composite, model, X), relevance(by_name, model, X))


def test_the_first_executed_of_a_range():
    """Of block.2 and conv, conv runs first, though it is registered last."""
    model = Model()
    composite = Composite([(First(Layers(AnyLinear, 2, 4)), ZPlus()), (AnyLinear, Epsilon(0.1))])
    assert (
        str(composite.assign(model)["block.2"])
        == "ZPlus(stabilizer=1e-06) if executed first, else Epsilon(epsilon=0.1)"
    )
    by_name = Composite([("conv", ZPlus()), (AnyLinear, Epsilon(0.1))])
    equal(relevance(composite, model, X), relevance(by_name, model, X))


def test_functions_are_not_counted():
    """The functional layer has the rule of the group, whatever the numbers."""
    model = Model()
    composite = Composite([(Layers(AnyLinear), ZPlus()), (F.linear, Flat())])
    by_name = Composite([*((name, ZPlus()) for name in COUNTED), (F.linear, Flat())])
    equal(relevance(composite, model, X), relevance(by_name, model, X))


def test_the_first_entry_wins_and_the_table_shows_it():
    model, _ = network("vgg")
    composite = Composite(
        [(Layers(Convolution, 0, 2), ZPlus()), (Layers(Convolution, 1), Gamma()), (Linear, Epsilon())]
    )
    rules = [row.rule for row in composite.assign(model) if row.type == "Conv2d"]
    assert rules == [ZPlus(), ZPlus(), Gamma()]
    assert "features.2    Conv2d             ZPlus(stabilizer=1e-06)" in str(composite.assign(model))


@pytest.mark.parametrize(
    ("layers", "code"),
    [
        (Layers(AnyLinear), "Layers(AnyLinear, None)"),
        (Layers(AnyLinear, -3), "Layers(AnyLinear, -3)"),
        (Layers(nn.Conv2d, 0, 10), "Layers(torch.nn.Conv2d, 0, 10)"),
        (Layers(("a.*", nn.Linear), None, 4), "Layers(('a.*', torch.nn.Linear), None, 4)"),
    ],
    ids=str,
)
def test_they_are_values(layers, code):
    assert repr(layers) == code
    assert eval(code, {**vars(matching), "torch": torch}) == layers
    composite = Composite([(layers, ZPlus())])
    assert repr(composite) == f"Composite([({code}, ZPlus(stabilizer=1e-06))])"
    assert pickle.loads(pickle.dumps(composite)) == composite
    assert hash(layers) == hash(Layers(layers.matcher, layers.start, layers.stop))
    assert layers != Layers(layers.matcher, 7, 9)


@pytest.mark.parametrize("layers", [Layers(AnyLinear, 4), Layers(AnyLinear, 2, 2), Layers(AnyLinear, -1, 1)], ids=str)
def test_an_empty_range_is_an_error(layers):
    composite = Composite([(layers, ZPlus()), (AnyLinear, Epsilon())])
    message = r"Layers\(AnyLinear, .*\) is an empty range: the model has 4 such modules, 0 to 3\. Numbers count them as"
    with pytest.raises(LRPError, match=message):
        composite.assign(Model())
    with pytest.raises(LRPError, match=message), composite.context(Model()):
        pass


def test_a_range_of_what_is_not_there():
    with pytest.raises(LRPError, match=r"Layers\(torch.nn.Conv3d, 0\) is an empty range: the model has no such module"):
        Composite([(Layers(nn.Conv3d, 0), ZPlus())]).assign(Model())
    with pytest.raises(LRPError, match=r"name pattern 'blok' of entry 0 matches no module"):
        Composite([(Layers("blok", 0), ZPlus())]).assign(Model())


def test_a_rule_that_a_layer_cannot_have():
    with pytest.raises(
        TypeError, match=r"cannot serve module 'block.1' \(ReLU\).*\(Layers\(torch.nn.ReLU, 0\), \.\.\.\)"
    ):
        Composite([(Layers(nn.ReLU, 0), ZPlus())]).assign(Model())


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (Layers(F.linear, 0), "matcher must tell of modules, by type, group, name pattern or predicate"),
        (Layers(matching.Product, 0), "matcher must tell of modules, .* got Product"),
        (Layers(First(AnyLinear), 0), r"matcher must tell of modules, .*Write First\(Layers"),
        (Layers(Layers(AnyLinear, 0), 0), "matcher must tell of modules"),
        (Layers(AnyLinear, 0.5), "start must be an integer or None, got 0.5"),
        (Layers(AnyLinear, 0, True), "stop must be an integer or None, got True"),
        (Within(Layers(AnyLinear, 0), torch.mul), "where must tell of modules"),
        (Within("block", Layers(AnyLinear, 0)), "matcher must be a torch function, a group or a layer type"),
    ],
    ids=str,
)
def test_wrong_arguments(layers, message):
    with pytest.raises(TypeError, match=f"Composite: entry 0: .*{message}"):
        Composite([(layers, ZPlus())])
