"""What a rule is told of one executed linear layer, and the terms in which it answers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from lrphooks.layers.linear_map import LinearMap

#: A difference below this many units in the last place of what it is made of is rounding, and truly 0.
_ULPS = 4.0

WeightForm = Literal["plain", "absolute", "positive", "negative", "agreeing", "raised"]


@dataclass(frozen=True)
class Route:
    """One way for relevance through a layer: back through the weight in a given form, times ``scale``.

    ``plain`` is the layer's own weight, served by the gradient that autograd computes anyway. ``absolute`` is
    ``sign(a) * |w|^T``. ``agreeing`` is ``(w^+)^T`` where a is positive and ``(w^-)^T`` where it is negative, by the
    forms ``positive`` and ``negative`` of the weight. Each of these alone and ``raised``, ``w + gamma * w^+``, are
    for inputs that are not negative. With ``signed`` the scale carries the sign of the output.
    """

    weight: WeightForm
    scale: float
    signed: bool = False


@dataclass(frozen=True)
class Term:
    """One sum of contributions, which takes a share of the relevance and returns it by its routes.

    total: the sum D, bias included; contribution c of it receives ``share * R * c / stabilize(D)``.
    routes: how the contributions of the inputs go back; their scales include the share.
    stabilize: keeps D away from zero; None divides by D itself.
    bias: the part of D that is bias.
    share: the share of R that is distributed over D; those of all terms add up to 1.
    empty: where no input contributes, so that what a division would return is only rounding; None for nowhere.
    """

    total: Tensor
    routes: tuple[Route, ...]
    stabilize: Callable[[Tensor], Tensor] | None = None
    bias: Tensor | float = 0.0
    share: float = 1.0
    empty: Tensor | None = None

    def stabilized(self) -> Tensor:
        """Return the stabilized D."""
        return self.total if self.stabilize is None else self.stabilize(self.total)

    def denominator(self) -> Tensor:
        """Return the stabilized D, infinite where nothing contributes."""
        denominator = self.stabilized()
        if self.empty is None:
            return denominator
        return torch.where(self.empty, torch.full_like(denominator, math.inf), denominator)


@dataclass(frozen=True)
class Factor:
    """What the modified gradient is multiplied by before it takes its routes, for each output.

    Where a route is signed, the values have the sign of the output; the factor of the other routes is their size.
    Values from which several factors follow are kept as one: ``split`` makes the factors of them. With a ``shift`` s
    the factor is 1 - s / values, which one operation applies.
    """

    values: Tensor
    routes: tuple[Route, ...]
    split: Callable[[Tensor], tuple[Factor, ...]] | None = None
    shift: float = 0.0

    def times(self, gradient: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the modified gradient times the factor."""
        if self.shift:
            return torch.addcdiv(gradient, gradient, self.values, value=-self.shift, out=out)
        return torch.mul(gradient, self.values, out=out)

    @classmethod
    def of(cls, layer: Layer, term: Term) -> tuple[Factor, ...]:
        """Return z / D for a term; the quotient of a signed one is not negative, so it has room for the sign.

        Where z has a bias that the rule is not told of, it may be negative, and what is signed is a factor of its own.
        """
        values = layer.value / term.denominator()
        signed = tuple(replace(route, signed=False) for route in term.routes if route.signed)
        if not signed:
            return (cls(values, term.routes),)
        if layer.value is layer.output:
            return (cls(torch.copysign(values, layer.output), term.routes),)
        plain = tuple(route for route in term.routes if not route.signed)
        return cls(values, plain), cls(torch.where(layer.output < 0, -values, values), signed)


@dataclass(frozen=True)
class Layer:
    """One executed linear layer: z = map(input, weight) + bias, a following BatchNorm merged into the weight.

    A rule that ignores biases is told of none: ``output`` is z without it, and ``given`` z itself, by which relevance
    counts.

    ``input_nonnegative`` and ``relu_follows`` are what the engine knows for certain from the operations that
    made the input and consume the output; False means unknown.
    """

    map: LinearMap
    input: Tensor
    output: Tensor
    weight: Tensor
    bias: Tensor | None
    input_nonnegative: bool
    relu_follows: bool
    modified: Callable[[WeightForm, float], Tensor]
    given: Tensor | None = None

    @property
    def value(self) -> Tensor:
        """What the layer returned, so that its relevance is ``value * G``."""
        return self.output if self.given is None else self.given

    def without_bias(self, *, merged: bool) -> Layer:
        """Return the layer as a rule sees it that ignores biases; ``merged`` tells that one is a BatchNorm's shift.

        Where no input contributes, what is left of z is 0, and not what rounding made of it. That of a BatchNorm is
        in units of its own statistics, so there the map runs once more.
        """
        if self.bias is None:
            return self
        if merged:
            return replace(self, output=self.map.forward(self.input, self.weight), bias=None, given=self.output)
        bias = torch.as_tensor(self.bias_like(self.bias))
        left = self.output - bias
        noise = (self.output.abs() + bias.abs()) * (_ULPS * torch.finfo(left.dtype).eps)
        left = torch.where(left.abs() > noise, left, torch.zeros_like(left))
        return replace(self, output=left, bias=None, given=self.output)

    def apply(self, form: WeightForm, parameter: float = 0.0, bias: Tensor | None = None) -> Tensor:
        """Return the map of the input with the weight in another form (|a| for ``absolute``), plus ``bias``."""
        a = self.input
        if form == "absolute" and not self.input_nonnegative:
            a = a.abs()
        return self.map.forward(a, self.modified(form, parameter), bias)

    def offset(self, values: Tensor | None, shift: float) -> Tensor:
        """Return a value for each output channel plus a constant, as a bias."""
        if values is not None:
            return values + shift
        channels = self.output.shape[self.map.output_channel_dim :][:1]
        return self.output.new_full(channels, shift)

    def bias_like(self, values: Tensor | None) -> Tensor | float:
        """Return a value for each output channel, shaped to broadcast against the output."""
        if values is None:
            return 0.0
        trailing = -1 - self.map.output_channel_dim
        return values.reshape(-1, *(1,) * trailing)
