"""What a rule is told of one executed linear layer, and the terms in which it answers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from lrphooks.layers.linear_map import LinearMap

WeightForm = Literal["plain", "absolute", "positive", "raised"]


@dataclass(frozen=True)
class Route:
    """One way for relevance through a layer: back through the weight in a given form, times ``scale``.

    ``plain`` is the layer's own weight, served by the gradient that autograd computes anyway. ``absolute`` is
    ``sign(a) * |w|^T``. ``positive`` is the positive part of the weight and ``raised`` is ``w + gamma * w^+``,
    both for inputs that are not negative. With ``signed`` the scale carries the sign of the output.
    """

    weight: WeightForm
    scale: float
    signed: bool = False


@dataclass(frozen=True)
class Term:
    """The share ``z / denominator`` of the relevance, and the routes that carry it to the input."""

    denominator: Tensor
    routes: tuple[Route, ...]


@dataclass(frozen=True)
class Layer:
    """One executed linear layer: z = map(input, weight) + bias, a following BatchNorm merged into the weight.

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

    def apply(self, form: WeightForm, parameter: float = 0.0) -> Tensor:
        """Return the map of the input with the weight in another form, without bias (|a| for ``absolute``)."""
        a = self.input
        if form == "absolute" and not self.input_nonnegative:
            a = a.abs()
        return self.map.forward(a, self.modified(form, parameter))

    def bias_like(self, values: Tensor | None) -> Tensor | float:
        """Return a value for each output channel, shaped to broadcast against the output."""
        if values is None:
            return 0.0
        trailing = -1 - self.map.output_channel_dim
        return values.reshape(-1, *(1,) * trailing)
