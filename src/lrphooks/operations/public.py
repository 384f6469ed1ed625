"""The public function of an operation: the one that stands for all its aliases in composites and messages."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType
from typing import Any, TypeGuard

import torch
from torch.overrides import get_overridable_functions

from lrphooks.operations import names
from lrphooks.operations.catalog import NAMESPACES, is_known, lookup
from lrphooks.torch_private import CustomOperation, HigherOrder, Overload, Overloads

_CALLABLES = (BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodWrapperType, WrapperDescriptorType)
_OVERLOADS = (Overload, Overloads, HigherOrder, CustomOperation)


@cache
def _overridable() -> frozenset[Any]:
    return frozenset(function for functions in get_overridable_functions().values() for function in functions)


def is_operation(function: Any) -> TypeGuard[Callable[..., Any]]:
    """Whether something is a torch function that a model may run on its activations."""
    if isinstance(function, _OVERLOADS):
        return True
    if not isinstance(function, _CALLABLES):
        return False
    if isinstance(function, FunctionType) and function.__module__.partition(".")[0] != "torch":
        return False
    return is_known(function) or function in _overridable() or _is_private_builtin(function)


def _is_private_builtin(function: Any) -> bool:
    # Such as torch._trilinear, which torch does not list but runs in layers of its own.
    return inspect.isbuiltin(function) and getattr(torch, function.__name__, None) is function


@cache
def public(name: str) -> tuple[str, Callable[..., Any]] | None:
    """Return the code and the function that stand for an operation by its plain name, or None where there is none."""
    operators = (operator for operator, plain in names.OPERATORS.items() if plain == name)
    for spelling in (name, f"{name}_", *operators):
        found = [
            (f"{path}.{spelling}", function)
            for path, namespace in NAMESPACES.items()
            if callable(function := getattr(namespace, spelling, None)) and _is(function, name)
        ]
        if found:
            # Several namespaces may have it: one that documents it counts, if the function can be pickled.
            return next((pair for pair in found if pair[1].__doc__ and "<" not in pair[1].__qualname__), found[0])
    for code in (f"torch.Tensor.{name}.__get__", f"torch.{name}", f"torch.ops.aten.{name}", f"torch.ops.{name}"):
        function = _evaluated(code)
        if callable(function) and _is(function, name):
            return code, function
    return None


def _is(function: Any, name: str) -> bool:
    return is_operation(function) and lookup(function).name == name


def _evaluated(code: str) -> Any:
    value: Any = torch
    for part in code.split(".")[1:]:
        value = getattr(value, part, None)
    return value


def expression(name: str) -> str:
    """Return the code for an operation by its plain name, such as ``torch.nn.functional.linear``."""
    found = public(name)
    return name if found is None else found[0]


def canonical(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that stands for a torch function and all its aliases, also for lists of tensors."""
    found = public(lookup(function).name.removeprefix("_foreach_"))
    return function if found is None else found[1]
