"""One torch function call inside the explained model, and the small surgery that rules perform on its arguments."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrphooks.operations import Operation
from lrphooks.torch_private import nn_functions

if TYPE_CHECKING:
    from lrphooks.rules.base import Rule

#: Arguments that hold nothing, as most do.
_SIMPLE = frozenset((int, float, bool, str, type(None)))
_HOLDERS = (list, tuple, dict)


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """Return the tensors among arguments, within lists, tuples and dicts too."""
    found = []
    for value in values:
        if type(value) in _SIMPLE:
            continue
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, list | tuple):
            # Such as the stride of a convolution.
            if not _SIMPLE.issuperset(map(type, value)):
                found += tensors_in(value)
        elif isinstance(value, dict):
            found += tensors_in(value.values())
    return found


def replace_tensors(value: Any, change: Mapping[int, Any]) -> Any:
    """Return the value with each tensor whose identity is in ``change`` exchanged, within containers too."""
    if type(value) is tuple:
        return tuple([replace_tensors(v, change) if isinstance(v, _HOLDERS) else change.get(id(v), v) for v in value])
    return _mapped(value, Tensor, lambda tensor: change.get(id(tensor), tensor))


def _mapped(value: Any, kind: type, function: Callable[[Any], Any]) -> Any:
    """Return the value with the function applied to everything of one kind, within lists, tuples and dicts too."""
    if type(value) in _SIMPLE:
        return value
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, list):
        return [_mapped(v, kind, function) for v in value]
    if isinstance(value, tuple):
        mapped = [_mapped(v, kind, function) for v in value]
        return type(value)(*mapped) if hasattr(value, "_fields") else type(value)(mapped)
    if isinstance(value, dict):
        return {k: _mapped(v, kind, function) for k, v in value.items()}
    return value


def broadcast_shape(*shapes: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of what tensors of some shapes, which fit together, are broadcast to."""
    # torch.broadcast_shapes takes as long as a small product.
    if all(shape == shapes[0] for shape in shapes):
        return tuple(shapes[0])
    width = max(map(len, shapes))
    sizes = zip(*([1] * (width - len(shape)) + list(shape) for shape in shapes), strict=True)
    return tuple(next((size for size in each if size != 1), 1) for each in sizes)


@dataclass(frozen=True, slots=True)
class _Hole:
    """The place of a tensor among the arguments of a call that does not hold it."""

    index: int


@dataclass(slots=True)
class Call:
    """A call of a torch function: what it is, its arguments, which of them carry relevance, and its rule once known."""

    operation: Operation
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    dependent: list[Tensor] = field(default_factory=list)
    rule: Rule | None = None
    _writes: bool | None = None

    def invoke(self) -> Any:
        """Run the function."""
        return self.function(*self.args, **self.kwargs)

    def replaced(self, change: dict[int, Tensor]) -> Call:
        """Return the call with tensors exchanged by identity; the target of an in-place form stays."""
        if not change:
            return self
        keep = self.args[:1] if self.operation.in_place else ()
        args = keep + replace_tensors(tuple(self.args[len(keep) :]), change)
        kwargs = replace_tensors(self.kwargs, change) if self.kwargs else {}
        dependent = [change.get(id(t), t) for t in self.dependent]
        return Call(self.operation, self.function, args, kwargs, dependent, self.rule)

    def over(self, sources: Sequence[Tensor | None]) -> Callable[..., Any]:
        """Return the call as a function of some of its tensors, which the function does not hold.

        Nodes keep such functions for as long as the graph lasts, and tensors no longer than autograd saves them.
        """
        places = {id(source): i for i, source in enumerate(sources) if source is not None}
        function, kwargs = self.function, self.kwargs
        if not any(isinstance(v, _HOLDERS) for v in self.args) and all(type(v) in _SIMPLE for v in kwargs.values()):
            args = [None if id(value) in places else value for value in self.args]
            filled = [(k, places[id(value)]) for k, value in enumerate(self.args) if id(value) in places]

            def flat(*tensors: Tensor | None) -> Any:
                given = list(args)
                for k, i in filled:
                    given[k] = tensors[i]
                return function(*given, **kwargs)

            return flat
        arguments = replace_tensors((self.args, self.kwargs), {key: _Hole(i) for key, i in places.items()})

        def call(*tensors: Tensor | None) -> Any:
            args, kwargs = _mapped(arguments, _Hole, lambda hole: tensors[hole.index])
            return function(*args, **kwargs)

        return call

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument by position or name."""
        if len(self.args) > position:
            return self.args[position]
        return self.kwargs.get(name, default)

    @property
    def writes_in_place(self) -> bool:
        """Whether the call overwrites its first argument."""
        if self._writes is None:
            in_place = self.operation.in_place or bool(self.kwargs.get("inplace"))
            self._writes = in_place or self._inplace_position() is not None
        return self._writes

    def _inplace_position(self) -> int | None:
        for value in self.args:
            if value is True:
                break
        else:
            return None
        position = _inplace_index(self.function)
        if position is not None and len(self.args) > position and self.args[position] is True:
            return position
        return None

    def out_of_place(self) -> Call:
        """Return the call in the form that writes to a new tensor."""
        if self.operation.in_place:
            function = _plain_function(self.operation.name)
            return Call(
                Operation(self.operation.name, self.operation.kind), function, self.args, self.kwargs, self.dependent
            )
        kwargs = {k: v for k, v in self.kwargs.items() if k != "inplace"}
        args = list(self.args)
        position = self._inplace_position()
        if position is not None:
            args[position] = False
        return Call(self.operation, self.function, tuple(args), kwargs, self.dependent)


@cache
def _inplace_index(function: Callable[..., Any]) -> int | None:
    try:
        parameters = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return None
    return parameters.index("inplace") if "inplace" in parameters else None


def _plain_function(name: str) -> Callable[..., Any]:
    for namespace in (torch.Tensor, torch, F, torch.special, nn_functions):
        function = getattr(namespace, name, None)
        if callable(function):
            return function  # type: ignore[no-any-return]
    raise AssertionError(f"no out-of-place form of {name}")
