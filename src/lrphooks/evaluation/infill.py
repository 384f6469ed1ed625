"""Infills: what stands in for the regions of an input that are removed."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lrphooks.evaluation.metric import generator, whole
from lrphooks.rules.base import number

_CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_POOL: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
_LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


@dataclass(frozen=True)
class Infill(ABC):
    """How removed regions are filled; an immutable value."""

    @abstractmethod
    def prepare(self, x: Tensor) -> Tensor:
        """Return what can be computed before it is known which regions are removed; the shape of x.

        Raises
        ------
        ValueError
            If the infill needs neighbouring positions, which rows of features do not have.
        """

    def fill(self, x: Tensor, prepared: Tensor, removed: Tensor) -> Tensor:
        """Return x with other values where ``removed``, a mask that broadcasts against x."""
        return torch.where(removed, prepared, x)

    def _positions(self, x: Tensor) -> int:
        """Return how many dimensions of positions x has."""
        if x.dim() < 3:
            raise ValueError(
                f"{type(self).__name__}: x has shape {tuple(x.shape)}, features without neighbouring positions. Give "
                "infill=Constant(...) with a value for each feature, such as its mean over the training data."
            )
        if x.dim() > 5:
            raise ValueError(f"{type(self).__name__}: x has shape {tuple(x.shape)}; at most three spatial dimensions.")
        return x.dim() - 2


@dataclass(frozen=True)
class Constant(Infill):
    """A constant value.

    Parameters
    ----------
    value
        A number, or one number a channel (a feature of an input without positions).

    Raises
    ------
    TypeError, ValueError
        If a value is no finite number, or there are not as many as channels.
    """

    value: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        values = self.value if isinstance(self.value, tuple | list) else (self.value,)
        values = tuple(number("Constant", "value", value) for value in values)
        object.__setattr__(self, "value", values if isinstance(self.value, tuple | list) else values[0])

    def prepare(self, x: Tensor) -> Tensor:
        """Return the constant in the shape of x."""
        value = torch.tensor(self.value, dtype=x.dtype, device=x.device)
        if value.dim():
            if len(value) != x.shape[1]:
                raise ValueError(f"Constant: {len(value)} values were given for {x.shape[1]} channels.")
            value = value.reshape(-1, *[1] * (x.dim() - 2))
        return value.expand_as(x)


@dataclass(frozen=True)
class Mean(Infill):
    """The mean of each channel over the positions of its own row."""

    def prepare(self, x: Tensor) -> Tensor:
        """Return the means in the shape of x."""
        self._positions(x)
        return x.flatten(2).mean(2).reshape(*x.shape[:2], *[1] * (x.dim() - 2)).expand_as(x)


@dataclass(frozen=True)
class Blur(Infill):
    """The input blurred by a Gaussian, as insertion begins with (Petsiuk et al. 2018).

    Parameters
    ----------
    sigma
        The standard deviation in pixels. It should be at least half of the side of what is removed, or much stays to be
        seen.

    The kernel is cut at three standard deviations; at the border its weights are those inside of the input, summing
    to 1.
    """

    sigma: float = 10.0

    def __post_init__(self) -> None:
        if number("Blur", "sigma", self.sigma) <= 0:
            raise ValueError(f"Blur: sigma must be above 0, got {self.sigma!r}.")

    def prepare(self, x: Tensor) -> Tensor:
        """Return the blurred input."""
        count = self._positions(x)
        radius = math.ceil(3 * self.sigma)
        kernel = torch.exp(-0.5 * (torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device) / self.sigma) ** 2)
        blurred, weight = x.flatten(0, 1).unsqueeze(1), torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
        for dim in range(count):
            shape = [1] * count
            shape[dim] = len(kernel)
            padding = [0] * count
            padding[dim] = radius
            blurred, weight = (
                _CONVOLVE[count](values, kernel.reshape(1, 1, *shape), padding=tuple(padding))
                for values in (blurred, weight)
            )
        return (blurred / weight).reshape(x.shape)


@dataclass(frozen=True)
class Noise(Infill):
    """Normal noise with the mean and ``scale`` times the standard deviation of each channel of the row.

    The same noise for every row and step, and for every method that is judged with this ``seed``.
    """

    scale: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        number("Noise", "scale", self.scale, minimum=0.0)
        whole(self, "seed", self.seed, minimum=0)

    def prepare(self, x: Tensor) -> Tensor:
        """Return the noise."""
        self._positions(x)
        dims = tuple(range(2, x.dim()))
        drawn = torch.randn(x.shape[1:], generator=generator(self.seed), dtype=torch.float64).to(x)
        spread = x.var(dims, unbiased=False, keepdim=True).sqrt()
        return x.mean(dims, keepdim=True) + self.scale * spread * drawn


@dataclass(frozen=True)
class Inpainting(Infill):
    """A smooth continuation of what is left, so that the edges of the removed regions tell nothing (push-pull).

    The known positions are averaged into ever coarser grids, and removed ones take the value of the finest grid that
    knows one, interpolated. Where everything is removed, the mean of the channel is left.

    References
    ----------
    Gortler et al., "The Lumigraph", SIGGRAPH 1996 (push-pull); inpainting as infill: Rong et al., "A Consistent and
    Efficient Evaluation Strategy for Attribution Methods", ICML 2022.
    """

    def prepare(self, x: Tensor) -> Tensor:
        """Return the mean of each channel, which is left where nothing is known."""
        return Mean().prepare(x)

    def fill(self, x: Tensor, prepared: Tensor, removed: Tensor) -> Tensor:
        """Return x with removed positions interpolated from the others."""
        known = (~removed).to(x.dtype).expand(len(x), 1, *x.shape[2:])
        return torch.where(removed, self._pulled(x - prepared, known) + prepared, x)

    def _pulled(self, values: Tensor, known: Tensor) -> Tensor:
        count = values.dim() - 2
        if max(values.shape[2:]) == 1:
            return values * known
        # Padding counts as unknown, so that a grid of odd length halves without a special case.
        padding = [p for size in reversed(values.shape[2:]) for p in (0, size % 2)]
        sums, weight = (_POOL[count](F.pad(t, padding), 2) for t in (values * known, known))
        coarse = self._pulled(sums / weight.clamp(min=torch.finfo(weight.dtype).tiny), (weight > 0).to(weight.dtype))
        sizes = [size + size % 2 for size in values.shape[2:]]
        guess = F.interpolate(coarse, size=sizes, mode=_LINEAR[count], align_corners=False)
        for dim, size in enumerate(values.shape[2:], start=2):
            guess = guess.narrow(dim, 0, size)
        return values * known + guess * (1 - known)
