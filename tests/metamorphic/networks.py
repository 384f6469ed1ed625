"""Functions in several spellings, the networks that they are put into, and the composites that they are compared under.

A :class:`Function` is a table of spellings; the first is the canonical one. Each is a torch function of ``p``, which
holds the parameters and modules, and of the inputs. All spellings are put into the same network, at each of its
*places*, and lrp must return the same for all of them. What is claimed to be equal is what the mathematics of
``docs/any-graph.md`` says, and no more: where a composite has a rule that tells two spellings apart (one for
convolutions but not for dense layers, one for sums of two activations), the function is restricted to the others.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import Composite, composites, lrp
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, Gamma

#: The composites by name, each made for a model.
COMPOSITES = {
    "AttnLRP": lambda model: composites.AttnLRP(epsilon=0.0),
    "AttnLRP(1e-3)": lambda model: composites.AttnLRP(epsilon=1e-3),
    "CPLRP": lambda model: composites.CPLRP(epsilon=0.0),
    "Epsilon": lambda model: Composite([(AnyLinear, Epsilon(0.25))]),
    "Gamma": lambda model: Composite([(AnyLinear, Gamma(0.25))]),
    "ExcitationBackprop": lambda model: composites.ExcitationBackprop(),
    "EpsilonPlus": lambda model: composites.EpsilonPlus(),
    "EpsilonPlusFlat": lambda model: composites.EpsilonPlusFlat(),
    "EpsilonAlpha2Beta1": lambda model: composites.EpsilonAlpha2Beta1(),
    "EpsilonGammaBox": lambda model: composites.EpsilonGammaBox(-3.0, 3.0),
    "GammaDecay": lambda model: composites.GammaDecay(model, -3.0, 3.0),
}
ALL = tuple(COMPOSITES)
#: Those that have the plain share at every linear map and sum, so that a map may be taken apart into a sum of maps.
LRP_0 = ("AttnLRP", "CPLRP")
#: Those with one rule for dense layers and convolutions, so that one may be written as the other.
ALIKE = ("AttnLRP", "AttnLRP(1e-3)", "CPLRP", "Epsilon", "Gamma", "ExcitationBackprop")
#: Those with no rule for the sum of two activations, as which a spelling may or may not write itself.
NO_SUMS = tuple(name for name in ALL if name != "GammaDecay")
#: Those that give softmax a rule, which holds for one that is written out as well.
SOFTMAX = ("AttnLRP", "AttnLRP(1e-3)", "CPLRP")

PLACES = ("linear", "relu", "factor")
#: Nothing before the function: it sees the explained input.
FIRST = (*PLACES, "first")


@dataclass(frozen=True, eq=False)
class Function:
    """A function of inputs whose shapes, for one row, are given, and its spellings, the canonical one first."""

    name: str
    shapes: tuple[tuple[int, ...], ...]
    spellings: Mapping[str, Callable[..., torch.Tensor]]
    parameters: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    modules: Mapping[str, Callable[[], nn.Module]] = field(default_factory=dict)
    composites: tuple[str, ...] = ALL
    places: tuple[str, ...] = PLACES
    rows: int = 2

    @property
    def canonical(self):
        """The name of the first spelling."""
        return next(iter(self.spellings))


class Parts(nn.Module):
    """The parameters and modules of a function, by name; those of two networks are equal."""

    def __init__(self, function):
        super().__init__()
        for name, shape in function.parameters.items():
            setattr(self, name, nn.Parameter(torch.randn(shape)))
        for name, make in function.modules.items():
            setattr(self, name, make())
        for norm in self.modules():
            if isinstance(norm, nn.modules.batchnorm._BatchNorm):
                norm.running_mean.normal_()
                norm.running_var.uniform_(0.5, 2.0)
                norm.weight.data.uniform_(-1.5, 1.5)
                norm.bias.data.normal_()


class Stem(nn.Module):
    """What makes an operand of a given shape from the input: a convolution where both are images, else a dense map."""

    def __init__(self, of, shape):
        super().__init__()
        self.shape, self.image = shape, len(of) == 3
        if self.image and shape[1:] == of[1:]:
            self.map = nn.Conv2d(of[0], shape[0], 3, padding=1)
        else:
            self.map = nn.Linear(of[0] if self.image else math.prod(of), math.prod(shape))
        # Of both signs, but more of them positive, so that a ReLU leaves enough of a product of several.
        self.map.bias.data += 0.5

    def forward(self, x):
        if isinstance(self.map, nn.Linear):
            x = x.mean((2, 3)) if self.image else x.flatten(1)
        return self.map(x).view(len(x), *self.shape)


class Network(nn.Module):
    """Stems, the function at a place, and a head."""

    def __init__(self, function, spelling, place, wrap=lambda f: f):
        super().__init__()
        torch.manual_seed(1)
        self.place, self.function = place, wrap(function.spellings[spelling])
        self.of = function.shapes[0] if place == "first" else self.input_shape(function)
        self.p = Parts(function)
        self.stems = nn.ModuleList() if place == "first" else nn.ModuleList(Stem(self.of, s) for s in function.shapes)
        self.double().eval()
        with torch.no_grad():
            made = function.spellings[function.canonical](
                self.p, *(torch.randn(function.rows, *s, dtype=torch.float64) for s in function.shapes)
            )
        shape = tuple(made.shape[1:])
        self.other = Stem(self.of, shape) if place == "factor" else None
        self.head = nn.Linear(math.prod(shape), 3)
        self.double()

    @staticmethod
    def input_shape(function):
        """An image for functions of images, five numbers for the others."""
        first = function.shapes[0]
        return (3, *first[1:]) if len(first) == 3 else (5,)

    def forward(self, x):
        operands = [x] if self.place == "first" else [stem(x) for stem in self.stems]
        if self.place == "relu":
            operands = [F.relu(a) for a in operands]
        z = self.function(self.p, *operands)
        if self.place == "relu":
            z = F.relu(z)
        elif self.place == "factor":
            z = z * self.other(x)
        return self.head(z.flatten(1))


def example(model, rows=2):
    """An input of a network, inside of the box of the composites for images."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, *model.of, dtype=torch.float64, generator=generator).clamp(-2.9, 2.9)
    if model.place == "first":
        x[..., :1] = 0.0  # Rules for first layers give relevance to exact zeros, too.
    return x


def difference(actual, expected):
    """The largest difference over the largest value; both must be finite, and the reference not all zero."""
    largest = expected.abs().max()
    assert largest > 0, "the reference is zero everywhere: this case tests nothing"
    assert torch.isfinite(expected).all(), "the reference is not finite"
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max() / largest) if torch.isfinite(actual).all() else math.inf


#: How far spellings may be apart, over the largest value.
TOLERANCE = 1e-9


@cache
def canonical(function, place, composite):
    """The canonical relevance of a function at a place, the value, and the input."""
    model = Network(function, function.canonical, place)
    x = example(model, function.rows)
    with torch.no_grad():
        value = model(x)
    return lrp(model, x, None, COMPOSITES[composite](model)), value, x


def compare(function, spelling, composite, *, wrap=lambda f: f, prepare=lambda x: x, around=lambda model: model):
    """Return what differs, one line a place, between a spelling and the canonical one under a composite.

    wrap: what is done to the spelling; prepare: what is done to its input; around: what is done to the network. None of
    them changes a value. The largest output of each row is explained.
    """
    found = []
    for place in function.places:
        expected, value, x = canonical(function, place, composite)
        model = around(Network(function, spelling, place, wrap))
        with torch.no_grad():
            apart = difference(model(prepare(x)), value)
        assert apart < 1e-12, f"{spelling} is another function than {function.canonical}: {apart:.1e}"
        try:
            actual = lrp(model, prepare(x), None, COMPOSITES[composite](model))
        except Exception as error:  # noqa: BLE001 whatever it raises, it is a failure
            found.append(f"{place}: {type(error).__name__}: {str(error)[:200]}")
            continue
        apart = difference(actual, expected)
        if not apart <= TOLERANCE:
            found.append(f"{place}: off by {apart:.2g}")
    return found
