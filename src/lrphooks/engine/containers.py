"""Tensors within whatever a model takes and returns: tuples, dicts, dataclasses, model outputs, packed sequences."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


def tensors(value: Any) -> Iterator[Tensor]:
    """Yield the tensors within a value; of a packed sequence its data, since lengths and order are its structure."""
    for part in parts(value):
        yield part.data if isinstance(part, PackedSequence) else part


def parts(value: Any) -> Iterator[Tensor | PackedSequence]:
    """Yield the tensors and packed sequences within a value."""
    if isinstance(value, Tensor | PackedSequence):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from parts(item)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from parts(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from parts(getattr(value, field.name))


def objects(value: Any) -> Iterator[Any]:
    """Yield the objects within a value that are neither tensors nor containers, but have attributes."""
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from objects(item)
    elif hasattr(value, "__dict__") and not isinstance(value, Tensor | nn.Module | type) and not callable(value):
        yield value


def attributes(value: Any, depth: int = 3) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors that an object holds in its attributes, or deeper, each with how it is written: ``Data.x``."""
    root = type(value).__name__
    waiting, seen = [(root, "", value)], set()
    for _ in range(depth + 1):
        found = []
        for path, key, item in waiting:
            if isinstance(item, Tensor):
                # Objects show under a name of their own what they keep in a dict inside.
                shown = None
                with suppress(Exception):
                    shown = getattr(value, key)
                yield f"{root}.{key}" if shown is item else path, item
            elif id(item) in seen or isinstance(item, nn.Module | type):
                continue
            elif isinstance(item, Mapping):
                found += [(f"{path}[{k!r}]", str(k), v) for k, v in item.items()]
            elif isinstance(item, list | tuple):
                found += [(f"{path}[{i}]", key, v) for i, v in enumerate(item)]
            elif hasattr(item, "__dict__"):
                found += [(f"{path}.{k}", k, v) for k, v in vars(item).items()]
            seen.add(id(item))
        waiting = found


def map_tensors(
    value: Any, function: Callable[[Tensor], Any], what: str, keep: Callable[[Tensor], bool] = lambda _: False
) -> Any:
    """Return the value with ``function`` applied to its tensors, in new containers of the same types.

    Containers without a tensor to change are returned as they are, so that everything else keeps its identity.
    """
    if isinstance(value, Tensor):
        return value if keep(value) else function(value)
    if not any(not keep(t) for t in tensors(value)):
        return value
    if isinstance(value, Mapping):
        items = {k: map_tensors(v, function, what, keep) for k, v in value.items()}
        if type(value) is dict:
            return items
        try:
            mapping: Any = _copied(value)
            for key, item in items.items():
                mapping[key] = item
        except TypeError:
            raise _cannot_exchange(value, what) from None
        return mapping
    if isinstance(value, PackedSequence):
        return value._replace(data=function(value.data))
    if isinstance(value, list):
        return [map_tensors(v, function, what, keep) for v in value]
    if isinstance(value, tuple):
        parts = [map_tensors(v, function, what, keep) for v in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = _copied(value)
        for field in dataclasses.fields(value):
            item = map_tensors(getattr(value, field.name), function, what, keep)
            object.__setattr__(changed, field.name, item)
        return changed
    raise _cannot_exchange(value, what)


def _copied(value: Any) -> Any:
    """Return a shallow copy.

    Python 3.10 asks the object itself for ``__getstate__``, which a dict with items as attributes takes for a key.
    """
    try:
        return copy.copy(value)
    except KeyError:
        if not isinstance(value, dict):
            raise
    twin = type(value).__new__(type(value))
    vars(twin).update(vars(value))
    for key, item in value.items():
        twin[key] = item
    return twin


def _cannot_exchange(value: Any, what: str) -> TypeError:
    return TypeError(f"The model's {what} is a {type(value).__name__}, in which lrphooks cannot exchange tensors.")
