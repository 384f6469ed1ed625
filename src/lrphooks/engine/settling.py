"""When a layer's rule is set: as its output is consumed, with what the consumer tells."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from lrphooks.engine import facts
from lrphooks.engine.call import Call
from lrphooks.engine.layer_call import LayerCall, saving_hooks
from lrphooks.engine.tensor_hooks import asked
from lrphooks.rules.operation import Constant, Gradient, Identity, Pass

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

#: Kinds of operations that hand nothing back under the rule Constant.
_STOPPABLE = frozenset(("activation", "constant", "power", "softmax", "relu"))


def waits(note: facts.Facts) -> bool:
    """Whether the tensor is the output of a layer that nothing in sight consumed."""
    return note.layer is not None and not note.ruled


def elsewhere(layer: LayerCall, note: facts.Facts) -> bool:
    """Whether a checkpoint began behind the layer, or ended."""
    return layer.hooks != saving_hooks() or note.kept


def _is_target(call: Call, tensor: Tensor) -> bool:
    return call.writes_in_place and bool(call.args) and call.args[0] is tensor


def settled(run: Run, tensor: Tensor) -> Tensor:
    """Return the tensor with the node of the layer that made it set on it, in place if it can be."""
    note = facts.read(tensor, run)
    if note is None or not waits(note):
        return tensor
    layer = note.layer
    if not isinstance(layer, LayerCall):
        note.ruled = True
        return tensor
    if not layer.intact:
        # What the layer keeps for what cannot be seen tells autograd if its input was overwritten.
        return tensor
    if asked(tensor):
        layer.leave(tensor)
        return tensor
    if elsewhere(layer, note):
        # A checkpoint began behind the layer and keeps its output, which must stay as it is from now on.
        if layer.filtered is not None:
            # The filter is to see the relevance of all consumers together, as the guard does.
            layer.leave(tensor)
            return tensor
        facts.write(tensor, run, kept=True)
        return layer.settle(tensor, in_place=False)
    return layer.settle(tensor)


def settle(run: Run, call: Call, waiting: list[Tensor]) -> Call:
    """Set the rules of the layers that made the operands, now that their consumer is known."""
    if call.operation.kind in _STOPPABLE and isinstance(run.rule(call), Constant):
        # Nothing comes back to what goes into a constant.
        return call
    change: dict[int, Tensor] = {}
    followed = call.operation.name in ("relu", "relu6") and isinstance(run.rule(call), Gradient | Identity | Pass)
    for tensor in waiting:
        note = facts.read(tensor, run)
        if note is None or not waits(note):
            continue
        layer = note.layer
        if isinstance(layer, LayerCall) and elsewhere(layer, note) and _is_target(call, tensor):
            # It must stay where it is in the graph, so its rule stays with the layer.
            layer.leave(tensor)
        elif not followed or not isinstance(layer, LayerCall) or asked(tensor) or not layer.intact:
            change[id(tensor)] = settled(run, tensor)
        elif call.writes_in_place and not elsewhere(layer, note):
            layer.settle(tensor, relu_follows=True)
        elif layer.input_nonnegative and layer.filtered is None:
            # Other consumers may see negative values, so this one gets a node of its own.
            change[id(tensor)] = layer.settle(tensor, relu_follows=True, in_place=False)
        else:
            change[id(tensor)] = settled(run, tensor)
    return call.replaced(change)
