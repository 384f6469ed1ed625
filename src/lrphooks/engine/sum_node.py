"""The epsilon rule of a layer whose output z goes into a sum alone, as in a residual block: z is kept by nobody.

Where autograd keeps the sum (a normalisation does) and the other summand, or what that is made of, z is their
difference, and the rule keeps nothing of its own. The sum is known before its consumer is, so the rule counts on
one that keeps it, and otherwise is set anew, with a copy of z.

A difference has the rounding of the sum in it, half a unit in its last place: a part of z that had no effect either. In
types of fewer digits than float32 that is too much.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import notes
from lrphooks.engine.call import Call
from lrphooks.engine.epsilon_node import Moved, share_of
from lrphooks.engine.layer_call import saving_hooks
from lrphooks.engine.nodes import Node, TwinNode, absent, zero_link
from lrphooks.rules.operation import Gradient
from lrphooks.torch_private import hooks_of, preserve_version, version_of

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


@dataclass(frozen=True, slots=True)
class Again:
    """How a tensor can be had again in the backward pass, from tensors that autograd keeps until then.

    function: makes it of them; None where it is kept itself. hooks: the hooks on saved tensors that were in force.
    """

    hooks: Any
    function: Callable[..., Tensor] | None = None
    tensors: tuple[Tensor | None, ...] = ()
    versions: tuple[int, ...] = ()

    @classmethod
    def of(cls, hooks: Any, function: Callable[..., Tensor], *tensors: Tensor | None) -> Again:
        """Return the way to make a tensor of others again."""
        return cls(hooks, function, tensors, _versions(tensors))

    @property
    def holds(self) -> bool:
        """Whether none of the tensors was overwritten since."""
        return self.versions == _versions(self.tensors)

    def make(self) -> Tensor:
        """Return the tensor."""
        assert self.function is not None
        return self.function(*self.tensors)


def _versions(tensors: tuple[Tensor | None, ...]) -> tuple[int, ...]:
    return tuple(version_of(t) for t in tensors if t is not None)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


class SumNode(Node):
    """The sum z + y of a layer's output z under the epsilon rule and another tensor y, set on its value in place.

    ``kept`` is a copy of z; where it is None, z is the sum less y, which is made again.
    """

    @staticmethod
    def forward(
        ctx: Any, run: Run, shift: float, again: Again, total: Tensor, z: Tensor, y: Tensor, kept: Tensor | None
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.mark_dirty(total)
        ctx.run, ctx.shift, ctx.remake = run, shift, again.function if kept is None else None
        ctx.save_for_backward(*((total, *again.tensors) if kept is None else (kept,)))
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        if not ctx.run.passes.relevance:
            return None, None, None, None, gradient, gradient, None
        z, *tensors = ctx.saved_tensors
        if ctx.remake is not None:
            z = z - ctx.remake(*tensors)
        return None, None, None, None, share_of(gradient, z, ctx.shift), gradient, None


@dataclass(slots=True)
class Summed:
    """A sum that waits for its consumer: links to the layer's output z and the other summand y, and how to have that.

    kept: whether a consumer was seen that keeps it; then only a write to it changes what stands for z.
    """

    shift: float
    z: Tensor
    y: Tensor
    again: Again
    kept: bool = False

    @property
    def hooks(self) -> Any:
        """The hooks on saved tensors that were in force."""
        return self.again.hooks

    def settle(self, run: Run, total: Tensor, *, kept: bool) -> None:
        """Decide what stands for z, now that it is known whether the consumer keeps the sum for its derivative."""
        # Whoever asks for the gradient at the sum itself is to get it; and what was overwritten, autograd reports.
        if not kept and self.again.holds and not (total.retains_grad or hooks_of(total)):
            # Nothing leads to the node that counted on a consumer, which would be held, and the sum with it.
            with torch.no_grad():
                z = total - self.again.make()
            z = TwinNode.apply((z,), self.z)
            with preserve_version(total):
                total.detach_()
                SumNode.apply(run, self.shift, self.again, total, self.z, self.y, z)
            notes.write(total, run, moved=None, again=None)
            return
        self.kept = True
        notes.write(total, run, again=Again(self.hooks))


@dataclass(frozen=True, slots=True)
class Summands:
    """What a call adds: a layer's output z that waits for its consumer, and y, which can be had again."""

    z: Tensor
    y: Tensor
    moved: Moved
    again: Again


def summands(run: Run, call: Call) -> Summands | None:
    """Return what a call adds if z can be had again as a difference, else None."""
    if call.operation.name != "add" or call.writes_in_place or call.kwargs or len(call.args) != 2:
        return None
    first, second = call.args
    if len(call.dependent) != 2 or first is second or first.shape != second.shape or run.plan.rules_sums:
        return None
    if first.dtype != second.dtype or first.dtype not in (torch.float32, torch.float64):
        return None
    hooks = saving_hooks()
    for z, y in ((first, second), (second, first)):
        note, other = notes.read(z, run), notes.read(y, run)
        moved = None if note is None else note.moved
        if other is not None and isinstance(other.moved, Moved) and other.moved.shared is not None:
            # A consumer that keeps it saw it with its rule.
            other = notes.read(other.moved.shared, run)
        again = None if other is None else other.again
        if not isinstance(moved, Moved) or again is None or z.retains_grad or hooks_of(z):
            continue
        if moved.hooks == again.hooks == hooks and again.holds and isinstance(run.rule(call), Gradient):
            return Summands(z, y, moved, again)
    return None


def kept_sum(run: Run, call: Call, found: Summands) -> Tensor:
    """Add the two, counting on a consumer that keeps the sum."""
    y, again, shift = found.y, found.again, found.moved.origin.shift
    if again.function is None:
        again = Again.of(again.hooks, _itself, y)
    with torch.no_grad():
        total = call.invoke()
    raw = found.moved.raw
    out: Tensor = SumNode.apply(run, shift, again, total, raw, y, None)
    # The model may overwrite y, and with it its place in the graph; and neither is to be held.
    to_z, to_y = (TwinNode.apply((zero_link(t),), t) for t in (raw, y))
    notes.write(out, run, moved=Summed(shift, to_z, to_y, again))
    return out
