"""The autograd nodes that redistribute the relevance of one executed layer."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lrphooks.engine.derivatives import spare
from lrphooks.engine.nodes import Node, _sum, absent, alias, per_input, zero_link
from lrphooks.layers.layer import Factor, Layer, Route, WeightForm
from lrphooks.rules.input import InputRule
from lrphooks.rules.linear_rule import LinearRule

if TYPE_CHECKING:
    from lrphooks.engine.ruled_layer import RuledLayer

#: What the output of a guard is: the layer's own in place, or a link.
Guard = Literal["in place", "link"]


class GuardNode(Node):
    """The rule of one executed layer right behind it, which computes all in the backward pass.

    The node saves nothing but the layer's tensors. Its output is the layer's own, written over, or a link, whose
    gradient is relevance itself. ``link_in`` is the link of the layer's input.
    """

    @staticmethod
    def forward(
        ctx: Any, call: RuledLayer, kind: Guard, z: Tensor, link_in: Tensor | None, *tensors: Tensor | None
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.call, ctx.kind = call.bare(), kind
        ctx.save_for_backward(*tensors)
        if kind == "link":
            return zero_link(z)
        ctx.mark_dirty(z)
        return z

    @staticmethod
    def backward(ctx: Any, arrived: Tensor | None) -> tuple[Tensor | None, ...]:
        call: RuledLayer = ctx.call
        if not call.run.passes.relevance:
            return None, None, arrived, *absent(ctx)[3:]
        if arrived is None:
            return absent(ctx)
        gradient, relevance = (None, arrived) if ctx.kind == "link" else (arrived, None)
        need, linked = ctx.needs_input_grad[5:], ctx.needs_input_grad[3]
        link, found = _back(call, gradient, relevance, ctx.saved_tensors, need, relu_follows=False, linked=linked)
        return None, None, None, link, *found


class RuleNode(Node):
    """The rule of one executed layer, between its output and a consumer that is seen.

    Inputs are the output z, the link of the layer's input, and the layer's tensors; the gradient of the second
    output is relevance itself, if that may arrive. In a relevance pass the layer's input receives all, and z nothing.
    """

    @staticmethod
    def forward(
        ctx: Any,
        call: RuledLayer,
        relu_follows: bool,
        in_place: bool,
        z: Tensor,
        link_in: Tensor | None,
        *tensors: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        ctx.call, ctx.relu_follows = call.bare(), relu_follows
        if in_place:
            ctx.mark_dirty(z)
        if isinstance(call.rule, InputRule):
            ctx.modified = {}
            ctx.save_for_backward(z.clone(), *tensors)
        else:
            layer = call.layer(z, tensors, relu_follows=relu_follows, cached=True)
            factors = call.rule.factors(layer)
            ctx.forms = tuple((factor.routes, factor.split, factor.shift) for factor in factors)
            ctx.modified = _modified_weights(layer, call, tuple(factor.routes for factor in factors))
            ctx.save_for_backward(*(factor.values for factor in factors), *tensors)
        return z if in_place else alias(z), zero_link(z) if call.run.linked else None

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, relevance: Tensor | None = None) -> tuple[Tensor | None, ...]:
        call: RuledLayer = ctx.call
        nothing: tuple[Tensor | None, ...] = absent(ctx)[5:]
        if not call.run.passes.relevance:
            return None, None, None, gradient, None, *nothing
        if gradient is None and relevance is None:
            return absent(ctx)
        # Unpacked once: a checkpoint hands out each saved tensor a single time.
        saved = ctx.saved_tensors
        count = len(saved) - len(nothing)
        factors, tensors = saved[:count], saved[count:]
        need, linked, follows = ctx.needs_input_grad[6:], ctx.needs_input_grad[4], ctx.relu_follows
        if isinstance(call.rule, InputRule) or relevance is not None or torch.is_grad_enabled():
            z = None if torch.is_grad_enabled() or not isinstance(call.rule, InputRule) else factors[0]
            link, found = _back(call, gradient, relevance, tensors, need, relu_follows=follows, linked=linked, z=z)
            return None, None, None, None, link, *found
        assert gradient is not None
        others = _of_parameters(call, gradient, None, tensors, need, relu_follows=follows)
        kept = [Factor(values, *form) for values, form in zip(factors, ctx.forms, strict=True)]
        return None, None, None, None, None, _returned(call, tensors[0], gradient, kept, ctx.modified), *others


def _back(
    call: RuledLayer,
    gradient: Tensor | None,
    relevance: Tensor | None,
    tensors: tuple[Any, ...],
    need: tuple[bool, ...],
    *,
    relu_follows: bool,
    linked: bool,
    z: Tensor | None = None,
) -> tuple[Tensor | None, tuple[Tensor | None, ...]]:
    """Return what a rule gives the link of the input, and the tensors, all computed again but z where it is given."""
    others = _of_parameters(call, gradient, relevance, tensors, need, relu_follows=relu_follows)
    if isinstance(call.rule, InputRule):
        delivered = _delivered(call, gradient, relevance, z, tensors)
        # Without a way to deliver relevance itself, what falls on exact zeros is lost.
        return (delivered, (None, *others)) if linked else (None, (per_input(delivered, tensors[0]), *others))
    shares, modified = _anew(call, gradient, relevance, tensors, relu_follows=relu_follows)
    return None, (_distribute(call, tensors[0], shares, modified), *others)


def _of_parameters(
    call: RuledLayer,
    gradient: Tensor | None,
    relevance: Tensor | None,
    tensors: tuple[Any, ...],
    needed: tuple[bool, ...],
    *,
    relu_follows: bool,
) -> tuple[Tensor | None, ...]:
    """Return the gradients of all tensors but the input, if asked: each sum of contributions with its share."""
    if not call.run.parameters:
        return (None,) * len(needed)
    with torch.enable_grad():
        local = [t.detach().requires_grad_() if need else t for t, need in zip(tensors[1:], needed, strict=True)]
        layer = call.layer(None, (tensors[0].detach(), *local), relu_follows=relu_follows, cached=False)
        total = _sum(None if gradient is None else gradient * layer.value.detach(), relevance)
        assert total is not None
        if isinstance(call.rule, InputRule):
            contributions, stabilized = call.rule.denominators(layer)
            sums = [(contributions.expand_as(total), total / stabilized.detach())]
        else:
            terms = call.rule.terms(layer)
            sums = [(term.total, total * term.share / term.stabilized().detach()) for term in terms]
        wanted = [t for t, need in zip(local, needed, strict=True) if need]
        # Those that hold no parameter, as under the flat rule, give it nothing.
        sums = [pair for pair in sums if pair[0].requires_grad]
        outputs, shares = [pair[0] for pair in sums], [pair[1] for pair in sums]
        found = iter(torch.autograd.grad(outputs, wanted, shares, allow_unused=True) if sums else ())
    return tuple(next(found, None) if need else None for need in needed)


def _delivered(
    call: RuledLayer, gradient: Tensor | None, relevance: Tensor | None, z: Tensor | None, tensors: tuple[Any, ...]
) -> Tensor:
    """Return the relevance that a rule for first layers gives the input."""
    assert isinstance(call.rule, InputRule)
    layer = call.layer(z, tensors, relu_follows=False, cached=z is not None)
    total = _sum(None if gradient is None else gradient * layer.output, relevance)
    assert total is not None
    return call.rule.redistribute(layer, total)


def _anew(
    call: RuledLayer,
    gradient: Tensor | None,
    relevance: Tensor | None,
    tensors: tuple[Any, ...],
    *,
    relu_follows: bool,
) -> tuple[list[tuple[Tensor, Tensor, tuple[Route, ...]]], dict[WeightForm, Tensor]]:
    """Return shares and weights computed again: for relevance to be differentiated, or that arrives as such."""
    assert isinstance(call.rule, LinearRule)
    layer = call.layer(None, tensors, relu_follows=relu_follows, cached=False)
    total = _sum(None if gradient is None else gradient * layer.value, relevance)
    assert total is not None
    terms = call.rule.terms(layer)
    shares = [(total / term.denominator(), layer.output, term.routes) for term in terms]
    return shares, _modified_weights(layer, call, tuple(term.routes for term in terms))


def by_weight(gradient: Tensor, kept: Iterable[Factor]) -> dict[WeightForm, tuple[Tensor, float]]:
    """Return what goes back through the weight in each form, and the number that it is still to be multiplied by."""
    parts: dict[WeightForm, tuple[Tensor, float]] = {}
    for factor in chain.from_iterable((each,) if each.split is None else each.split(each.values) for each in kept):
        product = factor.times(gradient)
        one_sign = any(route.signed for route in factor.routes)
        for route in factor.routes:
            # A factor of the sign of the output leaves the gradient its sign where only its size counts.
            part = torch.copysign(product, gradient) if one_sign and not route.signed else product
            if route.weight in parts:
                before, scale = parts[route.weight]
                parts[route.weight] = torch.add(before * scale, part, alpha=route.scale), 1.0
            else:
                parts[route.weight] = part, route.scale
    return parts


def _returned(
    call: RuledLayer,
    a: Tensor,
    gradient: Tensor,
    kept: Iterable[Factor],
    modified: dict[WeightForm, Tensor],
) -> Tensor | None:
    """Return the modified gradient at the layer's input, from kept factors and without autograd."""
    direct: Tensor | None = None
    parts = by_weight(gradient, kept)
    # What comes after the first is scaled, and given its signs, as it is added, which costs nothing.
    for form, (part, scale) in sorted(parts.items(), key=lambda item: (item[1][1] != 1.0, item[0] == "absolute")):
        grad, signs = _transposed(call, form, part, a, modified), _signs(call, form, a)
        if direct is None:
            direct = grad if signs is None else torch.mul(grad, signs, out=spare(signs, grad))
            direct = direct if scale == 1.0 else direct * scale
        elif signs is None:
            direct = torch.add(direct, grad, alpha=scale, out=spare(direct, grad))
        else:
            direct = torch.addcmul(direct, grad, signs, value=scale, out=spare(direct, grad))
    return direct


def _signs(call: RuledLayer, form: WeightForm, a: Tensor) -> Tensor | None:
    """Return the signs of the input if what comes back through the weight in a form is to be multiplied by them."""
    return a.sign() if form == "absolute" and not call.input_nonnegative else None


def _transposed(
    call: RuledLayer, form: WeightForm, part: Tensor, a: Tensor, modified: dict[WeightForm, Tensor]
) -> Tensor:
    """Return the part sent back through the weight in one form, but for the signs of the input."""
    if form != "agreeing":
        return call.map.transpose(part, a, modified[form])
    up, down = (call.map.transpose(part, a, modified[way]) for way in ("positive", "negative"))
    if torch.is_grad_enabled() or a.device.type != "cpu":
        return torch.where(a < 0, down, up)
    # Exact for weights of 0 and 1; torch.where takes several times as long on a CPU, and masks too.
    return torch.lerp(up, down, torch.lt(a, 0, out=torch.empty_like(a, dtype=up.dtype)), out=spare(up, down))


def _modified_weights(
    layer: Layer, call: RuledLayer, routes: tuple[tuple[Route, ...], ...]
) -> dict[WeightForm, Tensor]:
    """Return the weights that the backward pass sends relevance through."""
    parameter = call.rule.raise_by if isinstance(call.rule, LinearRule) else 0.0
    forms: set[WeightForm] = {route.weight for each in routes for route in each}
    if "agreeing" in forms:
        forms = forms - {"agreeing"} | {"positive", "negative"}
    return {form: layer.modified(form, parameter if form == "raised" else 0.0) for form in forms}


def _distribute(
    call: RuledLayer,
    a: Tensor,
    shares: list[tuple[Tensor, Tensor, tuple[Route, ...]]],
    modified: dict[WeightForm, Tensor],
) -> Tensor | None:
    """Return the modified gradient at the layer's input."""
    sums: dict[WeightForm, Tensor] = {}
    for amount, sign, routes in shares:
        for route in routes:
            part = amount * route.scale if route.scale != 1.0 else amount
            if route.signed:
                part = torch.where(sign < 0, -part, part)
            sums[route.weight] = sums[route.weight] + part if route.weight in sums else part
    direct: Tensor | None = None
    for form, total in sums.items():
        grad, signs = _transposed(call, form, total, a, modified), _signs(call, form, a)
        direct = _sum(direct, grad if signs is None else grad * signs)
    return direct
