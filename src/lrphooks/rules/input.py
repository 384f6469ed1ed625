"""Rules for first layers, whose relevance does not factor through the input: z-box, w-square, flat.

Here relevance may land where the input is exactly 0, so it is delivered as relevance, not as a modified gradient.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from lrphooks.layers.layer import Layer
from lrphooks.layers.linear_map import General, LinearMap, Moved
from lrphooks.rules.base import LayerRule, Stabilizer, number


@dataclass(frozen=True)
class InputRule(LayerRule):
    """A rule for linear layers that answers with the relevance of the input itself."""

    def check(self, a: Tensor, linear_map: LinearMap) -> None:
        """Raise a ValueError if the rule does not fit the input of a layer."""

    @abstractmethod
    def redistribute(self, layer: Layer, relevance: Tensor) -> Tensor:
        """Return the relevance of the layer's input; a differentiable, pure function of its tensors."""

    @abstractmethod
    def denominators(self, layer: Layer) -> tuple[Tensor, Tensor]:
        """Return the sum of contributions of each output, as it is and stabilized."""


def _ones(layer: Layer) -> Tensor:
    """Return an all-ones input, of batch size 1 if it can be: structural denominators depend on the shape alone."""
    # A weight of many dimensions may have another part for each row, and moves may be told the number of rows.
    alike = not isinstance(layer.map, General | Moved) and layer.input.dim() > -layer.map.output_channel_dim
    return torch.ones_like(layer.input[:1] if alike else layer.input)


@dataclass(frozen=True)
class WSquare(InputRule):
    """The w-square rule, for first layers whose inputs have no bounds.

    Formula: ``R_i = sum_j w_ij^2 / (sum_i' w_i'j^2) R_j``; the bias takes no part.

    References
    ----------
    Montavon et al., "Explaining Nonlinear Classification Decisions with Deep Taylor Decomposition", Pattern
    Recognition 2017.
    """

    stabilizer: float | Stabilizer = 1e-6

    def __post_init__(self) -> None:
        Stabilizer.ensure("WSquare", "stabilizer", self.stabilizer)

    def denominators(self, layer: Layer) -> tuple[Tensor, Tensor]:
        total = layer.map.forward(_ones(layer), layer.weight.square())
        return total, Stabilizer.ensure("WSquare", "stabilizer", self.stabilizer)(total)

    def redistribute(self, layer: Layer, relevance: Tensor) -> Tensor:
        return layer.map.transpose(relevance / self.denominators(layer)[1], layer.input, layer.weight.square())


@dataclass(frozen=True)
class Flat(InputRule):
    """The flat rule: relevance is spread evenly over the inputs that an output is connected to.

    Formula: ``R_i = sum_j 1 / n_j R_j``, over the outputs j that input i is connected to, each with n_j inputs: the
    w-square rule with every weight 1.

    References
    ----------
    Lapuschkin et al., "Unmasking Clever Hans Predictors and Assessing What Machines Really Learn", Nature
    Communications 2019.
    """

    stabilizer: float | Stabilizer = 1e-6

    def __post_init__(self) -> None:
        Stabilizer.ensure("Flat", "stabilizer", self.stabilizer)

    def denominators(self, layer: Layer) -> tuple[Tensor, Tensor]:
        total = layer.map.forward(_ones(layer), torch.ones_like(layer.weight))
        return total, Stabilizer.ensure("Flat", "stabilizer", self.stabilizer)(total)

    def redistribute(self, layer: Layer, relevance: Tensor) -> Tensor:
        ones = torch.ones_like(layer.weight)
        return layer.map.transpose(relevance / self.denominators(layer)[1], layer.input, ones)


class _Bound:
    """A field that holds a number or a tensor, which is copied on its way in and out: no one else can change it."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, rule: ZBox | None, owner: type | None = None) -> float | Tensor:
        if rule is None:
            raise AttributeError(self._name)  # which tells a dataclass that there is no default
        value: float | Tensor = vars(rule)[self._name]
        return value.clone() if isinstance(value, Tensor) else value

    def __set__(self, rule: ZBox, value: float | Tensor) -> None:
        vars(rule)[self._name] = value.detach().clone() if isinstance(value, Tensor) else value


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
    Montavon et al., "Explaining Nonlinear Classification Decisions with Deep Taylor Decomposition", Pattern
    Recognition 2017.
    """

    low: float | Tensor = _Bound()  # type: ignore[assignment]  # a descriptor, without a default
    high: float | Tensor = _Bound()  # type: ignore[assignment]
    stabilizer: float | Stabilizer = 1e-6

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            if not isinstance(value, Tensor):
                number("ZBox", name, value)
            elif not bool(torch.isfinite(value).all()):
                raise ValueError(f"ZBox: {name} must be finite, got {value}.")
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
        def code(value: float | Tensor) -> str:
            return f"torch.tensor({value.tolist()}, dtype={value.dtype})" if isinstance(value, Tensor) else repr(value)

        return f"ZBox(low={code(self.low)}, high={code(self.high)}, stabilizer={self.stabilizer!r})"

    def _key(self) -> tuple[object, ...]:
        def plain(value: float | Tensor) -> object:
            return (tuple(value.shape), tuple(value.flatten().tolist())) if isinstance(value, Tensor) else value

        return plain(self.low), plain(self.high), self.stabilizer

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, ZBox) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _bound(self, name: str, a: Tensor, channel_dim: int) -> Tensor:
        value = torch.as_tensor(getattr(self, name), dtype=a.dtype, device=a.device)
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

    def check(self, a: Tensor, linear_map: LinearMap) -> None:
        for name in ("low", "high"):
            self._bound(name, a, linear_map.output_channel_dim)

    def _bounds(self, layer: Layer) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return both bounds, and w^+ l + w^- h as one weight where they are one value a channel."""
        a, linear_map = layer.input, layer.map
        low = self._bound("low", a, linear_map.output_channel_dim)
        high = self._bound("high", a, linear_map.output_channel_dim)
        low_weight = linear_map.per_input_channel(layer.weight.clamp(min=0), low, a)
        high_weight = linear_map.per_input_channel(layer.weight.clamp(max=0), high, a)
        joint = None if low_weight is None or high_weight is None else low_weight + high_weight
        return low.expand_as(a), high.expand_as(a), joint

    def denominators(self, layer: Layer) -> tuple[Tensor, Tensor]:
        low, high, joint = self._bounds(layer)
        weight, linear_map = layer.weight, layer.map
        if joint is None:
            offset = linear_map.forward(low, weight.clamp(min=0)) + linear_map.forward(high, weight.clamp(max=0))
        else:
            # One bound a channel: the offset is one map, and depends on the input's shape alone.
            offset = linear_map.forward(_ones(layer), joint)
        total = layer.output - layer.bias_like(layer.bias) - offset
        return total, Stabilizer.ensure("ZBox", "stabilizer", self.stabilizer)(total)

    def redistribute(self, layer: Layer, relevance: Tensor) -> Tensor:
        low, high, joint = self._bounds(layer)
        a, weight, transpose = layer.input, layer.weight, layer.map.transpose
        s = relevance / self.denominators(layer)[1]
        if joint is not None:
            return a * transpose(s, a, weight) - transpose(s, a, joint)
        return (
            a * transpose(s, a, weight)
            - low * transpose(s, a, weight.clamp(min=0))
            - high * transpose(s, a, weight.clamp(max=0))
        )
