"""What the facts of results are made of, whatever the operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.facts import Facts
from lrphooks.layers.linear_map import Moved

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

Known = Sequence[Facts | None]
#: What the results of a call are known to be, from what is known of its dependent operands.
Inherits = Callable[["Run", Call, Known], dict[str, Any]]


def whole(known: Facts) -> dict[str, Any]:
    """Return the facts that hold for a part of a value, moved or copied, as for the whole."""
    told: dict[str, Any] = {}
    if known.nonnegative:
        told["nonnegative"] = True
    if known.offset is not None:
        told["offset"] = known.offset
    if known.degree != 1:
        told |= {"degree": known.degree, "contracted": known.contracted}
    if known.fresh:
        told["fresh"] = True
    return told


def fresh(known: Known) -> dict[str, Any]:
    """Return whether no linear layer is behind any of several values, where that is so."""
    return {"fresh": True} if known and all(each is not None and each.fresh for each in known) else {}


def degree_of(known: Known) -> dict[str, Any]:
    """Return the number of factors of what several values are joined to, where it is the same for all."""
    degrees = {1 if each is None else each.degree for each in known}
    contracted = all(each is not None and each.contracted for each in known)
    return {"degree": degrees.pop(), "contracted": contracted} if len(degrees) == 1 and degrees != {1} else {}


def layer_of(before: Facts, call: Call, number: float | None) -> dict[str, Any]:
    """Return the facts of a layer's output of which all elements were moved, or multiplied by one number."""
    layer, (source,) = before.layer, call.dependent
    assert layer is not None
    plain = call.out_of_place() if call.writes_in_place else call
    linear_map = layer.map if isinstance(layer.map, Moved) else Moved(layer.map, source.shape)
    return {
        "layer": layer.mapped(linear_map.then(plain.over([source]), number)),
        "ruled": True,
        "bias_follows": before.bias_follows,
    }


def tensors_of(call: Call) -> list[Tensor]:
    """Return all tensors among the arguments of a call."""
    return tensors_in((call.args, call.kwargs))
