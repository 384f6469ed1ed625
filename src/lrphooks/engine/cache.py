"""Weights in modified form, kept until the parameters they come from change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import Tensor, nn

T = TypeVar("T")


class WeightCache:
    """Remembers what was computed from parameters, by their identity, storage and version.

    It belongs to one forward pass, so that a change without a trace (through ``.data``) is seen by the next.
    Tensors that are not the model's own, such as weights made anew in
    each forward pass, are never kept.
    """

    __slots__ = ("_entries", "_owned")

    def __init__(self, model: nn.Module) -> None:
        self._owned = {id(t) for t in (*model.parameters(), *model.buffers())}
        self._entries: dict[tuple[Any, ...], tuple[tuple[Any, ...], tuple[Any, ...], Any]] = {}

    def get(self, key: tuple[Any, ...], parameter: float, make: Callable[[], T]) -> T:
        """Return ``make()``, from memory where the tensors in ``key`` are as they were."""
        tensors = tuple(part for part in key if isinstance(part, Tensor))
        if not all(id(t) in self._owned for t in tensors):
            return make()
        name = (parameter, *(id(part) if isinstance(part, Tensor) else part for part in key))
        state = tuple((t._version, t.data_ptr(), t.dtype, t.shape) for t in tensors)
        entry = self._entries.get(name)
        if entry is not None and entry[0] == state:
            return entry[2]  # type: ignore[no-any-return]
        value = make()
        # Holding the tensors keeps their identities from being given to others.
        self._entries[name] = (state, tensors, value)
        return value
