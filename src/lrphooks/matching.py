"""Matchers: how an entry of a composite says which layers and operations it is for.

A matcher is a layer type or a tuple of them, a named :class:`Group`, a name pattern (``"features.*"``), a torch
function (``torch.matmul``), a predicate ``(name, module) -> bool``, or :class:`First` of any of these.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn
from torch.nn.modules import activation, batchnorm, conv, dropout, instancenorm, normalization, pooling
from torch.nn.modules.linear import Linear as _Linear

from lrphooks.operations import identify, names


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
        return self.name


@dataclass(frozen=True)
class First:
    """The first layer that is *executed* among those that a matcher describes."""

    matcher: Matcher

    def __repr__(self) -> str:
        return f"First({describe(self.matcher)})"


Matcher: TypeAlias = (
    "type[nn.Module] | tuple[Any, ...] | Group | str | Callable[[str, nn.Module], bool] | Callable[..., Any] | First"
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

Linear = Group("Linear", (_Linear,), ("linear", "matmul", "mm", "addmm"))
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
Product = Group("Product", (), tuple(names.PRODUCT.split() + names.ADDED_PRODUCT.split()))
Gate = Group("Gate", (activation.Sigmoid, activation.Hardsigmoid), ("sigmoid", "hardsigmoid", "expit"))
Softmax = Group("Softmax", (activation.Softmax,), ("softmax", "_softmax", "scaled_dot_product_attention"))


def check(matcher: Any) -> None:
    """Raise a TypeError or ValueError that says what a matcher may be, unless this is one."""
    if isinstance(matcher, First):
        if isinstance(matcher.matcher, First):
            raise TypeError("First(First(...)) says the same twice; write First(...) once.")
        check(matcher.matcher)
    elif isinstance(matcher, tuple) and matcher:
        for part in matcher:
            check(part)
    elif isinstance(matcher, str):
        if not matcher:
            raise ValueError('A name pattern is empty; the model itself has no name. Use "*" for every module.')
    elif isinstance(matcher, type):
        if not issubclass(matcher, nn.Module):
            raise TypeError(f"A layer type must be a torch.nn.Module class, got {matcher!r}.")
    elif not isinstance(matcher, Group) and not callable(matcher):
        raise TypeError(
            f"A matcher is a layer type, a tuple of types, a group such as lrphooks.matching.Convolution, a name "
            f"pattern, a torch function, a predicate (name, module) -> bool or First(...); got {matcher!r} of type "
            f"{type(matcher).__name__}."
        )


def matches_module(matcher: Any, name: str, module: nn.Module) -> bool:
    """Whether a matcher, First set aside, describes a module."""
    if isinstance(matcher, First):
        return matches_module(matcher.matcher, name, module)
    if isinstance(matcher, tuple):
        return any(matches_module(part, name, module) for part in matcher)
    if isinstance(matcher, Group):
        return isinstance(module, matcher.types)
    if isinstance(matcher, str):
        return fnmatchcase(name, matcher)
    if isinstance(matcher, type):
        return isinstance(module, matcher)
    if is_operation(matcher):
        return False
    return bool(matcher(name, module))


def matches_operation(matcher: Any, name: str) -> bool:
    """Whether a matcher, First set aside, describes an operation by its plain name."""
    if isinstance(matcher, First):
        return matches_operation(matcher.matcher, name)
    if isinstance(matcher, tuple):
        return any(matches_operation(part, name) for part in matcher)
    if isinstance(matcher, Group):
        return name in matcher.operations
    return is_operation(matcher) and identify(matcher) == name


def operation_names(matcher: Any) -> list[str]:
    """Return the plain names of the operations that a matcher describes."""
    if isinstance(matcher, First):
        return operation_names(matcher.matcher)
    if isinstance(matcher, tuple):
        return [name for part in matcher for name in operation_names(part)]
    if isinstance(matcher, Group):
        return list(matcher.operations)
    return [identify(matcher)] if is_operation(matcher) else []


def is_operation(matcher: Any) -> bool:
    """Whether a matcher is a torch function rather than a predicate of the user's."""
    if isinstance(matcher, type | str | tuple | Group | First):
        return False
    module = getattr(matcher, "__module__", None) or ""
    return inspect.isbuiltin(matcher) or inspect.ismethoddescriptor(matcher) or module.partition(".")[0] == "torch"


def patterns(matcher: Any) -> list[str]:
    """Return the name patterns within a matcher."""
    if isinstance(matcher, First):
        return patterns(matcher.matcher)
    if isinstance(matcher, tuple):
        return [pattern for part in matcher for pattern in patterns(part)]
    return [matcher] if isinstance(matcher, str) else []


def is_wildcard(pattern: str) -> bool:
    """Whether a name pattern may stand for several modules."""
    return any(character in pattern for character in "*?[")


def describe(matcher: Any) -> str:
    """Return a matcher as the code that makes it."""
    if isinstance(matcher, tuple):
        return "(" + ", ".join(describe(part) for part in matcher) + ("," if len(matcher) == 1 else "") + ")"
    if isinstance(matcher, type):
        public = matcher.__module__.startswith("torch.nn.modules")
        return f"torch.nn.{matcher.__name__}" if public else matcher.__qualname__
    if isinstance(matcher, Group | First | str):
        return repr(matcher)
    if is_operation(matcher):
        return f"torch.{identify(matcher)}"
    return getattr(matcher, "__qualname__", repr(matcher))
