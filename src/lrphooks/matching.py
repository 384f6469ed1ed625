"""Matchers: how an entry of a composite says which layers and operations it is for.

A matcher is one of

- a layer type, ``torch.nn.Conv2d``, which stands for its subclasses too;
- a :class:`Group` of this module: ``Linear``, ``Convolution``, ``AnyLinear`` (both), ``ReLU``, ``Activation``,
  ``AvgPool``, ``MaxPool``, ``BatchNorm``, ``Normalization``, ``Dropout``, ``Sum``, ``Product``, ``Gate``, ``Softmax``:
  layers of torch and the functions that do the same;
- a name pattern, ``"features.*"``, as :mod:`fnmatch` reads it: ``*`` matches dots too;
- a torch function, ``torch.matmul``, which stands for all its aliases;
- an autograd function of the model's own;
- a predicate ``(name, module) -> bool``;
- a tuple of these, :class:`Layers` for a range of them by number, :class:`Within` for what lies inside of certain
  modules, or :class:`First` of any of these.

A module has all the names that it is registered under.

Entries count in their order, with one exception: the rule of a module that runs an operation itself comes before
entries that tell of the operation alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn
from torch.autograd import Function
from torch.nn.modules import activation, batchnorm, conv, dropout, instancenorm, normalization, pooling
from torch.nn.modules.linear import Linear as _Linear

from lrphooks.operations import expression, identify, is_operation, names
from lrphooks.torch_private import parts_of


@dataclass(frozen=True)
class Group:
    """A named set of layer types and of the torch operations that do the same.

    types: layer types; subclasses count.
    operations: plain names of operations, which stand for all their aliases.
    """

    name: str
    types: tuple[type[nn.Module], ...]
    operations: tuple[str, ...] = ()

    def __repr__(self) -> str:
        if globals().get(self.name) == self:
            return self.name
        return f"Group({self.name!r}, {describe(self.types)}, {self.operations!r})"


@dataclass(frozen=True)
class First:
    """The first layer that is *executed* among those that a matcher describes, anew in each forward pass.

    For rules of linear layers: ``(First(Convolution), ZBox(low, high))``. Each layer that sees the input before another
    linear layer did is a first one, in all of its calls: the stems of several branches, one encoder of several inputs.
    A layer that does not run first gets the next entry that matches it.
    """

    matcher: Matcher

    def __repr__(self) -> str:
        return f"First({describe(self.matcher)})"


@dataclass(frozen=True)
class Within:
    """What a matcher describes, inside of certain modules only (and these themselves).

    A layer is inside of the modules that it is registered in, an operation inside of those that are running:
    ``(Within("encoder.*", torch.mul), TakesAll(0))``.

    where: a layer type, a group, a name pattern, a predicate, or a tuple of these.
    matcher: a layer type, a group, a torch function, or a tuple of these.
    """

    where: Matcher
    matcher: Matcher

    def __repr__(self) -> str:
        return f"Within({describe(self.where)}, {describe(self.matcher)})"


@dataclass(frozen=True)
class Layers:
    """The modules from number ``start`` up to, not including, ``stop`` among those that a matcher describes.

    They are counted from 0 in the order in which the model registers them, a module that is registered twice once;
    negative numbers count from the end, and None is all the way, as in slices: ``Layers(AnyLinear, -3)`` are the last
    three. Functions that a model calls are no modules and are not counted. A range without a module is an error.

    matcher: a layer type, a group, a name pattern, a predicate, or a tuple of these.
    """

    matcher: Matcher
    start: int | None = None
    stop: int | None = None

    def __repr__(self) -> str:
        numbers = [self.start] if self.stop is None else [self.start, self.stop]
        return f"Layers({', '.join([describe(self.matcher), *map(repr, numbers)])})"


@dataclass(frozen=True)
class _Located:
    """A range of layers, as it lies in one model."""

    layers: Layers
    modules: frozenset[nn.Module]

    def __repr__(self) -> str:
        return repr(self.layers)


Matcher: TypeAlias = (
    "type[nn.Module] | tuple[Any, ...] | Group | str | Callable[[str, nn.Module], bool] | Callable[..., Any] | First | "
    "Within | Layers"
)

_CONVOLUTIONS = (
    conv.Conv1d,
    conv.Conv2d,
    conv.Conv3d,
    conv.ConvTranspose1d,
    conv.ConvTranspose2d,
    conv.ConvTranspose3d,
)
_CONVOLUTION_OPERATIONS = tuple(name for name in names.LINEAR.split() if name != "linear")

Linear = Group("Linear", (_Linear,), ("linear", *names.WEIGHTED.split()))
Convolution = Group("Convolution", _CONVOLUTIONS, _CONVOLUTION_OPERATIONS)
AnyLinear = Group("AnyLinear", (_Linear, *_CONVOLUTIONS), (*Linear.operations, *_CONVOLUTION_OPERATIONS))
ReLU = Group("ReLU", (activation.ReLU,), ("relu",))
Activation = Group(
    "Activation",
    (
        activation.ReLU, activation.ReLU6, activation.RReLU, activation.LeakyReLU, activation.PReLU, activation.ELU,
        activation.SELU, activation.CELU, activation.GELU, activation.SiLU, activation.Mish, activation.Hardswish,
        activation.Hardtanh, activation.Tanh, activation.Tanhshrink, activation.Softshrink, activation.Hardshrink,
        activation.Softsign, activation.Sigmoid, activation.Hardsigmoid, activation.LogSigmoid, activation.Softplus,
        activation.Threshold, activation.GLU,
    ),
    (
        "relu", "relu6", "rrelu", "leaky_relu", "prelu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish",
        "hardtanh", "tanh", "tanhshrink", "softshrink", "hardshrink", "softsign", "sigmoid", "hardsigmoid",
        "logsigmoid", "softplus", "threshold", "glu",
    ),
)  # fmt: skip
AvgPool = Group(
    "AvgPool",
    (
        pooling.AvgPool1d, pooling.AvgPool2d, pooling.AvgPool3d, pooling.AdaptiveAvgPool1d, pooling.AdaptiveAvgPool2d,
        pooling.AdaptiveAvgPool3d,
    ),
    tuple(f"{adaptive}avg_pool{n}d" for adaptive in ("", "adaptive_") for n in (1, 2, 3)),
)  # fmt: skip
MaxPool = Group(
    "MaxPool",
    (
        pooling.MaxPool1d, pooling.MaxPool2d, pooling.MaxPool3d, pooling.AdaptiveMaxPool1d, pooling.AdaptiveMaxPool2d,
        pooling.AdaptiveMaxPool3d,
    ),
    tuple(f"{adaptive}max_pool{n}d" for adaptive in ("", "adaptive_") for n in (1, 2, 3)),
)  # fmt: skip
_BATCH_NORMS = (batchnorm.BatchNorm1d, batchnorm.BatchNorm2d, batchnorm.BatchNorm3d, batchnorm.SyncBatchNorm)
BatchNorm = Group("BatchNorm", _BATCH_NORMS, ("batch_norm",))
Normalization = Group(
    "Normalization",
    (
        *_BATCH_NORMS, instancenorm.InstanceNorm1d, instancenorm.InstanceNorm2d, instancenorm.InstanceNorm3d,
        normalization.LayerNorm, normalization.GroupNorm, normalization.LocalResponseNorm, normalization.RMSNorm,
    ),
    ("batch_norm", "instance_norm", "layer_norm", "group_norm", "rms_norm"),
)  # fmt: skip
Dropout = Group(
    "Dropout",
    (dropout.Dropout, dropout.Dropout1d, dropout.Dropout2d, dropout.Dropout3d),
    ("dropout", "dropout1d", "dropout2d", "dropout3d"),
)
Sum = Group("Sum", (), tuple(names.SUM.split()))
Product = Group("Product", (), tuple(names.PRODUCT.split() + names.ADDED_PRODUCT.split()))
Gate = Group("Gate", (activation.Sigmoid, activation.Hardsigmoid), ("sigmoid", "hardsigmoid", "expit"))
Softmax = Group("Softmax", (activation.Softmax,), ("softmax", "_softmax", "scaled_dot_product_attention"))


#: A module and those that it is in, each with a name; the outermost comes first.
Path: TypeAlias = Sequence[tuple[str, nn.Module]]


def paths_of(model: nn.Module) -> dict[nn.Module, list[Path]]:
    """Return all modules in the order of ``model.modules()``, each with a path for every name that it has."""
    paths: dict[nn.Module, list[Path]] = {}
    waiting: list[list[tuple[str, nn.Module]]] = [[("", model)]]
    while waiting:
        path = waiting.pop()
        name, module = path[-1]
        paths.setdefault(module, []).append(path)
        prefix = f"{name}." if name else ""
        waiting += [[*path, (prefix + key, part)] for key, part in reversed(parts_of(module))]
    return paths


def located(matcher: Any, modules: Mapping[nn.Module, list[Path]]) -> Any:
    """Return a matcher with its ranges of layers found in a model, whose modules are given as :func:`paths_of` does.

    Raises
    ------
    ValueError
        If there is no module in a range.
    """
    if isinstance(matcher, First):
        return First(located(matcher.matcher, modules))
    if isinstance(matcher, tuple):
        return tuple(located(part, modules) for part in matcher)
    if not isinstance(matcher, Layers):
        return matcher
    described = [m for m, paths in modules.items() if any(matches_module(matcher.matcher, path) for path in paths)]
    chosen = described[matcher.start : matcher.stop]
    if not chosen:
        count = f"{len(described)} such modules, 0 to {len(described) - 1}" if described else "no such module"
        raise ValueError(
            f"{matcher!r} is an empty range: the model has {count}. Numbers count them as they are registered, "
            "negative ones from the end, and the one at stop is not included."
        )
    return _Located(matcher, frozenset(chosen))


def matches_module(matcher: Any, path: Path) -> bool:
    """Whether a matcher, First set aside, describes the module at the end of a path."""
    if isinstance(matcher, First):
        return matches_module(matcher.matcher, path)
    if isinstance(matcher, tuple):
        return any(matches_module(part, path) for part in matcher)
    if isinstance(matcher, Within):
        return matches_module(matcher.matcher, path) and _inside(matcher.where, path)
    name, module = path[-1]
    if isinstance(matcher, _Located):
        return module in matcher.modules
    if isinstance(matcher, str):
        return bool(name) and fnmatchcase(name, matcher)
    if isinstance(matcher, Group | type):
        return isinstance(module, matcher.types if isinstance(matcher, Group) else matcher)
    return not is_operation(matcher) and bool(matcher(name, module))


def matches_operation(matcher: Any, name: str, running: Path, *, placed: bool = False) -> bool:
    """Whether a matcher, First set aside, describes an operation, by its plain name, inside of running modules.

    placed: only where it tells of the modules too.
    """
    if isinstance(matcher, First):
        return matches_operation(matcher.matcher, name, running, placed=placed)
    if isinstance(matcher, tuple):
        return any(matches_operation(part, name, running, placed=placed) for part in matcher)
    if isinstance(matcher, Within):
        return matches_operation(matcher.matcher, name, running) and _inside(matcher.where, running)
    if isinstance(matcher, Group):
        return not placed and name in matcher.operations
    return not placed and is_operation(matcher) and identify(matcher) == name


def _inside(where: Any, path: Path) -> bool:
    return any(matches_module(where, [place]) for place in path)


def is_placed(matcher: Any) -> bool:
    """Whether a matcher tells where operations run."""
    if isinstance(matcher, First):
        return is_placed(matcher.matcher)
    return isinstance(matcher, Within) or (isinstance(matcher, tuple) and any(map(is_placed, matcher)))


def matches_function(matcher: Any, function: type[Function]) -> bool:
    """Whether a matcher names an autograd function of the model's own."""
    if isinstance(matcher, tuple):
        return any(matches_function(part, function) for part in matcher)
    return isinstance(matcher, type) and issubclass(function, matcher)


def operation_names(matcher: Any) -> list[str]:
    """Return the plain names of the operations that a matcher describes."""
    if isinstance(matcher, First | Within):
        return operation_names(matcher.matcher)
    if isinstance(matcher, tuple):
        return [name for part in matcher for name in operation_names(part)]
    if isinstance(matcher, Group):
        return list(matcher.operations)
    return [identify(matcher)] if is_operation(matcher) else []


def patterns(matcher: Any) -> list[str]:
    """Return the name patterns within a matcher."""
    if isinstance(matcher, First | Layers):
        return patterns(matcher.matcher)
    if isinstance(matcher, Within):
        return patterns(matcher.where)
    if isinstance(matcher, tuple):
        return [pattern for part in matcher for pattern in patterns(part)]
    return [matcher] if isinstance(matcher, str) else []


def is_wildcard(matcher: Any) -> bool:
    """Whether a matcher takes its modules by name patterns that may stand for several."""
    if isinstance(matcher, First | Layers):
        return is_wildcard(matcher.matcher)
    if isinstance(matcher, tuple):
        return any(is_wildcard(part) for part in matcher)
    return isinstance(matcher, str) and any(character in matcher for character in "*?[")


def describe(matcher: Any) -> str:
    """Return a matcher as the code that makes it, with torch and the types and predicates of one's own in view."""
    if isinstance(matcher, tuple):
        return "(" + ", ".join(describe(part) for part in matcher) + ("," if len(matcher) == 1 else "") + ")"
    if isinstance(matcher, type):
        if matcher == getattr(nn, matcher.__name__, None):
            return f"torch.nn.{matcher.__name__}"
        own = matcher.__module__.partition(".")[0] != "torch"
        return matcher.__qualname__ if own else f"{matcher.__module__}.{matcher.__qualname__}"
    if isinstance(matcher, Group | First | Within | Layers | str):
        return repr(matcher)
    if is_operation(matcher):
        return expression(identify(matcher))
    return getattr(matcher, "__qualname__", repr(matcher))
