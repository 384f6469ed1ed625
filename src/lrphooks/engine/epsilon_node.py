"""The epsilon rule of a linear layer, right behind it: a share of the gradient, element by element.

The rule is the gradient times z / (z + s sign z), so nothing of the layer but its output z takes part, and the rest of
the way is the layer's own gradient. So it holds for whatever made z, and for whoever consumes it.

The node keeps z itself, which costs nothing where a consumer keeps it too. What the model is about to overwrite is
copied first.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import facts
from lrphooks.engine.derivatives import spare
from lrphooks.engine.nodes import Node, absent
from lrphooks.engine.tensor_hooks import asked
from lrphooks.layers.linear_map import Moved
from lrphooks.rules.factors import share_of_sizes
from lrphooks.torch_private import base_of, preserve_version

if TYPE_CHECKING:
    from lrphooks.engine.passes import Passes
    from lrphooks.engine.run import Run
    from lrphooks.layers.linear_map import LinearMap
    from lrphooks.rules.linear import Epsilon


@dataclass(slots=True)
class Share:
    """The rule of one node.

    kept: a copy of z where the model overwrote that. moved: another node stands in its place, and it hands on all.
    """

    passes: Passes
    rule: Epsilon
    kept: Tensor | None = None
    moved: bool = False


class EpsilonNode(Node):
    """The output z of a layer as its consumers see it; with a ``target``, set on that in place, and z is a copy."""

    @staticmethod
    def forward(ctx: Any, share: Share, z: Tensor, target: Tensor | None = None) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.share = share
        ctx.save_for_backward(z)
        if target is not None:
            ctx.mark_dirty(target)
            return target
        # Not a view for autograd, which the model could not write to.
        return z.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        share: Share = ctx.share
        if gradient is None:
            return absent(ctx)
        found = gradient
        if share.passes.relevance and not share.moved:
            found = share_of(gradient, ctx.saved_tensors[0] if share.kept is None else share.kept, share.rule)
        # A target is what the gradient goes to, where there is one.
        return (None, None, found) if ctx.needs_input_grad[2:] == (True,) else (None, found, None)


def share_of(gradient: Tensor, z: Tensor, rule: Epsilon) -> Tensor:
    """Return G z / stabilize(z), differentiable where grad mode is on."""
    shift = rule.shift(z.dtype)
    if shift is None or torch.is_grad_enabled():
        return gradient * z / rule.stabilize(z)
    sizes = z.abs()
    return share_of_sizes(sizes, shift, out=sizes).times(gradient, out=spare(sizes, gradient))


@dataclass(slots=True, eq=False)
class EpsilonCall(facts.Executed):
    """An executed layer under the epsilon rule, for what belongs to it, and for who overwrites its output.

    output: in the graph before the rule. hooks: the hooks on saved tensors that were in force. batch_normed:
    whether a BatchNorm belongs to it already.
    """

    run: Run
    rule: Epsilon
    map: LinearMap
    output: Tensor
    share: Share
    hooks: Any
    batch_normed: bool = False

    @property
    def merged(self) -> bool:
        """Whether a BatchNorm belongs to it already."""
        return self.batch_normed

    def mapped(self, linear_map: LinearMap) -> EpsilonCall:
        """Return the call with its map in another form."""
        return replace(self, map=linear_map)

    def overwritten(self, *, used: bool) -> None:
        """Prepare for an output that the model writes to; ``used`` if something consumed it before."""
        if used:
            self.share.kept = self.output.clone()
        else:
            self.share.moved = True

    def multiplied(self) -> EpsilonCall:
        """Return the call: its output tells all."""
        return self

    def way_for_relevance(self, _: Tensor) -> None:
        """Nothing travels as relevance itself where a layer is under this node."""

    @classmethod
    def guard(cls, run: Run, rule: Epsilon, linear_map: LinearMap, z: Tensor, *told: Any) -> Tensor:
        """Return the output z of a layer as its consumers are to see it."""
        share = Share(run.passes, rule)
        out: Tensor = EpsilonNode.apply(share, z)
        facts.write(out, run, layer=cls(run, rule, linear_map, z, share, *told))
        return out

    @property
    def before(self) -> Tensor:
        """The output before the rule, moved as the one behind it was."""
        return self.map.done(self.output) if isinstance(self.map, Moved) else self.output

    def joined(self, output: Tensor, *, merged: bool = False) -> Tensor:
        """Return the output of the layer and what belongs to it, which goes back past the rule of the layer alone."""
        return self.guard(self.run, self.rule, self.map, output, self.hooks, merged)


def keep(run: Run, target: Tensor) -> None:
    """Copy what the rule of a layer needs of its output, which the model is about to write to, maybe through a view."""
    base = base_of(target)
    out = target if base is None else base
    note = facts.read(out, run)
    if note is None or not isinstance(note.layer, EpsilonCall) or isinstance(note.layer.map, Moved):
        return
    layer = note.layer
    copy = layer.output.clone()
    share = Share(run.passes, layer.rule)
    if note.ruled or asked(out):
        # Something consumed it before, or asks for the gradient at it, by the node that it has.
        layer.share.kept = copy
    else:
        layer.share.moved = True
        with preserve_version(out):
            EpsilonNode.apply(share, copy, out)
    facts.write(out, run, layer=replace(layer, output=copy, share=share), ruled=True)
