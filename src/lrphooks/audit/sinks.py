"""What each operation absorbs, from its own formula: a second book, kept apart from the nodes that move relevance.

Every formula starts from the values of the forward pass and the modified gradient G at the outputs, and uses torch's
plain derivatives where it needs any. What the engine really handed to the operands takes no part, so a node that hands
on the wrong amount shows as relevance that nothing explains.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import ReferenceType, ref

import torch
from torch import Tensor

from lrphooks.engine.bounds import bounds_of
from lrphooks.engine.call import Call, replace_tensors, tensors_in
from lrphooks.engine.facts import Attached
from lrphooks.engine.handlers.normalizing import POSITIONS
from lrphooks.engine.handlers.products import denominator_of
from lrphooks.engine.serving import ELEMENTWISE_SELECT
from lrphooks.rules.base import Rule
from lrphooks.rules.input import InputRule
from lrphooks.rules.linear_rule import LinearRule
from lrphooks.rules.operation import (
    Constant,
    DeconvReLU,
    Gradient,
    GuidedReLU,
    Identity,
    Normalize,
    OperationRule,
    Pass,
)
from lrphooks.torch_private import version_of

if TYPE_CHECKING:
    from lrphooks.engine.layer_call import LayerCall

#: Under this name a tensor has the copy of its values.
_COPY = "_lrphooks_copy"

#: Amounts of relevance by what absorbed them.
Sinks = dict[str, float]


@dataclass(slots=True)
class _Copy(Attached):
    """The values of one tensor at one version."""

    of: ReferenceType[Tensor]
    version: int
    values: Tensor


def copy_of(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor's values, one for all who ask until the data changes."""
    held = tensor.__dict__.get(_COPY)
    version = version_of(tensor)
    if not isinstance(held, _Copy) or held.version != version or held.of() is not tensor:
        held = _Copy(ref(tensor), version, tensor.detach().clone())
        setattr(tensor, _COPY, held)
    return held.values


def dot(values: Tensor, gradient: Tensor | None) -> float:
    """Return the sum of a * G in double precision; where G is 0 nothing arrives, whatever the value.

    Nor does it where a softmax of logits that are all masked has no derivative: there G is no number, and a not finite.
    If such a G went on from there, it would meet values that are.
    """
    if gradient is None:
        return 0.0
    wide = torch.complex128 if values.is_complex() or gradient.is_complex() else torch.float64
    values, gradient = values.detach().to(wide), gradient.detach().to(wide)
    product = (values.conj() * gradient).real if wide.is_complex else values * gradient
    nothing = (gradient == 0) | (gradient.isnan() & ~values.isfinite())
    return float(torch.where(nothing, torch.zeros_like(product), product).sum())


def layer_sinks(
    layer: LayerCall, gradient: Tensor | None, relevance: Tensor | None, *, relu_follows: bool, linked: bool
) -> Sinks:
    """Return what a ruled linear layer absorbs: its bias, its stabilizer, and what falls on inputs that are 0."""
    if isinstance(layer.rule, LinearRule) and layer.rule.is_gradient and relevance is None and layer.filtered is None:
        bias = layer.tensors[2]
        if bias is None or gradient is None:
            return {}
        trailing = -1 - layer.map.output_channel_dim
        return {"bias": dot(bias.reshape(-1, *(1,) * trailing).expand_as(gradient), gradient)}
    executed = layer.layer(None, layer.tensors, relu_follows=relu_follows, cached=False)
    total = torch.zeros_like(executed.output)
    total = total if gradient is None else total + gradient * executed.value
    total = total if relevance is None else total + relevance
    dropped: Sinks = {}
    if layer.filtered is not None:
        kept = layer.filtered.kept(total)
        dropped["filtered"] = dot(1 - kept, total)
        total = total * kept
    if isinstance(layer.rule, InputRule):
        contributions, stabilized = layer.rule.denominators(executed)
        sinks = {**dropped, "stabilizer": dot(1 - contributions / stabilized, total)}
        if not linked:
            delivered = layer.rule.redistribute(executed, total)
            sinks["zeros"] = float(delivered[executed.input == 0].double().sum())
        return sinks
    sinks = {**dropped, "bias": 0.0, "stabilizer": 0.0}
    for term in layer.rule.terms(executed):
        share = total * term.share / term.stabilized()
        bias = term.bias if isinstance(term.bias, Tensor) else torch.full_like(share, term.bias)
        sinks["bias"] += dot(bias.expand_as(share), share)
        sinks["stabilizer"] += float((total * term.share - share * term.total).double().sum())
    return sinks


@dataclass(eq=False)
class Seen:
    """An executed call with the values that its operands had, and what came back to its results.

    carriers: copies of the operands through which relevance flows.
    """

    call: Call
    rule: Rule
    carriers: tuple[Tensor, ...]
    outputs: Sequence[Tensor] = ()
    gradients: Sequence[Tensor | None] = ()

    @classmethod
    def of(cls, call: Call, rule: Rule) -> Seen:
        """Return a call that is about to run."""
        change: dict[int, Tensor] = {}
        target = call.args[0] if call.operation.in_place and call.args else None
        for tensor in tensors_in((call.args, call.kwargs)):
            carries = any(tensor is t for t in call.dependent)
            # What the call overwrites must be kept; other constants may be shared.
            change[id(tensor)] = copy_of(tensor) if carries or tensor is target else tensor.detach()
        args, kwargs = replace_tensors(call.args, change), replace_tensors(call.kwargs, change)
        carriers = tuple({id(t): change[id(t)] for t in call.dependent}.values())
        return cls(Call(call.operation, call.function, args, kwargs, list(carriers)), rule, carriers)

    @property
    def arriving(self) -> float:
        """The relevance that arrives at the results."""
        return sum(dot(z, g) for z, g in zip(self.outputs, self.gradients, strict=True))

    def contributions(self, operands: Sequence[Tensor] | None = None) -> list[float]:
        """Return a * (dz/da)^T G for each carrier (or the given operands), by torch's derivative of the operation."""
        sources = self.carriers if operands is None else operands
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in sources]
            change = {id(t): leaf for t, leaf in zip(sources, leaves, strict=True)}
            args, kwargs = replace_tensors(self.call.args, change), replace_tensors(self.call.kwargs, change)
            if self.call.writes_in_place and args:
                args = (args[0].clone(), *args[1:])
            out = self.call.function(*args, **kwargs)
            made = tensors_in((args[0] if self.call.operation.in_place else out,))
            # What has nothing to do may return its operand.
            results = [t for t in made if t.requires_grad and (not t.is_leaf or any(t is leaf for leaf in leaves))]
            pairs = [(z, g.to(z.dtype)) for z, g in zip(results, self.gradients, strict=True) if g is not None]
            if not pairs:
                return [0.0] * len(leaves)
            outputs, seeds = zip(*pairs, strict=True)
            grads = torch.autograd.grad(outputs, leaves, seeds, allow_unused=True)
        return [dot(leaf, grad) for leaf, grad in zip(leaves, grads, strict=True)]


def operation_sinks(seen: Seen, *, unruled: bool = False) -> Sinks:
    """Return what an operation other than a ruled layer absorbs, by what absorbed it."""
    if all(g is None for g in seen.gradients):
        return {}
    kind, rule = seen.call.operation.kind, seen.rule
    if isinstance(rule, OperationRule):
        return {"rule": seen.arriving - _by_own_rule(rule, seen)}
    if isinstance(rule, Constant) and kind not in ("moments", "attention"):
        return {"rule": seen.arriving}
    if unruled or (isinstance(rule, Gradient) and kind in _NONLINEAR):
        return {"unruled" if unruled else "rule": seen.arriving - sum(seen.contributions())}
    formula = _FORMULAS.get(kind)
    return {} if formula is None else formula(seen)


def _by_own_rule(rule: OperationRule, seen: Seen) -> float:
    """Return what a rule of the user's own hands to all operands."""
    (gradient,), (output,) = seen.gradients, seen.outputs
    assert gradient is not None
    operands = tuple({id(a): a for a in seen.carriers}.values())
    with torch.no_grad():
        found = rule.modified_gradients(gradient, output, operands)
    return sum(dot(a, g) for a, g in zip(operands, found, strict=True))


#: Where the plain gradient does not conserve by itself, so that asking for it makes a difference.
_NONLINEAR = (
    "product", "added product", "division", "power", "activation", "clamp", "gate", "constant", "shift", "attention",
    "normalization", "batch norm", "moments",
)  # fmt: skip


def _sum(seen: Seen) -> Sinks:
    """What is added to the operands, or written beside them."""
    return {"constants": seen.arriving - sum(seen.contributions())}


def _softmax(seen: Seen) -> Sinks:
    """The plain gradient: what a first-order expansion at the logits leaves over."""
    return {"softmax offset": seen.arriving - sum(seen.contributions())}


def _selection(seen: Seen) -> Sinks:
    """What is selected from beside the operands: a bound, a filling."""
    if isinstance(seen.rule, Identity | Pass) and seen.call.operation.name in ELEMENTWISE_SELECT:
        return _identity(seen)
    return {"constants": seen.arriving - sum(seen.contributions())}


def _clipped(seen: Seen) -> Sinks:
    """A lower bound above 0 and an upper one below it are constants where they win."""
    bounds = bounds_of(seen.call)
    if bounds is None:
        return _selection(seen)
    if isinstance(seen.rule, Pass):
        return _identity(seen)
    low, high = (torch.as_tensor(inf if b is None else b) for b, inf in zip(bounds, (-math.inf, math.inf), strict=True))
    a, z = seen.carriers[0], seen.outputs[0]
    beyond = ((low > 0) & (a < low)) | ((high < 0) & (a > high))
    return {"constants": dot(torch.where(beyond, z, torch.zeros_like(z)), seen.gradients[0])}


def _rectified(seen: Seen) -> Sinks:
    gradient = seen.gradients[0]
    if gradient is None or not isinstance(seen.rule, GuidedReLU | DeconvReLU):
        return {}
    a, kept = seen.carriers[0], gradient.clamp(min=0)
    return {"rule": seen.arriving - dot(a, kept * (a > 0) if isinstance(seen.rule, GuidedReLU) else kept)}


def _identity(seen: Seen) -> Sinks:
    """All stays with a; where a is 0, a modified gradient cannot carry it."""
    a, z = seen.carriers[0], seen.outputs[0]
    return {"zeros": dot(torch.where(a == 0, z, torch.zeros_like(z)), seen.gradients[0])} if a.shape == z.shape else {}


def _shift(seen: Seen) -> Sinks:
    return {"constants": dot(seen.outputs[0] - seen.carriers[0], seen.gradients[0])}


def _product(seen: Seen) -> Sinks:
    """A product is linear in each factor, so shares that add up to 1 hand on all; a weight that samples is constant."""
    name = seen.call.operation.name
    bias = seen.call.argument(3, "bias") if name == "bilinear" else None
    if isinstance(bias, Tensor) and not any(bias is t for t in seen.carriers):
        return {"bias": dot(bias.expand_as(seen.outputs[0]), seen.gradients[0])}
    if name not in ("grid_sample", "lerp"):
        return {}
    weight = seen.call.argument(2, "weight") if name == "lerp" else seen.call.argument(1, "grid")
    return {"constants": seen.arriving - sum(seen.contributions([t for t in seen.carriers if t is not weight]))}


def _added(seen: Seen) -> Sinks:
    """The summand takes its own part; the product, linear in each factor, the rest."""
    summand = seen.call.argument(0, "input")
    if not isinstance(summand, Tensor) or any(summand is t for t in seen.carriers):
        return {}
    return {"constants": seen.arriving - seen.contributions(seen.carriers[:1])[0]}


def _quotient(seen: Seen) -> Sinks:
    denominator = seen.call.argument(*denominator_of(seen.call))
    numerators = [t for t in seen.carriers if t is not denominator]
    return {"constants": seen.arriving - sum(seen.contributions(numerators))} if numerators else {}


def _attention(seen: Seen) -> Sinks:
    """The weights of the values receive one half, which q and k share as far as their logits reach, or nothing."""
    call, names = seen.call, ("query", "key", "value", "attn_mask")
    operands = [call.argument(i, n) for i, n in enumerate(names)]
    carries = [any(t is c for c in seen.carriers) for t in operands]
    # Each position for itself: the same tensor may stand for several.
    copies = tuple(t.clone() if isinstance(t, Tensor) else t for t in operands)
    rest = {k: v for k, v in call.kwargs.items() if k not in names}
    apart = Call(call.operation, call.function, (*copies, *call.args[4:]), rest)
    carriers = tuple(t for t, carried in zip(copies, carries, strict=True) if carried)
    alone = iter(Seen(apart, seen.rule, carriers, seen.outputs, seen.gradients).contributions())
    q, k, v, mask = (next(alone) if carried else 0.0 for carried in carries)
    if isinstance(seen.rule, Constant):
        # The weights are constant, so the values take all.
        return {"rule": seen.arriving - v}
    half = 1.0 / ((carries[0] or carries[1] or carries[3]) + carries[2])
    return {"softmax offset": seen.arriving - half * (v + mask + (q + k) / max(1, carries[0] + carries[1]))}


def _normalized(seen: Seen) -> Sinks:
    """A centred and scaled input, and the shift."""
    position = POSITIONS[seen.call.operation.name][1]
    bias = None if position is None else seen.call.argument(position, "bias")
    if bias is None or not isinstance(seen.rule, Normalize):
        return {}
    z = seen.outputs[0]
    trailing = seen.call.operation.name in ("layer_norm", "rms_norm")
    shaped = bias if trailing else bias.reshape(1, -1, *(1,) * (z.dim() - 2))
    return {"bias": dot(shaped.expand_as(z), seen.gradients[0])}


def _batch_normalized(seen: Seen) -> Sinks:
    """With fixed statistics, a factor and a shift."""
    training = seen.call.argument(5, "training", default=False)
    return _normalized(seen) if training else {"bias": seen.arriving - sum(seen.contributions(seen.carriers[:1]))}


def _computed_layer(seen: Seen) -> Sinks:
    """A layer whose weight is computed from the input is a product, linear in each factor, and a summand."""
    bias = seen.call.argument(2, "bias")
    carried = [t for t in seen.carriers if t is bias]
    factors = [t for t in seen.carriers if t is not bias][:1]
    return {"bias": seen.arriving - sum(seen.contributions([*factors, *carried]))}


_FORMULAS: dict[str, Callable[[Seen], Sinks]] = {
    "combination": _sum,
    "softmax": _softmax,
    "select": _selection,
    "clamp": _clipped,
    "relu": _rectified,
    "activation": _identity,
    "power": _identity,
    "constant": _identity,
    "shift": _shift,
    "product": _product,
    "added product": _added,
    "division": _quotient,
    "attention": _attention,
    "normalization": _normalized,
    "batch norm": _batch_normalized,
    "linear": _computed_layer,
}
