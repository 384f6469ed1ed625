"""One executed linear layer under a rule: its tensors, what is known of it, and what its rule is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine.facts import Executed
from lrphooks.layers.layer import Layer, WeightForm
from lrphooks.layers.linear_map import LinearMap, Moved
from lrphooks.rules.filter import TopRelevance
from lrphooks.rules.input import InputRule
from lrphooks.rules.linear_rule import LinearRule
from lrphooks.torch_private import version_of

if TYPE_CHECKING:
    from typing_extensions import Self

    from lrphooks.engine.run import Run


@dataclass(frozen=True, slots=True)
class BatchNormCall:
    """An evaluated BatchNorm that follows a layer: y = scale * z + shift for each channel."""

    eps: float

    def merge(
        self, linear_map: LinearMap, weight: Tensor, bias: Tensor | None, statistics: tuple[Tensor | None, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return weight and bias of the layer with the BatchNorm merged in."""
        mean, variance, gain, offset = statistics
        assert mean is not None and variance is not None
        scale = (variance + self.eps).rsqrt()
        if gain is not None:
            scale = scale * gain
        shift = -mean * scale if bias is None else (bias - mean) * scale
        return linear_map.scaled(weight, scale.to(weight.dtype)), shift if offset is None else shift + offset


@dataclass(slots=True, eq=False)
class RuledLayer(Executed):
    """One executed linear layer under a rule, as its nodes keep it.

    It never changes once made; a frozen class would take three times as long to make.

    tensors: input, weight, bias, and for a merged BatchNorm its mean, variance, gain and offset.
    hooks: the hooks on saved tensors that were in force.
    record: what an observer of the run knows the layer by.
    filtered: the filter that relevance passes before the rule.
    version: that of the input as the layer saw it.
    """

    run: Run
    rule: LinearRule | InputRule
    map: LinearMap
    tensors: tuple[Tensor | None, ...]
    input_nonnegative: bool
    input_link: Callable[[], Tensor | None] | None
    batch_norm: BatchNormCall | None = None
    hooks: Any = None
    record: object = None
    filtered: TopRelevance | None = None
    version: int = 0

    @property
    def merged(self) -> bool:
        """Whether a BatchNorm belongs to it already."""
        return self.batch_norm is not None

    @property
    def intact(self) -> bool:
        """Whether the input is still as the layer saw it, so that further nodes may be set."""
        a = self.tensors[0] if self.tensors else None
        return a is None or version_of(a) == self.version

    def merged_with(self, batch_norm: BatchNormCall, statistics: tuple[Tensor | None, ...]) -> Self:
        """Return the call that stands for this layer and the BatchNorm after it."""
        tensors = (*self.tensors, *statistics)
        told = self.input_nonnegative, self.input_link, batch_norm, self.hooks, self.record, self.filtered, self.version
        return type(self)(self.run, self.rule, self.map, tensors, *told)

    def with_bias(self, bias: Tensor) -> Self:
        """Return the call of this layer, which has no bias, with one that is added to its output."""
        return replace(self, tensors=(*self.tensors[:2], bias))

    def mapped(self, linear_map: LinearMap) -> Self:
        """Return the call with its map in another form."""
        return replace(self, map=linear_map)

    def multiplied(self) -> Self:
        """Return the call with its weight and bias multiplied by the number that its output was."""
        if not isinstance(self.map, Moved) or self.map.number == 1.0:
            return self
        a, weight, bias = self.tensors
        assert weight is not None
        number = self.map.number
        tensors = a, weight * number, None if bias is None else bias * number
        return replace(self, tensors=tensors, map=replace(self.map, number=1.0))

    def bare(self) -> Self:
        """Return the call as its nodes keep it: they save its tensors for backward, which frees them or runs again."""
        told = self.input_nonnegative, None, self.batch_norm, self.hooks, self.record, self.filtered
        return type(self)(self.run, self.rule, self.map, (), *told)

    def parameters(self, tensors: tuple[Tensor | None, ...], *, cached: bool) -> tuple[Tensor, Tensor | None]:
        """Return weight and bias, a BatchNorm merged into them."""
        _, weight, bias, *statistics = tensors
        assert weight is not None
        if self.batch_norm is None:
            return weight, bias
        merge = partial(self.batch_norm.merge, self.map, weight, bias, tuple(statistics))
        return self.run.cache.get("merged", tensors[1:], self.batch_norm.eps, merge) if cached else merge()

    def layer(
        self, output: Tensor | None, tensors: tuple[Tensor | None, ...], *, relu_follows: bool, cached: bool
    ) -> Layer:
        """Return what the rule is told; without an output, it is computed from the tensors, differentiably."""
        a = tensors[0]
        assert a is not None
        weight, bias = self.parameters(tensors, cached=cached)
        if output is None or not self.map.merges:
            # The values of a sum may be infinite, those of its stacked operands are not.
            output = self.map.forward(a, weight, bias)
        forms: dict[tuple[WeightForm, float], Tensor] = {}

        def modified(form: WeightForm, parameter: float) -> Tensor:
            made = weight if form == "plain" else forms.get((form, parameter))
            if made is None:
                make = partial(modified_weight, weight, form, parameter)
                made = self.run.cache.get(form, tensors[1:], parameter, make) if cached else make()
                forms[form, parameter] = made
            return made

        layer = Layer(self.map, a, output, weight, bias, self.input_nonnegative, relu_follows, modified)
        ignores = isinstance(self.rule, LinearRule) and self.rule.bias == "ignore"
        return layer.without_bias(merged=self.merged) if ignores else layer


def modified_weight(weight: Tensor, form: WeightForm, parameter: float) -> Tensor:
    """Return the weight in the form that a route asks for."""
    if form == "absolute":
        return weight.abs()
    if form == "positive":
        return weight.clamp(min=0)
    if form == "negative":
        return weight.clamp(max=0)
    if form == "raised":
        if torch.is_grad_enabled():
            return weight + parameter * weight.clamp(min=0)
        return weight.clamp(min=0).mul_(parameter).add_(weight)
    return weight
