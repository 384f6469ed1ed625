"""Rules for first layers, whose relevance does not factor through the input: z-box, w-square, flat.

Here relevance may land where the input is exactly 0, so it is delivered as relevance, not as a modified gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lrphooks.layers.layer import Layer
from lrphooks.rules.base import Rule, Stabilizer, number


@dataclass(frozen=True)
class InputRule(Rule):
    """A rule for linear layers that answers with the relevance of the input itself."""

    @abstractmethod
    def redistribute(self, layer: Layer, relevance: Tensor) -> Tensor:
        """Return the relevance of the layer's input; a differentiable, pure function of its tensors."""


def _ones(layer: Layer) -> Tensor:
    """Return an all-ones input of batch size 1: structural denominators depend on the shape alone."""
    batched = layer.input.dim() > -layer.map.output_channel_dim
    return torch.ones_like(layer.input[:1] if batched else layer.input)


@dataclass(frozen=True)
class WSquare(InputRule):
    """The w-square rule, for first layers whose inputs have no bounds.

    Formula: ``R_i = sum_j w_ij^2 / (sum_i' w_i'j^2) R_j``; the bias takes no part.

    References
    ----------
    Montavon et al., "Explaining Nonlinear Classification Decisions with Deep Taylor Decomposition", 2017.
    """

    stabilizer: float | Stabilizer = 1e-6

    def __post_init__(self) -> None:
        Stabilizer.ensure("WSquare", "stabilizer", self.stabilizer)

    def redistribute(self, layer: Layer, relevance: Tensor) -> Tensor:
        squared = layer.weight.square()
        stabilize = Stabilizer.ensure("WSquare", "stabilizer", self.stabilizer)
        denominator = stabilize(layer.map.forward(_ones(layer), squared))
        return layer.map.transpose(relevance / denominator, layer.input, squared)


@dataclass(frozen=True)
class Flat(InputRule):
    """The flat rule: relevance is spread evenly over the inputs that an output is connected to.

    Formula: the w-square rule with every weight 1.

    References
    ----------
    Lapuschkin et al., "Unmasking Clever Hans Predictors and Assessing What Machines Really Learn", 2019.
    """

    stabilizer: float | Stabilizer = 1e-6

    def __post_init__(self) -> None:
        Stabilizer.ensure("Flat", "stabilizer", self.stabilizer)

    def redistribute(self, layer: Layer, relevance: Tensor) -> Tensor:
        ones = torch.ones_like(layer.weight)
        stabilize = Stabilizer.ensure("Flat", "stabilizer", self.stabilizer)
        denominator = stabilize(layer.map.forward(_ones(layer), ones))
        return layer.map.transpose(relevance / denominator, layer.input, ones)


@dataclass(frozen=True, eq=False, repr=False)
class ZBox(InputRule):
    """The z-box rule (z^B), for first layers whose inputs lie between bounds, such as pixels.

    Formula: ``R_a = a * w^T s - l * w^+T s - h * w^-T s`` with ``s = R / (w a - w^+ l - w^- h)``.

    Parameters
    ----------
    low, high
        The least and the greatest value an input can have, in the units of the layer's input (after any
        normalisation): numbers, or tensors that broadcast against the input, or one value a channel.

    Raises
    ------
    ValueError
        If ``low`` is above ``high`` anywhere, or the two do not broadcast against each other or the input.

    References
    ----------
    Montavon et al., "Explaining Nonlinear Classification Decisions with Deep Taylor Decomposition", 2017.
    """

    low: float | Tensor
    high: float | Tensor
    stabilizer: float | Stabilizer = 1e-6

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                value = value.detach().clone()
                if not bool(torch.isfinite(value).all()):
                    raise ValueError(f"ZBox: {name} must be finite, got {value}.")
                object.__setattr__(self, name, value)
            else:
                number("ZBox", name, value)
        low, high = torch.as_tensor(self.low), torch.as_tensor(self.high)
        try:
            above = bool((low > high).any())
        except RuntimeError as error:
            raise ValueError(
                f"ZBox: low of shape {tuple(low.shape)} and high of shape {tuple(high.shape)} do not broadcast "
                "against each other. Give both as numbers or with the same shape, such as (1, 3, 1, 1)."
            ) from error
        if above:
            raise ValueError(
                f"ZBox: low is above high: low={self.low}, high={self.high}. low is the least value an input can "
                "have, high the greatest; were the two swapped?"
            )
        Stabilizer.ensure("ZBox", "stabilizer", self.stabilizer)

    def __repr__(self) -> str:
        return f"ZBox(low={self.low!r}, high={self.high!r}, stabilizer={self.stabilizer!r})"

    def _key(self) -> tuple[object, ...]:
        def plain(value: float | Tensor) -> object:
            return (tuple(value.shape), tuple(value.flatten().tolist())) if isinstance(value, Tensor) else value

        return plain(self.low), plain(self.high), self.stabilizer

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, ZBox) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _bound(self, name: str, a: Tensor, channel_dim: int) -> Tensor:
        value = torch.as_tensor(getattr(self, name)).to(a)
        if value.dim() == 1 and channel_dim != -1 and value.numel() == a.shape[channel_dim]:
            value = value.reshape(-1, *(1,) * (-1 - channel_dim))
        try:
            value.expand_as(a)
        except RuntimeError as error:
            raise ValueError(
                f"ZBox: {name} has shape {tuple(value.shape)}, which does not broadcast to the layer's input of "
                f"shape {tuple(a.shape)}. Give a number, or one value a channel, such as shape (1, 3, 1, 1)."
            ) from error
        return value

    def redistribute(self, layer: Layer, relevance: Tensor) -> Tensor:
        a, weight, linear_map = layer.input, layer.weight, layer.map
        low = self._bound("low", a, linear_map.output_channel_dim)
        high = self._bound("high", a, linear_map.output_channel_dim)
        up, down = weight.clamp(min=0), weight.clamp(max=0)
        stabilize = Stabilizer.ensure("ZBox", "stabilizer", self.stabilizer)
        low_weight = linear_map.per_input_channel(up, low, a)
        high_weight = linear_map.per_input_channel(down, high, a)
        linear = layer.output - layer.bias_like(layer.bias)
        if low_weight is not None and high_weight is not None:
            # One bound a channel: w^+ l + w^- h is one map, of the input's shape alone.
            bounds = low_weight + high_weight
            s = relevance / stabilize(linear - linear_map.forward(_ones(layer), bounds))
            return a * linear_map.transpose(s, a, weight) - linear_map.transpose(s, a, bounds)
        low, high = low.expand_as(a), high.expand_as(a)
        offset = linear_map.forward(low, up) + linear_map.forward(high, down)
        s = relevance / stabilize(linear - offset)
        return (
            a * linear_map.transpose(s, a, weight)
            - low * linear_map.transpose(s, a, up)
            - high * linear_map.transpose(s, a, down)
        )
