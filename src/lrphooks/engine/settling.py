"""When a layer's rule is set: as its output is consumed, with what the consumer tells."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import notes
from lrphooks.engine.call import Call
from lrphooks.engine.consumers import Way, multiplies_batches, takes_share, way
from lrphooks.engine.epsilon_node import Moved
from lrphooks.engine.layer_call import LayerCall, saving_hooks
from lrphooks.engine.sum_node import Summed, summands
from lrphooks.engine.tensor_hooks import asked
from lrphooks.rules.operation import Constant, Gradient, Identity, Pass
from lrphooks.torch_private import hooks_of

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

#: Kinds of operations that hand nothing back under the rule Constant.
_STOPPABLE = frozenset(("activation", "constant", "power", "softmax", "relu"))


def settled(run: Run, tensor: Tensor) -> Tensor:
    """Return the tensor with the rule of the layer that made it set for consumers of any kind."""
    note = notes.read(tensor, run)
    moved = None if note is None else note.moved
    if isinstance(moved, Summed):
        _settle_sum(run, tensor, moved, "")
        return tensor
    if moved is not None and moved.hooks == saving_hooks() and _by_itself(note, moved) and not asked(tensor):
        return moved.settle(run, tensor, shared=False)
    return _ruled(run, tensor)


def _by_itself(note: notes.Note | None, moved: Moved) -> bool:
    """Whether a node on the elements is to serve a consumer that keeps nothing, in place of the layer's own node."""
    return moved.lean or note is None or note.layer is None or not note.layer.intact


def _settle_sum(run: Run, total: Tensor, summed: Summed, how: Way) -> None:
    """Settle a sum for a consumer of a kind, unless one was seen that keeps it."""
    # A checkpoint that began behind the sum keeps it, and it stays as it is.
    if not summed.kept:
        summed.settle(run, total, kept=how == "keeps" or summed.hooks != saving_hooks())


def _ruled(run: Run, tensor: Tensor) -> Tensor:
    """Return the tensor with the node of the layer that made it set on it, in place if it can be."""
    note = notes.read(tensor, run)
    if note is None or note.layer is None or note.ruled or not note.layer.intact:
        # What the layer keeps for what cannot be seen tells autograd if its input was overwritten.
        return tensor
    if asked(tensor):
        note.layer.leave(tensor)
        return tensor
    if note.layer.hooks != saving_hooks() or note.kept:
        # A checkpoint began behind the layer and keeps its output, which must stay as it is from now on.
        notes.write(tensor, run, kept=True)
        return note.layer.settle(tensor, in_place=False)
    return note.layer.settle(tensor)


def settle(run: Run, call: Call, waiting: list[Tensor]) -> Call:
    """Set the rules of the layers that made the operands, now that their consumer is known."""
    if call.operation.kind in _STOPPABLE and isinstance(run.rule(call), Constant):
        # Nothing comes back to what goes into a constant.
        return call
    change: dict[int, Tensor] = {}
    followed = call.operation.name in ("relu", "relu6") and isinstance(run.rule(call), Gradient | Identity | Pass)
    for tensor in waiting:
        note = notes.read(tensor, run)
        if note is None:
            continue
        if note.moved is not None and _by_elements(run, call, tensor, note.moved, change):
            continue
        layer = note.layer
        if layer is None or note.ruled or not layer.intact:
            continue
        if asked(tensor):
            layer.leave(tensor)
        elif followed and layer.input_nonnegative and not call.writes_in_place and layer.filtered is None:
            # Other consumers may see negative values, so this one gets a node of its own.
            change[id(tensor)] = layer.settle(tensor, relu_follows=True, in_place=False)
        elif followed and call.writes_in_place:
            layer.settle(tensor, relu_follows=True)
        else:
            change[id(tensor)] = _ruled(run, tensor)
    return call.replaced(change)


def _by_elements(run: Run, call: Call, tensor: Tensor, moved: Moved | Summed, change: dict[int, Tensor]) -> bool:
    """Settle a tensor whose elements wait for their consumer; return whether the layer's own node has no part in it."""
    if isinstance(moved, Summed):
        if call.writes_in_place and call.args and call.args[0] is tensor:
            # Also if a consumer keeps it: relevance may not come back by that one.
            moved.settle(run, tensor, kept=False)
            return True
        how = way(call, tensor, run.rule)
        if how != "moves" or not _hands_on(call, tensor):
            _settle_sum(run, tensor, moved, how)
        return True
    if moved.hooks != saving_hooks():
        return False
    added = summands(run, call)
    if takes_share(call, tensor, run.rule) or (added is not None and tensor is added.z):
        # The handler of the call does it.
        return True
    if added is not None and not (tensor.retains_grad or hooks_of(tensor)):
        # The other summand waits too, and a consumer was seen that keeps it.
        change[id(tensor)] = kept = moved.settle(run, tensor, shared=True)
        notes.write(kept, run, again=added.again)
        return True
    how = way(call, tensor, run.rule)
    if how == "keeps":
        laid, elements = moved.in_one_batch(tensor) if multiplies_batches(call) else (moved, tensor)
        change[id(tensor)] = laid.settle(run, elements, shared=True)
    elif how == "reads" and _by_itself(notes.read(tensor, run), moved):
        change[id(tensor)] = moved.settle(run, tensor, shared=False)
    elif not how and _takes_node(run, tensor, moved):
        moved.settle_in_place(run, tensor)
        return True
    return how == "moves" or id(tensor) in change


def _takes_node(run: Run, tensor: Tensor, moved: Moved) -> bool:
    """Whether the node may be set on a tensor in place: a copy, with memory of its own, at which nobody looks."""
    note = notes.read(tensor, run)
    copied = note is not None and note.layer is None and moved.source is None
    return copied and not (tensor.retains_grad or hooks_of(tensor))


def _hands_on(call: Call, tensor: Tensor) -> bool:
    """Whether a call that moves elements has nothing to move, and returns the tensor itself."""
    with torch.no_grad():
        return call.invoke() is tensor


def layer_before_relu(run: Run, call: Call, waiting: list[Tensor]) -> LayerCall | None:
    """Return the layer whose rule may be set behind the ReLU that consumes its output."""
    (z,) = waiting
    note = notes.read(z, run)
    if note is None or note.layer is None or note.ruled or note.kept or not note.layer.intact:
        return None
    if note.layer.share_shift(z.dtype) is None:
        return None
    # Whoever asks for the gradient at the output itself is to get it.
    fits = isinstance(run.rule(call), Gradient) and note.layer.hooks == saving_hooks() and not asked(z)
    return note.layer if fits else None


def share_taken(run: Run, call: Call) -> Moved | None:
    """Return the layer's output that an activation consumes, where its node is to hold the layer's rule too."""
    source = call.dependent[0]
    note = notes.read(source, run)
    moved = None if note is None else note.moved
    if not isinstance(moved, Moved) or moved.hooks != saving_hooks() or not takes_share(call, source, run.rule):
        return None
    return moved


def follow(run: Run, call: Call, out: Any) -> None:
    """Note on the results of a move of elements whose rule waits for their consumer where they come from."""
    note = notes.read(call.dependent[0], run)
    moved = None if note is None else note.moved
    # A checkpoint that began behind the elements runs again, and may find that they wait no longer.
    if not isinstance(moved, Moved) or moved.hooks != saving_hooks():
        return
    if way(call, call.dependent[0], run.rule) == "moves":
        moved.follow(run, call, out)
