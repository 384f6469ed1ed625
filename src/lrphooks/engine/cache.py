"""Weights in modified form, kept until the parameters they come from change."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lrphooks.torch_private import modules_of, tensors_of, version_of

T = TypeVar("T")

#: Tensors of up to so many elements are compared with a copy, larger ones by their projections.
_COPIED = 1 << 14
#: How many elements one projection spans.
_SPAN = 1 << 12


#: What tells one state of some tensors from another without a look at their values.
_State = list[tuple[int, int, torch.dtype, torch.Size, tuple[int, ...]]]


class WeightStore:
    """What a session keeps between forward passes, by the tensors it was computed from.

    A change through ``.data`` leaves no version behind, so what one pass kept serves the next only where the values
    are seen to be the same (see :func:`fingerprint`). With ``once`` there is no next pass, so nothing is compared.
    """

    def __init__(self, model: nn.Module, *, once: bool = False) -> None:
        self.once = once
        self.owned = frozenset(id(t) for _, module in modules_of(model) for t in tensors_of(module))
        self.entries: dict[tuple[Any, ...], _Entry] = {}
        self._seen: dict[tuple[int, ...], _Seen] = {}

    def clear(self) -> None:
        """Forget everything, so that a session that ended holds no memory."""
        self.entries.clear()
        self._seen.clear()

    def token(self, name: tuple[int, ...], tensors: Sequence[Tensor], state: _State) -> object:
        """Return what stands for the values of tensors: the same object as before if they are seen to be the same."""
        prints = None if self.once else fingerprint(tensors)
        seen = self._seen.get(name)
        if seen is None or seen.state != state or not _same(seen.prints, prints):
            seen = self._seen[name] = _Seen(tensors, state, prints, object())
        return seen.token


@dataclass(slots=True)
class _Seen:
    """The tensors of a layer as they were last seen; holding them keeps their identities from being given to others."""

    tensors: Sequence[Tensor]
    state: _State
    prints: list[Tensor] | None
    token: object


@dataclass(slots=True)
class _Entry:
    """A computed value, and the token of the values that it came from."""

    token: object
    value: Any


class WeightCache:
    """The view of one forward pass on a store: it asks once for the tensors of each layer whether they are the same.

    Tensors that are not the model's own, such as weights made anew in each forward pass, are never kept.
    """

    __slots__ = ("_store", "_tokens")

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        self._tokens: dict[tuple[int, ...], tuple[_State, object]] = {}

    @property
    def owned(self) -> frozenset[int]:
        """The identities of the model's parameters and buffers."""
        return self._store.owned

    def get(self, key: str, tensors: Sequence[Tensor | None], parameter: float, make: Callable[[], T]) -> T:
        """Return ``make()``, from memory where the tensors that it is made of are as they were."""
        present = [t for t in tensors if t is not None]
        name = tuple(map(id, present))
        if not self._store.owned.issuperset(name):
            return make()
        state = [(version_of(t), t.data_ptr(), t.dtype, t.shape, t.stride()) for t in present]
        known = self._tokens.get(name)
        if known is None or known[0] != state:
            known = self._tokens[name] = (state, self._store.token(name, present, state))
        entry = self._store.entries.get((key, parameter, name))
        if entry is None or entry.token is not known[1]:
            entry = self._store.entries[key, parameter, name] = _Entry(known[1], make())
        return entry.value  # type: ignore[no-any-return]


def fingerprint(tensors: Sequence[Tensor]) -> list[Tensor] | None:
    """Return what tells the tensors' values from others, or None where that costs more than to compute anew.

    Small tensors are copied. Large ones are projected, each run of values on one random vector, which reads them once
    and writes next to nothing: an eighth of the time of a modified copy of a large weight. Two weights with the same
    projections differ by less than the rounding of a product with them. On accelerators reading an answer would wait
    for the device, and weights are modified in no time.
    """
    parts: dict[torch.dtype, list[Tensor]] = {}
    with torch.no_grad():
        for tensor in tensors:
            values = _flat(tensor)
            if values is None:
                return None
            dtype, size = tensor.dtype, values.shape[0]
            if size > _COPIED:
                if dtype not in (torch.float32, torch.float64):
                    return None
                whole = size // _SPAN * _SPAN
                parts.setdefault(dtype, []).append(values[:whole].view(-1, _SPAN) @ _direction(dtype))
                values = values[whole:]
            parts.setdefault(dtype, []).append(values)
        # One copy of all, since a layer has up to six small tensors.
        return [torch.cat(each) for each in parts.values()]


def _flat(tensor: Tensor) -> Tensor | None:
    """Return the values of a plain tensor of the CPU, in the order of their memory, or None where that has gaps."""
    if type(tensor) not in (Tensor, nn.Parameter) or not tensor.is_cpu or tensor.layout is not torch.strided:
        return None
    if tensor.is_contiguous():
        return tensor.view(-1)
    if tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last):
        return tensor.as_strided((tensor.numel(),), (1,))
    return None


@cache
def _direction(dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    size = torch.rand(_SPAN, generator=generator, dtype=dtype) + 0.5
    return torch.where(torch.rand(_SPAN, generator=generator) < 0.5, -size, size)


def _same(before: list[Tensor] | None, now: list[Tensor] | None) -> bool:
    return before is not None and now is not None and all(map(torch.equal, before, now))
