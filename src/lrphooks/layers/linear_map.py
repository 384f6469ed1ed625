"""Linear operations stripped of their tensors: forward with any weight, and the transposed map."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrphooks.torch_private import concrete


class LinearMap(ABC):
    """One executed linear operation z = w a + b, as a function of its tensors."""

    #: The dimension of the output that counts output channels, and of the weight that does.
    output_channel_dim: int
    weight_channel_dim: int
    #: Whether it has a weight for each output channel, which a BatchNorm can be merged into.
    merges: bool = True

    @abstractmethod
    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return ``weight a + bias``."""

    @abstractmethod
    def transpose(self, gradient: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        """Return ``weight^T gradient``, shaped as ``a``; of ``a`` only shape and layout matter."""

    def scaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        """Return the weight whose output channels are multiplied by ``scale``."""
        shape = [1] * weight.dim()
        shape[self.weight_channel_dim] = -1
        return weight * scale.reshape(shape)

    def per_input_channel(self, weight: Tensor, values: Tensor, a: Tensor) -> Tensor | None:
        """Return the weight multiplied by one value an input channel, or None where ``values`` are not of that kind."""
        return None


def promoted(a: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the tensors in one dtype: backward passes run outside of the autocasting of the forward pass."""
    if a.dtype == weight.dtype and (bias is None or bias.dtype == a.dtype):
        return a, weight, bias
    dtype = torch.promote_types(a.dtype, weight.dtype)
    return a.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


@dataclass(frozen=True)
class Dense(LinearMap):
    """``F.linear``: the last dimension of the input against the rows of a (out, in) weight."""

    output_channel_dim = -1
    weight_channel_dim = 0

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(*promoted(a, weight, bias))

    def transpose(self, gradient: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        # As one product of two matrices: of what lies in another order, matmul makes many small ones.
        rows = gradient.reshape(math.prod(gradient.shape[:-1]), gradient.shape[-1])
        return torch.mm(rows, weight.to(gradient.dtype).conj()).reshape(*gradient.shape[:-1], weight.shape[1])

    def per_input_channel(self, weight: Tensor, values: Tensor, a: Tensor) -> Tensor | None:
        if values.numel() == 1 or values.shape == a.shape[-1:]:
            return weight * values.reshape(-1)
        return None


@dataclass(frozen=True)
class Convolution(LinearMap):
    """Convolutions of one to three dimensions and their transposed forms."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    #: Zeros added to the input first, as torch.nn.functional.pad counts them; for uneven "same" padding.
    explicit: tuple[int, ...] = ()

    @property
    def output_channel_dim(self) -> int:  # type: ignore[override]  # a property here, a constant elsewhere
        return -len(self.stride) - 1

    @property
    def weight_channel_dim(self) -> int:  # type: ignore[override]  # a property here, a constant elsewhere
        return 1 if self.transposed else 0

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # The public functions, unlike torch.convolution, take part in autocasting.
        name = f"conv_transpose{len(self.stride)}d" if self.transposed else f"conv{len(self.stride)}d"
        a, weight, bias = promoted(a, weight, bias)
        if self.explicit:
            a = F.pad(a, self.explicit)
        extra = {"output_padding": self.output_padding} if self.transposed else {}
        out: Tensor = getattr(F, name)(
            a,
            weight,
            bias,
            stride=self.stride,
            padding=self.padding,
            dilation=self.dilation,
            groups=self.groups,
            **extra,
        )
        return out

    def transpose(self, gradient: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        single = a.dim() == len(self.stride) + 1
        if a.dtype != gradient.dtype:
            a = a.to(gradient.dtype)
        if self.explicit:
            a = F.pad(a, self.explicit)
        out: Tensor = torch.ops.aten.convolution_backward.default(
            gradient.unsqueeze(0) if single else gradient,
            a.unsqueeze(0) if single else a,
            weight.to(gradient.dtype).conj(),
            None,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
            [True, False, False],
        )[0]
        if self.explicit:
            out = F.pad(out, [-side for side in self.explicit])
        return out.squeeze(0) if single else out

    def scaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        if not self.transposed or self.groups == 1:
            return super().scaled(weight, scale)
        # A grouped transposed weight is (in, out / groups, ...): the scale differs by the group of the input.
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        shape = (self.groups, 1, weight.shape[1]) + (1,) * len(self.stride)
        return (grouped * scale.reshape(shape)).reshape(weight.shape)

    def per_input_channel(self, weight: Tensor, values: Tensor, a: Tensor) -> Tensor | None:
        spatial = len(self.stride)
        one_each = values.dim() > spatial and values.numel() == values.shape[-spatial - 1]
        if values.numel() != 1 and not one_each:
            return None
        channels = values.reshape(-1).expand(a.shape[-spatial - 1])
        if self.transposed:
            return weight * channels.reshape(-1, *(1,) * (weight.dim() - 1))
        # A grouped weight is (out, in / groups, ...): the channels of group g belong to the outputs of group g.
        per_group = channels.reshape(self.groups, 1, -1, *(1,) * spatial)
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        return (grouped * per_group).reshape(weight.shape)


def _transposed(function: Callable[[Tensor], Tensor], gradient: Tensor, point: Tensor) -> Tensor:
    """Return the transposed map of a linear function, whose derivative is the same at every point."""
    create = torch.is_grad_enabled()
    with torch.enable_grad():
        point = point.detach().requires_grad_()
        result: Tensor = torch.autograd.grad(function(point), point, gradient, create_graph=create)[0]
    return result


@dataclass(frozen=True)
class General(LinearMap):
    """Any operation that is linear in one operand and has a constant as the other: matmul, einsum, bilinear forms."""

    function: Callable[[Tensor, Tensor], Tensor]
    output_channel_dim: int = -1
    weight_channel_dim: int = -1
    merges: bool = False

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        # Some kernels take nothing that is expanded.
        out = self.function(a if 0 not in a.stride() else a.contiguous(), weight)
        return out if bias is None else out + bias.reshape(-1, *(1,) * (-1 - self.output_channel_dim))

    def transpose(self, gradient: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        return _transposed(lambda point: self.function(point, weight), gradient.contiguous(), torch.zeros_like(a))


@dataclass(frozen=True)
class Moved(LinearMap):
    """A linear operation and moves of all elements of its output.

    shape: that of the output before it was moved. moves: the functions. number: what the elements were multiplied by on
    the way, which is not in the map, but for the weight and the bias. steps: all that was done, moves and products.
    """

    inner: LinearMap
    shape: torch.Size
    moves: tuple[Callable[[Tensor], Tensor], ...] = ()
    number: float = 1.0
    steps: tuple[Callable[[Tensor], Tensor], ...] = ()
    output_channel_dim: int = 0

    @property
    def weight_channel_dim(self) -> int:  # type: ignore[override]  # a property here, a constant elsewhere
        return self.inner.weight_channel_dim

    @property
    def merges(self) -> bool:  # type: ignore[override]  # a property here, a constant elsewhere
        return self.inner.merges

    def move(self, output: Tensor) -> Tensor:
        """Return an output of the inner map, moved."""
        return reduce(lambda values, function: function(values), self.moves, output)

    def done(self, output: Tensor) -> Tensor:
        """Return an output of the inner map, moved and multiplied as the model did."""
        return reduce(lambda values, function: function(values), self.steps, output)

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return self.move(self.inner.forward(a, weight, bias))

    def transpose(self, gradient: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        return self.inner.transpose(_transposed(self.move, gradient, gradient.new_zeros(self.shape)), a, weight)

    def scaled(self, weight: Tensor, scale: Tensor) -> Tensor:
        return self.inner.scaled(weight, scale)

    def per_input_channel(self, weight: Tensor, values: Tensor, a: Tensor) -> Tensor | None:
        return self.inner.per_input_channel(weight, values, a)

    def then(self, step: Callable[[Tensor], Tensor], number: float | None) -> Moved:
        """Return the map with one more step behind it: a move, or a product with a number."""
        steps = (*self.steps, step)
        if number is None:
            return replace(self, moves=(*self.moves, step), steps=steps)
        return replace(self, number=self.number * number, steps=steps)


def along(linear_map: LinearMap, shape: torch.Size, dim: int) -> LinearMap | None:
    """Return the map with its output channels in a dimension of the output, of a shape, or None if they are not."""
    if not linear_map.merges:
        return None
    if not isinstance(linear_map, Moved):
        return linear_map if len(shape) + linear_map.output_channel_dim == dim else None
    count = linear_map.shape[linear_map.inner.output_channel_dim]
    if shape[dim] != count:
        return None
    trailing = -1 - linear_map.inner.output_channel_dim
    with concrete(), torch.no_grad():
        # Where the channels go is seen by their numbers.
        numbers = torch.arange(count).reshape(-1, *(1,) * trailing)
        places = numbers.expand(linear_map.shape)
        fits = bool((linear_map.move(places) == torch.arange(count).reshape(-1, *(1,) * (len(shape) - 1 - dim))).all())
    return replace(linear_map, output_channel_dim=dim - len(shape)) if fits else None


@dataclass(frozen=True)
class Summation(LinearMap):
    """A sum of activations: they are stacked in the first dimension, and the weight has one number for each."""

    output_channel_dim = -1
    weight_channel_dim = -1
    merges = False

    def forward(self, a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out = (a * self._shaped(weight, a)).sum(0)
        return out if bias is None else out + bias

    def transpose(self, gradient: Tensor, a: Tensor, weight: Tensor) -> Tensor:
        return gradient * self._shaped(weight, a)

    @staticmethod
    def _shaped(weight: Tensor, a: Tensor) -> Tensor:
        return weight.reshape(-1, *(1,) * (a.dim() - 1))


_OPTIONS = {"stride": 1, "padding": 0, "dilation": 1, "output_padding": 0, "groups": 1}


def bind_convolution(spatial: int, arguments: dict[str, Any], *, transposed: bool) -> Convolution:
    """Return the map of a convolution call."""
    options = [arguments.get(name, default) for name, default in _OPTIONS.items()]
    told = [tuple(value) if isinstance(value, list) else value for value in options]
    return _bound(spatial, arguments["weight"].shape[-spatial:], *told, transposed=transposed)


@lru_cache(1024)
def _bound(
    spatial: int,
    kernel: tuple[int, ...],
    stride: int | tuple[int, ...],
    padding: int | str | tuple[int, ...],
    dilation: int | tuple[int, ...],
    output_padding: int | tuple[int, ...],
    groups: int,
    *,
    transposed: bool,
) -> Convolution:
    def sized(value: int | tuple[int, ...]) -> tuple[int, ...]:
        values = (value,) if isinstance(value, int) else tuple(value)
        return values * spatial if len(values) == 1 else values

    explicit: tuple[int, ...] = ()
    if padding == "valid":
        padding = 0
    elif padding == "same":
        total = [d * (k - 1) for d, k in zip(sized(dilation), kernel, strict=True)]
        if all(t % 2 == 0 for t in total):
            padding = tuple(t // 2 for t in total)
        else:
            padding = 0
            explicit = tuple(side for t in reversed(total) for side in (t // 2, t - t // 2))
    assert not isinstance(padding, str)
    return Convolution(
        stride=sized(stride),
        padding=sized(padding),
        dilation=sized(dilation),
        transposed=transposed,
        output_padding=sized(output_padding),
        groups=groups,
        explicit=explicit,
    )
