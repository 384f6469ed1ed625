"""Weights in modified form, kept until the parameters they come from change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")

#: Tensors of up to so many elements are compared with a copy, larger ones by their projections.
_COPIED = 1 << 14
#: How many elements one projection spans.
_SPAN = 1 << 12


#: What tells one state of a tensor from another without a look at its values.
_State = tuple[int, int, torch.dtype, torch.Size]


class WeightStore:
    """What a session keeps between forward passes, by the tensors it was computed from.

    A change through ``.data`` leaves no version behind, so what one pass kept serves the next only where the values
    are seen to be the same (see :func:`fingerprint`). With ``once`` there is no next pass, so nothing is compared.
    """

    def __init__(self, model: nn.Module, *, once: bool = False) -> None:
        self.once = once
        self.owned = frozenset(id(t) for t in (*model.parameters(), *model.buffers()))
        self.entries: dict[tuple[Any, ...], _Entry] = {}
        self._seen: dict[int, _Seen] = {}

    def clear(self) -> None:
        """Forget everything, so that a session that ended holds no memory."""
        self.entries.clear()
        self._seen.clear()

    def token(self, tensor: Tensor, state: _State) -> object:
        """Return what stands for the tensor's values: the same object as before if they are seen to be the same."""
        print_ = None if self.once else fingerprint(tensor)
        seen = self._seen.get(id(tensor))
        if seen is None or seen.state != state or not _same(seen.print, print_):
            seen = self._seen[id(tensor)] = _Seen(tensor, state, print_, object())
        return seen.token


@dataclass(slots=True)
class _Seen:
    """A tensor as it was last seen; holding it keeps its identity from being given to another."""

    tensor: Tensor
    state: _State
    print: Tensor | None
    token: object


@dataclass(slots=True)
class _Entry:
    """A computed value, and the tokens of the values that it came from."""

    tokens: list[object]
    value: Any


class WeightCache:
    """The view of one forward pass on a store: it asks once for each tensor whether its values are the same.

    Tensors that are not the model's own, such as weights made anew in each forward pass, are never kept.
    """

    __slots__ = ("_store", "_tokens")

    def __init__(self, store: WeightStore) -> None:
        self._store = store
        self._tokens: dict[int, tuple[_State, object]] = {}

    def get(self, key: tuple[Any, ...], parameter: float, make: Callable[[], T]) -> T:
        """Return ``make()``, from memory where the tensors in ``key`` are as they were."""
        tensors = [part for part in key if isinstance(part, Tensor)]
        if not all(id(t) in self._store.owned for t in tensors):
            return make()
        name = (parameter, *(id(part) if isinstance(part, Tensor) else part for part in key))
        tokens = [self._token(tensor) for tensor in tensors]
        entry = self._store.entries.get(name)
        if entry is None or entry.tokens != tokens:
            entry = self._store.entries[name] = _Entry(tokens, make())
        return entry.value  # type: ignore[no-any-return]

    def _token(self, tensor: Tensor) -> object:
        state = (tensor._version, tensor.data_ptr(), tensor.dtype, tensor.shape)
        known = self._tokens.get(id(tensor))
        if known is None or known[0] != state:
            known = self._tokens[id(tensor)] = (state, self._store.token(tensor, state))
        return known[1]


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
