"""The epsilon rule of a layer as a share of the gradient, for consumers that are seen.

With a constant stabilizer the rule is the gradient times z / (z + s sign z), element by element. So it may stand
wherever the elements of the output have been moved to, and keeps nothing but them: the rest of the way is the plain
gradient of what was moved and of the layer. Behind a product with a number c, the stabilizer is |c| s. Where the
consumer keeps the same memory anyway, it costs none; elsewhere the node keeps a copy, since the model may overwrite
what no other operation keeps. A convolution, whose gradient keeps its input anyway, has its own node there.

The node's way back goes around the guard of the layer: along the same moves, of the output as it was before it.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import notes
from lrphooks.engine.call import Call
from lrphooks.engine.consumers import factor, in_one_batch
from lrphooks.engine.derivatives import spare
from lrphooks.engine.nodes import Node, TwinNode, absent, zero_link
from lrphooks.operations.names import SHAPED_BY_ANOTHER
from lrphooks.rules.factors import share_of_sizes
from lrphooks.torch_private import is_view, preserve_version, share_memory

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


class EpsilonNode(Node):
    """The output z of a layer, or a part of it, as one consumer is to see it.

    ``held`` is z in a tuple, which autograd looks past; ``raw`` is z in the graph; ``kept`` is a copy of it, or None
    where the consumer keeps z too, which then cannot be overwritten. With a target, the node is set on that in place.
    """

    @staticmethod
    def forward(
        ctx: Any,
        run: Run,
        shift: float,
        held: tuple[Tensor],
        raw: Tensor,
        kept: Tensor | None,
        target: Tensor | None = None,
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.run, ctx.shift = run, shift
        if target is not None:
            ctx.mark_dirty(target)
            ctx.save_for_backward(kept)
            return target
        # Not a view for autograd, whose base would keep the guard and the layer's input alive.
        out = held[0].detach()
        ctx.save_for_backward(out if kept is None else kept)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        if not ctx.run.passes.relevance:
            return None, None, None, gradient, None, None
        (z,) = ctx.saved_tensors
        return None, None, None, share_of(gradient, z, ctx.shift), None, None


def share_of(gradient: Tensor, z: Tensor, shift: float) -> Tensor:
    """Return G z / (z + s sign z), differentiable where grad mode is on."""
    if torch.is_grad_enabled():
        signed = torch.where(z < 0, torch.full_like(z, -shift), torch.full_like(z, shift))
        return gradient * z / (z + signed)
    sizes = z.abs()
    share = share_of_sizes(sizes, shift, out=sizes)
    return share.times(gradient, out=spare(sizes, gradient))


@dataclass(slots=True)
class Origin:
    """The output of a layer, or a copy of it that was laid out anew, in the graph before the layer's guard.

    shift: what the stabilizer adds to the size of every element.
    hooks: the hooks on saved tensors that were in force.
    lean: whether it is cheaper than the layer's own node also for a consumer that keeps nothing.
    kept: a copy, made when the first consumer needs one.
    """

    shift: float
    raw: Tensor
    hooks: Any
    lean: bool
    kept: Tensor | None = None


@dataclass(slots=True)
class Moved:
    """Elements of a layer's output that wait for a consumer: where they come from, and how they were moved since.

    source, move: what was moved last, and how; None for the origin itself.
    shared, own: what consumers see that keep the elements themselves, and others.
    """

    origin: Origin
    source: Moved | None = None
    move: Callable[[Any], Any] | None = None
    shared: Tensor | None = None
    own: Tensor | None = None
    _raw: Any = None

    @property
    def hooks(self) -> Any:
        """The hooks on saved tensors that were in force."""
        return self.origin.hooks

    @property
    def lean(self) -> bool:
        """Whether the node on these elements is the best for a consumer that keeps nothing."""
        return self.origin.lean or self.source is not None

    @property
    def raw(self) -> Any:
        """The elements in the graph before the layer's guard, where what moved together is moved back together."""
        if self.source is None or self.move is None:
            return self.origin.raw
        if self._raw is None:
            self._raw = self.move(self.source.raw)
        return self._raw

    def unguarded(self, tensor: Tensor) -> Tensor:
        """Return the tensor that holds the elements, so that autograd knows if it is overwritten, without the guard."""
        out: Tensor = TwinNode.apply((tensor.detach(),), self.raw)
        return out

    def along(self, tensor: Tensor) -> Any:
        """Return the elements of another tensor of the origin's shape, moved alike."""
        return tensor if self.source is None or self.move is None else self.move(self.source.along(tensor))

    def settle(self, run: Run, tensor: Tensor, *, shared: bool) -> Tensor:
        """Return the tensor as its consumer is to see it; ``shared`` if the consumer keeps it for its derivative."""
        origin = self.origin
        if self.own is not None:
            return self.own
        if shared:
            if self.shared is None:
                self.shared = EpsilonNode.apply(run, origin.shift, (tensor,), self.raw, None)
            return self.shared
        # Also if another consumer keeps the elements: relevance may not come back by that one.
        self.own = EpsilonNode.apply(run, origin.shift, (tensor,), *self._copied())
        return self.own

    def settle_in_place(self, run: Run, tensor: Tensor) -> None:
        """Set the node on the tensor itself, for a consumer that may write to it or hand it on."""
        raw, kept = self._copied()
        with preserve_version(tensor):
            # Else the guard, and the layer's input with it, would be held for nothing.
            tensor.detach_()
            EpsilonNode.apply(run, self.origin.shift, (tensor,), raw, kept, tensor)
        notes.write(tensor, run, moved=None)

    def _copied(self) -> tuple[Tensor, Tensor]:
        """Return the elements in the graph before the guard, and a copy of them."""
        origin, raw = self.origin, self.raw
        if origin.kept is None and 2 * raw.numel() < origin.raw.numel():
            # Such as the query alone, where one layer makes query, key and value.
            return raw, raw.clone()
        origin.kept = origin.raw.clone() if origin.kept is None else origin.kept
        return raw, self.along(origin.kept)

    def in_one_batch(self, tensor: Tensor) -> tuple[Moved, Tensor]:
        """Return the elements laid out as a product of batches of matrices keeps them, and where these come from."""
        with torch.no_grad():
            laid = in_one_batch(tensor)
        if share_memory(laid, tensor):
            return self, tensor
        raw = TwinNode.apply((laid,), self.raw)
        return Moved(Origin(self.origin.shift, raw, self.hooks, lean=True)), laid

    def follow(self, run: Run, call: Call, out: Any) -> None:
        """Note on the results of a move, or of a product with a number, where their elements come from."""
        source = call.dependent[0]
        if (number := factor(call)) is not None:
            shift, least = abs(number) * self.origin.shift, torch.finfo(out.dtype).tiny
            # Beyond, the dtype has no such number, and the guard serves it.
            if least <= shift <= 1 / least:
                self._note_copy(run, out, self.raw, shift, number)
            return
        moved = Moved(self.origin, self, call.over([source]))
        if isinstance(out, Tensor):
            if out is not source:
                moved._note(run, call, out)
        elif isinstance(out, list | tuple):
            for i, part in enumerate(out):
                Moved(self.origin, moved, itemgetter(i))._note(run, call, part)

    def _note(self, run: Run, call: Call, out: Tensor) -> None:
        raw = self.origin.raw
        # Complex numbers have no sign.
        if torch.promote_types(out.dtype, raw.dtype) != out.dtype or out.is_complex():
            return
        if not is_view(out):
            # Only the way back is wanted, so what is moved is as small as can be.
            link = TwinNode.apply((zero_link(raw).detach(),), raw)
            self._note_copy(run, out, self.along(link), self.origin.shift)
        elif not _told_by_tensors(call):
            notes.write(out, run, moved=self)

    def _note_copy(self, run: Run, out: Tensor, twin: Tensor, shift: float, number: float = 1.0) -> None:
        """Note on a copy that a consumer may keep its memory in place of that of the layer's output."""
        raw = TwinNode.apply((out.detach(),), twin, number)
        notes.write(out, run, moved=Moved(Origin(shift, raw, self.hooks, lean=True)))


def _told_by_tensors(call: Call) -> bool:
    """Whether tensors tell what a call takes, as in z[:, i]: the model may write to them before the view is moved."""
    if call.operation.name in SHAPED_BY_ANOTHER:
        return False
    told = [value for value in (*call.args, *call.kwargs.values()) if value is not call.dependent[0]]
    while told:
        value = told.pop()
        if isinstance(value, Tensor):
            return True
        if isinstance(value, list | tuple):
            told += value
        elif isinstance(value, slice):
            told += value.start, value.stop, value.step
    return False
