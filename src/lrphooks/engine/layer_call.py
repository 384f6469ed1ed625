"""Ruled linear layers: from the executed call to the node that redistributes its relevance.

A node right behind the layer (the *guard*) holds the rule whatever consumes the output, and computes all it needs in
the backward pass. A consumer that the engine sees gets a node of its own on top, with what the consumer tells: a
BatchNorm is merged into the weight, a ReLU lets negative outputs receive nothing. Both are read off the executed
operations, so they hold for any model. That node does its work in the forward pass and answers to the layer's input
directly, past the guard, which then serves only what the engine cannot see.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import facts
from lrphooks.engine.ending import saving_tensors_themselves
from lrphooks.engine.filter_node import FilterNode
from lrphooks.engine.rule_node import GuardNode, RuleNode
from lrphooks.layers.layer import Layer, WeightForm
from lrphooks.layers.linear_map import LinearMap, Moved
from lrphooks.rules.filter import TopRelevance
from lrphooks.rules.input import InputRule
from lrphooks.rules.linear import LinearRule
from lrphooks.torch_private import dispatch_modes, preserve_version, top_saved_tensors_hooks, version_of

if TYPE_CHECKING:
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
class LayerCall:
    """One executed linear layer under a rule.

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

    def merged_with(self, batch_norm: BatchNormCall, statistics: tuple[Tensor | None, ...]) -> LayerCall:
        """Return the call that stands for this layer and the BatchNorm after it."""
        tensors = (*self.tensors, *statistics)
        told = self.input_nonnegative, self.input_link, batch_norm, self.hooks, self.record, self.filtered, self.version
        return LayerCall(self.run, self.rule, self.map, tensors, *told)

    def with_bias(self, bias: Tensor) -> LayerCall:
        """Return the call of this layer, which has no bias, with one that is added to its output."""
        return replace(self, tensors=(*self.tensors[:2], bias))

    def mapped(self, linear_map: LinearMap) -> LayerCall:
        """Return the call with its map in another form."""
        return replace(self, map=linear_map)

    def multiplied(self) -> LayerCall:
        """Return the call with its weight and bias multiplied by the number that its output was."""
        if not isinstance(self.map, Moved) or self.map.number == 1.0:
            return self
        a, weight, bias = self.tensors
        assert weight is not None
        number = self.map.number
        tensors = a, weight * number, None if bias is None else bias * number
        return replace(self, tensors=tensors, map=replace(self.map, number=1.0))

    def bare(self) -> LayerCall:
        """Return the call as its nodes keep it: they save its tensors for backward, which frees them or runs again."""
        told = self.input_nonnegative, None, self.batch_norm, self.hooks, self.record, self.filtered
        return LayerCall(self.run, self.rule, self.map, (), *told)

    def guard(self, output: Tensor) -> Tensor:
        """Set the rule on the output for consumers that cannot be seen, and note the layer for those that can."""
        link_in = self._link_in()
        # A selective checkpoint takes a tensor that it keeps for changed where the node is set in place.
        with preserve_version(output) if dispatch_modes() else nullcontext():
            out: Tensor = GuardNode.apply(self, "in place", output, link_in, *self.tensors)
        if self.filtered is not None:
            out, _ = FilterNode.apply(self.run.passes, self.filtered, True, out, None)
        facts.write(out, self.run, layer=self, ruled=False)
        self._tell(out, None, linked=link_in is not None)
        return out

    def way_for_relevance(self, output: Tensor) -> Callable[[], Tensor | None] | None:
        """Return what makes the link of the output, where the rule is not set for a consumer that is seen."""
        return partial(self.link, output.shape, output.dtype) if self.filtered is None else None

    def bypassed(self, output: Tensor) -> Tensor:
        """Return the output of a layer whose gradient is right already.

        Relevance itself, which an output of 0 cannot carry as a gradient, needs a way on demand.
        """
        facts.write(output, self.run, link=partial(self.link, output.shape, output.dtype))
        self._tell(output, None)
        return output

    def _link_in(self) -> Tensor | None:
        """Return the link of the input, for a rule that hands on relevance itself."""
        if self.input_link is None or not isinstance(self.rule, InputRule):
            return None
        link_in = self.input_link()
        if link_in is not None and self.record is not None and self.run.observer is not None:
            link_in = self.run.observer.probe(self.run, link_in, as_relevance=True)
        return link_in

    def leave(self, output: Tensor) -> None:
        """Leave the rule to the guard, for whoever asked for the gradient at the output itself."""
        link = self.way_for_relevance(output) if self.run.linked else None
        facts.write(output, self.run, ruled=True, link=link)

    def settle(self, output: Tensor, *, relu_follows: bool = False, in_place: bool = True) -> Tensor:
        """Set the rule's node on the output and return the tensor to consume (the output itself if in place)."""
        link_in = self._link_in()
        # The data stays as it is, so whoever saved the output before may go on using it.
        with self._outside_of_later_hooks(), preserve_version(output):
            ruled, link = RuleNode.apply(self, relu_follows, in_place, output, link_in, *self.tensors)
            if self.filtered is not None:
                ruled, link = FilterNode.apply(self.run.passes, self.filtered, in_place, ruled, link)
        facts.write(ruled, self.run, layer=self, ruled=True, link=None if link is None else lambda: link)
        self._tell(ruled, link, relu_follows=relu_follows, linked=link_in is not None)
        return ruled  # type: ignore[no-any-return]

    def link(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return a link to the output of a layer whose rule has no node in front of the guard."""
        a = self.tensors[0]
        assert a is not None
        output = a.detach().new_zeros((), dtype=dtype).expand(shape)
        link_in = self._link_in()
        with self._outside_of_later_hooks():
            out: Tensor = GuardNode.apply(self, "link", output, link_in, *self.tensors)
        self._tell(None, out, linked=link_in is not None)
        return out

    def _tell(
        self, output: Tensor | None, link: Tensor | None, *, relu_follows: bool = False, linked: bool = False
    ) -> None:
        if self.record is not None and self.run.observer is not None:
            self.run.observer.layer(self, output, link, relu_follows=relu_follows, linked=linked)

    def _outside_of_later_hooks(self) -> AbstractContextManager[Any]:
        """Keep the node's tensors from hooks that came after the layer, such as a checkpoint that starts behind it.

        What the checkpoint runs again does not contain the layer, so it must not hold the layer's tensors either.
        """
        if saving_hooks() == self.hooks:
            return nullcontext()
        return saving_tensors_themselves()

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

        return Layer(self.map, a, output, weight, bias, self.input_nonnegative, relu_follows, modified)


def saving_hooks() -> Any:
    """Return the hooks on saved tensors that are in force, to be compared with those of another time."""
    return top_saved_tensors_hooks(True)


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
