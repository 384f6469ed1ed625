"""Inputs and outputs in every kind of container: relevance as for the bare tensors, containers of the same kind."""

import collections
import dataclasses
import types
from typing import NamedTuple

import pytest
import torch
from torch import nn

from lrphooks import Composite
from lrphooks.engine import containers
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon
from small_networks import equal

EXACT = Composite([(AnyLinear, Epsilon(0))])


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@dataclasses.dataclass
class Data:
    first: torch.Tensor
    second: torch.Tensor
    name: str = "data"


@dataclasses.dataclass(frozen=True)
class Frozen:
    first: torch.Tensor
    second: torch.Tensor


@dataclasses.dataclass
class ModelOutput(collections.OrderedDict):
    """As in transformers: an ordered dict whose items are its fields, without those that are None."""

    first: torch.Tensor = None
    second: torch.Tensor = None
    missing: torch.Tensor = None

    def __post_init__(self):
        for field in dataclasses.fields(self):
            if getattr(self, field.name) is not None:
                self[field.name] = getattr(self, field.name)

    def __getitem__(self, key):
        return dict(self.items())[key] if isinstance(key, str) else tuple(self.values())[key]

    def __setattr__(self, name, value):
        if name in self.keys() and value is not None:
            super().__setitem__(name, value)
        super().__setattr__(name, value)

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


class Batch(collections.UserDict):
    """As the encodings of tokenizers: a mapping that is no dict."""


class Attributes(dict):
    __getattr__ = dict.__getitem__


KINDS = {
    "tuple": lambda a, b: (a, b),
    "list": lambda a, b: [a, b],
    "namedtuple": Pair,
    "torch's namedtuple": lambda a, b: torch.return_types.max((a, b)),
    "dict": lambda a, b: {"first": a, "second": b},
    "OrderedDict": lambda a, b: collections.OrderedDict(first=a, second=b),
    "defaultdict": lambda a, b: collections.defaultdict(list, first=a, second=b),
    "UserDict": lambda a, b: Batch(first=a, second=b),
    "dict subclass": lambda a, b: Attributes(first=a, second=b),
    "dataclass": Data,
    "frozen dataclass": Frozen,
    "model output": ModelOutput,
    "nested": lambda a, b: {"inner": [Pair(a, None), ("text", {"deep": Data(b, 3)})], "number": 2},
    "twice": lambda a, b: (a, [b, a]),
}


def pick(value):
    """The two tensors within a container, in order, however deep."""
    found = {}
    for tensor in containers.tensors(value):
        found.setdefault(id(tensor), tensor)
    return tuple(found.values())[:2]


class Net(nn.Module):
    """A linear map of both tensors and their product; the container is made by ``wrap``."""

    def __init__(self, wrap=None):
        super().__init__()
        self.left, self.right = nn.Linear(3, 4, bias=False), nn.Linear(3, 4, bias=False)
        self.wrap = wrap
        self.double()

    def forward(self, value):
        a, b = pick(value)
        y, z = self.left(a).tanh(), self.right(b)
        return y + z if self.wrap is None else self.wrap(y, z)


@pytest.fixture
def bare():
    """A net, two inputs and their relevance, from the inputs as a plain tuple."""
    torch.manual_seed(0)
    net = Net()
    a, b = (torch.randn(2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    h = a @ net.left.weight.T
    gate = (h.tanh() / h).detach()
    expected = torch.autograd.grad((h * gate + b @ net.right.weight.T).sum(), (a, b))
    return net, a, b, tuple((x * g).detach() for x, g in zip((a, b), expected, strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keyword", [False, True])
def test_inputs(kind, keyword, bare):
    net, a, b, expected = bare
    value = KINDS[kind](a, b)
    before = KINDS[kind](a, b)
    with EXACT.context(net):
        output = net(value=value) if keyword else net(value)
        output.sum().backward()
    equal(a.grad, expected[0])
    equal(b.grad, expected[1])
    # What the user gave is what it was.
    assert type(value) is type(before)
    assert [id(t) for t in containers.tensors(value)] == [id(t) for t in containers.tensors(before)]
    assert a.is_leaf
    assert b.is_leaf


@pytest.mark.parametrize("kind", KINDS)
def test_outputs(kind, bare):
    net, a, b, expected = bare
    net.wrap = KINDS[kind]
    plain = net((a, b))
    with EXACT.context(net):
        output = net((a, b))
        sum(pick(output)).sum().backward()
    assert type(output) is type(plain)
    for found, value in zip(containers.tensors(output), containers.tensors(plain), strict=True):
        assert torch.equal(found, value)
    equal(a.grad, expected[0])
    equal(b.grad, expected[1])


@pytest.mark.parametrize("kind", ["dataclass", "model output", "UserDict", "nested"])
def test_what_is_no_tensor_stays(kind, bare):
    net, a, b, _ = bare
    net.wrap = KINDS[kind]
    with EXACT.context(net):
        output = net((a, b))
    if kind == "dataclass":
        assert output.name == "data"
    if kind == "model output":
        assert output.missing is None
        assert list(output) == ["first", "second"]
        assert output.first is output["first"] is output[0]
        assert output.second is output["second"]
    if kind == "UserDict":
        assert list(output) == ["first", "second"]
    if kind == "nested":
        assert output["number"] == 2
        assert output["inner"][0].second is None
        assert output["inner"][1][0] == "text"
        assert output["inner"][1][1]["deep"].second == 3


@pytest.mark.parametrize("kind", KINDS)
def test_the_model_keeps_what_it_returned(kind, bare):
    """A container that the model holds on to, such as a cache, is not written to."""
    net, a, b, _ = bare
    kept = []

    def wrap(y, z):
        kept.append(KINDS[kind](y, z))
        return kept[-1]

    net.wrap = wrap
    with EXACT.context(net):
        output = net((a, b))
    assert output is not kept[0]
    inner, outer = pick(kept[0]), pick(output)
    assert all(i is not o for i, o in zip(inner, outer, strict=True)), "the model's own container was changed"


def test_containers_without_anything_to_explain_keep_their_identity(bare):
    net, a, b, _ = bare
    extra = {"mask": torch.ones(2), "names": ["x"]}
    seen = []

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net

        def forward(self, value, extra):
            seen.append(extra)
            return self.net(value), extra

    with EXACT.context(outer := Outer()):
        _, returned = outer((a, b), extra)
    assert seen[0] is extra
    assert returned is extra


def test_a_container_that_cannot_be_rebuilt_is_named(bare):
    """Not a hint of it in the result would be silent."""
    net, a, b, _ = bare
    net.wrap = lambda y, z: {y, z}
    with EXACT.context(net), pytest.raises(TypeError, match="output is a set"):
        net((a, b))


def test_in_an_object_of_ones_own_no_tensor_is_looked_for(bare):
    net, a, b, _ = bare
    net.forward = lambda value: net.left(value.first).tanh() + net.right(value.second)
    with EXACT.context(net), pytest.raises(RuntimeError, match="No input of the model requires a gradient"):
        net(types.SimpleNamespace(first=a, second=b))


def test_a_mapping_that_cannot_be_written_to_is_named(bare):
    net, a, b, _ = bare
    net.wrap = lambda y, z: types.MappingProxyType({"first": y, "second": z})
    with EXACT.context(net), pytest.raises(TypeError, match="output is a mappingproxy"):
        net((a, b))


def test_map_tensors_applies_the_function_once_to_each_place():
    a = torch.ones(2)
    doubled = containers.map_tensors([a, (a, {"x": a})], lambda t: t * 2, "input")
    assert [float(t.sum()) for t in containers.tensors(doubled)] == [4.0, 4.0, 4.0]
    assert float(a.sum()) == 2.0
