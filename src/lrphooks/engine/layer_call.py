"""Ruled linear layers: from the executed call to the node that redistributes its relevance.

The rule of a layer waits for the operation that consumes the layer's output. A BatchNorm is merged into the weight,
a ReLU tells that negative outputs receive nothing; both are read off the executed operations, so they hold for any
model. The node is then set in front of the consumer, on the output tensor itself.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from lrphooks.engine import notes
from lrphooks.engine.nodes import _sum, per_input, zero_link
from lrphooks.layers.layer import Layer, Route, Term, WeightForm
from lrphooks.layers.linear_map import LinearMap
from lrphooks.rules.input import InputRule
from lrphooks.rules.linear import LinearRule

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


@dataclass(slots=True)
class Fate:
    """What became of a layer's output; shared by all that stands for the layer.

    settled: its rule was set in front of a consumer. kept: someone keeps the output, so nothing may write to it.
    """

    settled: bool = False
    kept: bool = False


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One executed linear layer under a rule.

    tensors: input, weight, bias, and for a merged BatchNorm its mean, variance, gain and offset.
    through_output: whether the plain weight is served by the autograd graph behind the output.
    """

    run: Run
    rule: LinearRule | InputRule
    map: LinearMap
    tensors: tuple[Tensor | None, ...]
    input_nonnegative: bool
    input_link: Callable[[], Tensor | None] | None
    batch_norm: BatchNormCall | None = None
    hooks: Any = None
    through_output: bool = True
    settled: bool = False
    fate: Fate = field(default_factory=Fate)

    def merged_with(self, batch_norm: BatchNormCall, statistics: tuple[Tensor | None, ...]) -> LayerCall:
        """Return the call that stands for this layer and the BatchNorm after it."""
        # A layer whose own rule is already set in front of another consumer hides its plain gradient.
        return replace(
            self,
            tensors=(*self.tensors, *statistics),
            batch_norm=batch_norm,
            through_output=not self.settled,
            settled=False,
            fate=Fate(),
        )

    def settle(self, output: Tensor, *, relu_follows: bool = False, in_place: bool = True) -> Tensor:
        """Set the rule's node on the output and return the tensor to consume (the output itself if in place)."""
        self.fate.settled = True
        link_in = None
        if self.input_link is not None and isinstance(self.rule, InputRule):
            link_in = self.input_link()
        with self._outside_of_later_hooks():
            ruled, link = RuleNode.apply(self, relu_follows, in_place, output, link_in, *self.tensors)
        notes.write(ruled, self.run, pending=None, settled=replace(self, settled=True), link=lambda: link)
        return ruled  # type: ignore[no-any-return]

    def _outside_of_later_hooks(self) -> AbstractContextManager[Any]:
        """Keep the node's tensors from hooks that came after the layer, such as a checkpoint that starts behind it.

        What the checkpoint runs again does not contain the layer, so it must not hold the layer's tensors either.
        """
        if saving_hooks() == self.hooks:
            return nullcontext()
        return torch.autograd.graph.saved_tensors_hooks(_as_it_is, _as_it_is)

    def layer(
        self, output: Tensor | None, tensors: tuple[Tensor | None, ...], *, relu_follows: bool, cached: bool
    ) -> Layer:
        """Return what the rule is told; without an output, it is computed from the tensors, differentiably."""
        a, weight, bias, *statistics = tensors
        assert a is not None and weight is not None
        if self.batch_norm is not None:
            merge = partial(self.batch_norm.merge, self.map, weight, bias, tuple(statistics))
            key = ("merged", weight, bias, *statistics)
            weight, bias = self.run.cache.get(key, self.batch_norm.eps, merge) if cached else merge()
        if output is None:
            output = self.map.forward(a, weight, bias)
        forms: dict[tuple[WeightForm, float], Tensor] = {}

        def modified(form: WeightForm, parameter: float) -> Tensor:
            made = forms.get((form, parameter))
            if made is None:
                make = partial(modified_weight, weight, form, parameter)
                key = (form, *tensors[1:])
                made = self.run.cache.get(key, parameter, make) if cached else make()
                forms[form, parameter] = made
            return made

        return Layer(self.map, a, output, weight, bias, self.input_nonnegative, relu_follows, modified)


def saving_hooks() -> Any:
    """Return the hooks on saved tensors that are in force, to be compared with those of another time."""
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def modified_weight(weight: Tensor, form: WeightForm, parameter: float) -> Tensor:
    """Return the weight in the form that a route asks for."""
    if form == "absolute":
        return weight.abs()
    if form == "positive":
        return weight.clamp(min=0)
    if form == "raised":
        return weight + parameter * weight.clamp(min=0)
    return weight


class RuleNode(Function):
    """The rule of one executed layer, between its output and what consumes it.

    Inputs are the output z, the link of the layer's input, and the layer's tensors; the gradient of the second
    output is relevance itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: LayerCall,
        relu_follows: bool,
        in_place: bool,
        z: Tensor,
        link_in: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.call, ctx.relu_follows = call, relu_follows
        if in_place:
            ctx.mark_dirty(z)
        layer = call.layer(z, tensors, relu_follows=relu_follows, cached=True)
        if isinstance(call.rule, InputRule):
            ctx.modified = {}
            ctx.save_for_backward(z.clone(), *tensors)
        else:
            terms = call.rule.terms(layer)
            ctx.routes = tuple(term.routes for term in terms)
            ctx.modified = _modified_weights(layer, call, terms)
            factors = [_factor(z, term) for term in terms]
            ctx.save_for_backward(*factors, *tensors)
        return z if in_place else z.view_as(z), zero_link(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, relevance: Tensor | None) -> tuple[Tensor | None, ...]:
        call: LayerCall = ctx.call
        unused = (None, None, None)
        if not call.run.passes.relevance:
            return *unused, gradient, None, *(None for _ in call.tensors)
        if gradient is None and relevance is None:
            return *unused, None, None, *(None for _ in call.tensors)
        # Unpacked once: a checkpoint hands out each saved tensor a single time.
        saved = ctx.saved_tensors
        count = len(saved) - len(call.tensors)
        factors, tensors = saved[:count], saved[count:]
        a = tensors[0]
        if isinstance(call.rule, InputRule):
            z = None if torch.is_grad_enabled() else factors[0]
            delivered = _delivered(call, gradient, relevance, z, tensors)
            if ctx.needs_input_grad[4]:
                return *unused, None, delivered, *(None for _ in tensors)
            # Without a way to deliver relevance itself, what falls on exact zeros is lost.
            return *unused, None, None, per_input(delivered, a), *(None for _ in tensors[1:])
        if torch.is_grad_enabled() or relevance is not None:
            shares, modified = _anew(call, gradient, relevance, tensors, relu_follows=ctx.relu_follows)
        else:
            assert gradient is not None
            modified = ctx.modified
            shares = []
            for factor, routes in zip(factors, ctx.routes, strict=True):
                signed = any(route.signed for route in routes)
                shares.append((gradient * (factor.abs() if signed else factor), factor, routes))
        through, direct = _distribute(call, a, shares, modified)
        return *unused, through, None, direct, *(None for _ in tensors[1:])


class GuardNode(Function):
    """The rule of a layer whose output was consumed where the engine cannot see, as by an autograd function.

    Once the rule is set in front of a consumer, this node only hands the gradient on.
    """

    @staticmethod
    def forward(ctx: Any, call: LayerCall, z: Tensor, *tensors: Tensor | None) -> Tensor:
        ctx.mark_dirty(z)
        ctx.call = call
        ctx.save_for_backward(*tensors)
        return z

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        call: LayerCall = ctx.call
        if call.fate.settled or not call.run.passes.relevance:
            return None, gradient, *(None for _ in call.tensors)
        tensors = ctx.saved_tensors
        if isinstance(call.rule, InputRule):
            delivered = _delivered(call, gradient, None, None, tensors)
            return None, None, per_input(delivered, tensors[0]), *(None for _ in tensors[1:])
        shares, modified = _anew(call, gradient, None, tensors, relu_follows=False)
        through, direct = _distribute(call, tensors[0], shares, modified)
        return None, through, direct, *(None for _ in tensors[1:])


def behind_hooks(tensor: Tensor) -> LayerCall | None:
    """Return the layer whose output a module's backward hook wrapped, or None.

    torch passes what goes through such a module through a node of its own, out of sight of the function mode.
    """
    node = tensor.grad_fn
    if node is None or type(node).__name__ != "BackwardHookFunctionBackward":
        return None
    calls = [source.call for source, _ in node.next_functions if type(source).__name__ == "GuardNodeBackward"]  # type: ignore[union-attr]
    return calls[0] if len(calls) == 1 else None


def _delivered(
    call: LayerCall, gradient: Tensor | None, relevance: Tensor | None, z: Tensor | None, tensors: tuple[Any, ...]
) -> Tensor:
    """Return the relevance that a rule for first layers gives the input."""
    assert isinstance(call.rule, InputRule)
    layer = call.layer(z, tensors, relu_follows=False, cached=z is not None)
    total = _sum(None if gradient is None else gradient * layer.output, relevance)
    assert total is not None
    return call.rule.redistribute(layer, total)


def _anew(
    call: LayerCall,
    gradient: Tensor | None,
    relevance: Tensor | None,
    tensors: tuple[Any, ...],
    *,
    relu_follows: bool,
) -> tuple[list[tuple[Tensor, Tensor, tuple[Route, ...]]], dict[WeightForm, Tensor]]:
    """Return shares and weights computed again: for relevance to be differentiated, or that arrives as such."""
    assert isinstance(call.rule, LinearRule)
    layer = call.layer(None, tensors, relu_follows=relu_follows, cached=False)
    total = _sum(None if gradient is None else gradient * layer.output, relevance)
    assert total is not None
    terms = call.rule.terms(layer)
    shares = [(total / term.denominator(), layer.output, term.routes) for term in terms]
    return shares, _modified_weights(layer, call, terms)


def _factor(z: Tensor, term: Term) -> Tensor:
    """Return z / denominator; where a route is signed, with the sign of z (the quotient itself is not negative)."""
    factor = z / term.denominator()
    if any(route.signed for route in term.routes):
        factor = torch.copysign(factor, z)
    return factor


def _modified_weights(layer: Layer, call: LayerCall, terms: tuple[Term, ...]) -> dict[WeightForm, Tensor]:
    """Return the weights that the backward pass sends relevance through, beside the plain one behind the output."""
    parameter = call.rule.raise_by if isinstance(call.rule, LinearRule) else 0.0
    forms: set[WeightForm] = {route.weight for term in terms for route in term.routes}
    if call.through_output:
        forms.discard("plain")
    return {form: layer.modified(form, parameter if form == "raised" else 0.0) for form in forms}


def _distribute(
    call: LayerCall,
    a: Tensor,
    shares: list[tuple[Tensor, Tensor, tuple[Route, ...]]],
    modified: dict[WeightForm, Tensor],
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradient at the output (for the plain weight behind it) and at the input (for all others)."""
    sums: dict[WeightForm, Tensor] = {}
    for share, sign, routes in shares:
        for route in routes:
            part = share * route.scale if route.scale != 1.0 else share
            if route.signed:
                part = torch.where(sign < 0, -part, part)
            sums[route.weight] = sums[route.weight] + part if route.weight in sums else part
    through = sums.pop("plain", None) if call.through_output else None
    direct: Tensor | None = None
    for form, total in sums.items():
        grad = call.map.transpose(total, a, modified[form])
        if form == "absolute" and not call.input_nonnegative:
            grad = grad * a.sign()
        direct = _sum(direct, grad)
    return through, direct
