"""Weights in modified form, kept until the parameters they come from change."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

#: Tensors of up to so many elements are compared with a copy, larger ones by their projections.
_COPIED = 1 << 14
#: How many elements one projection spans.
_SPAN = 1 << 12


class WeightStore:
    """What a session keeps between forward passes, by the tensors it was computed from.

    A change through ``.data`` leaves no version behind, so what one pass kept serves the next only where the values
    are seen to be the same (see :func:`fingerprint`). With ``once`` there is no next pass, so nothing is compared.
    """

    def __init__(self, model: nn.Module, *, once: bool = False) -> None:
        self.once = once
        self.owned = frozenset(id(t) for t in (*model.parameters(), *model.buffers()))
        self.entries: dict[tuple[Any, ...], _Entry] = {}

    def clear(self) -> None:
        """Forget everything, so that a session that ended holds no memory."""
        self.entries.clear()


class _Entry:
    """A computed value, the tensors that it came from, and what these were like."""

    __slots__ = ("pass_", "prints", "state", "tensors", "value")

    def __init__(self, pass_: object, state: Any, tensors: Any, prints: Any, value: Any) -> None:
        self.pass_, self.state, self.prints, self.value = pass_, state, prints, value
        # Holding the tensors keeps their identities from being given to others.
        self.tensors = tensors


class WeightCache:
    """The view of one forward pass on a store: it asks once for each tensor whether its values are the same.

    Tensors that are not the model's own, such as weights made anew in each forward pass, are never kept.
    """

    __slots__ = ("_prints", "_store")

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        self._prints: dict[tuple[Any, ...], Tensor | None] = {}

    def get(self, key: tuple[Any, ...], parameter: float, make: Callable[[], T]) -> T:
        """Return ``make()``, from memory where the tensors in ``key`` are as they were."""
        tensors = tuple(part for part in key if isinstance(part, Tensor))
        if not all(id(t) in self._store.owned for t in tensors):
            return make()
        name = (parameter, *(id(part) if isinstance(part, Tensor) else part for part in key))
        state = tuple((id(t), t._version, t.data_ptr(), t.dtype, t.shape) for t in tensors)
        entry = self._store.entries.get(name)
        if entry is not None and entry.state == state:
            if entry.pass_ is self._prints:
                return entry.value  # type: ignore[no-any-return]
            if all(map(_same, entry.prints, prints := self._printed(tensors, state))):
                entry.pass_, entry.prints = self._prints, prints
                return entry.value  # type: ignore[no-any-return]
        value = make()
        self._store.entries[name] = _Entry(self._prints, state, tensors, self._printed(tensors, state), value)
        return value

    def _printed(self, tensors: tuple[Tensor, ...], state: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
        if self._store.once:
            return (None,) * len(tensors)
        for tensor, name in zip(tensors, state, strict=True):
            if name not in self._prints:
                self._prints[name] = fingerprint(tensor)
        return tuple(self._prints[name] for name in state)


def fingerprint(tensor: Tensor) -> Tensor | None:
    """Return what tells the tensor's values from others, or None where that costs more than to compute anew.

    Small tensors are copied. Large ones are projected, each run of values on one random vector, which reads them once
    and writes next to nothing: an eighth of the time of a modified copy of a large weight. Two weights with the same
    projections differ by less than the rounding of a product with them. On accelerators reading an answer would wait
    for the device, and weights are modified in no time.
    """
    if tensor.device.type != "cpu" or tensor.layout != torch.strided or not _dense(tensor):
        return None
    with torch.no_grad():
        if tensor.numel() <= _COPIED:
            return tensor.detach().clone()
        if tensor.dtype not in (torch.float32, torch.float64):
            return None
        values = tensor.detach().as_strided((tensor.numel(),), (1,))
        direction = _direction(tensor.dtype)
        whole = values.numel() // _SPAN * _SPAN
        projected = values[:whole].view(-1, _SPAN) @ direction
        return torch.cat((projected, values[whole:]))


def _dense(tensor: Tensor) -> bool:
    """Whether it is a plain tensor whose values fill their memory without gaps, in whatever order."""
    if type(tensor) not in (Tensor, nn.Parameter):
        return False
    return tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


@cache
def _direction(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = torch.rand(_SPAN, generator=generator, dtype=dtype) + 0.5
    return torch.where(torch.rand(_SPAN, generator=generator) < 0.5, -size, size)


def _same(before: Tensor | None, now: Tensor | None) -> bool:
    return before is not None and now is not None and torch.equal(before, now)
