"""Which part of a module's output is meant: channels, or heads of attention."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrphooks.engine.errors import LRPError

if TYPE_CHECKING:
    from lrphooks.engine.taps import TappedCall


@dataclass(frozen=True)
class Selection(ABC):
    """A part of the output of a module."""

    @abstractmethod
    def mask(self, shape: torch.Size, dim: int, where: str) -> Tensor:
        """Return where an output of this shape, with its channels in a dimension, belongs to the part.

        It broadcasts against the output. Raises a ValueError that names the module ``where`` if there is no such part.
        """


@dataclass(frozen=True)
class Channels(Selection):
    """Some channels of a module's output.

    Parameters
    ----------
    indices
        One channel or several, from 0 up.
    dim
        The dimension that counts channels; None is that of convolutions and dense layers as they run.

    Raises
    ------
    TypeError
        If the indices are no integers.
    """

    indices: int | Iterable[int]
    dim: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", _integers(self, self.indices))

    def mask(self, shape: torch.Size, dim: int, where: str) -> Tensor:
        """Return the channels of an output that are meant."""
        return _mask(self, shape, dim, shape[dim], where)


@dataclass(frozen=True)
class Heads(Selection):
    """Some heads of attention, in an output that has the values of all heads one after the other.

    Parameters
    ----------
    indices
        One head or several, from 0 up.
    of
        How many heads there are.
    dim
        The dimension that the heads share.

    Raises
    ------
    TypeError, ValueError
        If the indices are no integers, or ``of`` is less than 1.
    """

    indices: int | Iterable[int]
    of: int
    dim: int = -1

    def __post_init__(self) -> None:
        object.__setattr__(self, "indices", _integers(self, self.indices))
        if isinstance(self.of, bool) or not isinstance(self.of, int) or self.of < 1:
            raise ValueError(f"Heads: of is how many heads there are, at least 1, got {self.of!r}.")

    def mask(self, shape: torch.Size, dim: int, where: str) -> Tensor:
        """Return the part of an output that belongs to the heads that are meant."""
        if shape[dim] % self.of:
            raise ValueError(
                f"{self!r} does not fit {where}: its dimension {dim} has {shape[dim]} values, which "
                f"{self.of} heads cannot share. Name the module that returns all heads joined, before the projection."
            )
        return _mask(self, shape, dim, self.of, where)


def _integers(part: Selection, given: Any) -> tuple[int, ...]:
    values = given.tolist() if isinstance(given, Tensor) else given
    values = tuple(values) if isinstance(values, Iterable) and not isinstance(values, str) else (values,)
    if not values or not all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        raise TypeError(f"{type(part).__name__}: indices are one integer or several, got {given!r}.")
    return values


def _mask(part: Channels | Heads, shape: torch.Size, dim: int, count: int, where: str) -> Tensor:
    indices = part.indices
    assert isinstance(indices, tuple)
    outside = [index for index in indices if not 0 <= index < count]
    if outside:
        raise ValueError(f"{part!r} does not fit {where}: there is no {outside[0]} among {count} (0 to {count - 1}).")
    chosen = torch.zeros(count, dtype=torch.bool)
    chosen[list(indices)] = True
    after = len(shape) - 1 - dim % len(shape)
    return chosen.repeat_interleave(shape[dim] // count).reshape(-1, *(1,) * after)


def as_selection(given: Any) -> Selection:
    """Return channels as a selection: an index, several, or a selection itself."""
    return given if isinstance(given, Selection) else Channels(given)


def channel_dim(model: nn.Module, name: str, call: TappedCall) -> int:
    """Return the dimension of a module's output that counts channels.

    Known from the linear layer that made it; else 1, in (rows, channels) and (rows, channels, height, width), and the
    last in (rows, tokens, channels).

    Raises
    ------
    LRPError
        If the model has layers that arrange outputs of as many dimensions both ways, so that it cannot be told.
    """
    tapped = call.tapped[0]
    dims = tapped.empty.dim()
    if tapped.channel_dim is not None:
        return tapped.channel_dim % dims
    if dims <= 2:
        return dims - 1
    if isinstance(call.module, nn.LayerNorm | nn.RMSNorm):
        return dims - 1
    modules = list(model.modules())
    first, last = nn.Conv1d | nn.ConvTranspose1d | nn.BatchNorm1d, nn.LayerNorm | nn.RMSNorm
    other = [m for m in modules if isinstance(m, first if dims == 3 else last)]
    if not other:
        return dims - 1 if dims == 3 else 1
    raise LRPError(
        f"Which dimension of the output of module {name!r} ({type(call.module).__name__}), of shape "
        f"{tuple(tapped.empty.shape)}, counts channels cannot be told, since the model has a "
        f"{type(other[0]).__name__} too. Say so: lrphooks.concepts.Channels(indices, dim=1)."
    )
