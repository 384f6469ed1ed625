"""What is inherited by moves, selections and functions of each element."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrphooks.engine.bounds import bounds_of
from lrphooks.engine.call import Call
from lrphooks.engine.facts import Offset
from lrphooks.engine.inheritance.common import Known, degree_of, fresh, layer_of, whole
from lrphooks.operations import names
from lrphooks.torch_private import OutOfSight, concrete

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


# --- moves ---

#: What is of the kind "shape" and does not only move elements: it draws, or changes the type.
_CHANGES = frozenset(
    "dropout dropout1d dropout2d dropout3d feature_dropout half bfloat16 cfloat cdouble chalf".split()  # noqa: SIM905 -- as names.py lists them
)


def moved(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """Moves of all elements: what is known of the whole, its layer and its link among it."""
    before = known[0] if len(known) == 1 else None
    if before is None:
        return {}
    told = whole(before)
    name = call.operation.name
    if before.layer is not None and name not in _CHANGES:
        told |= layer_of(before, call, None)
    if before.link is not None:
        # Run again, dropout would draw another mask; what arrives as relevance keeps its place.
        follow = None if "dropout" in name else call.over([call.dependent[0]])
        told["link"] = before.link if follow is None else partial(_rearranged, before.link, follow)
    return told


def _rearranged(link: Callable[[], Tensor | None], function: Callable[[Tensor], Any]) -> Tensor | None:
    made = link()
    return None if made is None else function(made)


def split(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """Operations that return parts: what is known of the whole."""
    before = known[0] if len(known) == 1 else None
    if before is None:
        return {}
    told = whole(before)
    if before.link is not None and call.operation.name in _CUTS:
        told["link"] = partial(_rearranged, before.link, call.over([call.dependent[0]]))
    return told


#: Those that return parts of one tensor, and nothing else.
_CUTS = frozenset(
    ("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "iter", "unsafe_chunk", "unsafe_split")
)


def part(link: Callable[[], Any], number: int) -> Tensor | None:
    """Return one part of a link that is cut into several tensors."""
    made = link()
    return None if made is None else list(made)[number]


# --- selections and functions of each element ---

#: Selections that hand on some of the values as they are.
_PICKS = ("max_pool", "adaptive_max", "fractional_max")
_PICKED_NAMES = """
    max amax min amin topk sort msort kthvalue mode cummax cummin aminmax
"""
_PICKED = frozenset(_PICKED_NAMES.split())
_EACH = frozenset(names.ELEMENTWISE_SELECT.split())
#: Those that set some values to a constant, mostly 0, or leave them as they are.
_MASKS_NAMES = """
    masked_fill where nan_to_num
"""
_MASKS = frozenset(_MASKS_NAMES.split())


def selected(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """Selections: those that pick values hand on what is known of them."""
    name = call.operation.name
    if name in _EACH and name != "nan_to_num":
        return elementwise(run, call, known) | ({"nonnegative": True} if name == "abs" else {})
    told = fresh(known) | degree_of(known)
    before = known[0] if len(known) == 1 else None
    if before is None or name in _MASKS:
        return told
    if name.startswith(_PICKS) or name in _PICKED:
        told |= whole(before)
        if before.link is not None and "max_pool" in name:
            told["link"] = partial(_winners, before.link, call, call.dependent[0])
    return told


def _winners(link: Callable[[], Tensor | None], call: Call, source: Tensor) -> Tensor | None:
    """Return the link of what a max-pooling selects."""
    made = link()
    pool = getattr(F, f"{call.operation.name}_with_indices", None)
    if made is None or pool is None:
        return None
    kwargs = {k: v for k, v in call.kwargs.items() if k != "return_indices"}
    with torch.no_grad():
        _, indices = pool(source.detach(), *call.args[1:], **kwargs)
    spatial = int(call.operation.name[-2])
    winners: Tensor = made.flatten(-spatial).gather(-1, indices.flatten(-spatial))
    return winners.reshape(indices.shape)


def elementwise(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """Activations, and the like: an offset c becomes f(c)."""
    told = fresh(known)
    before = known[0] if len(known) == 1 else None
    if before is None:
        return told
    if before.offset is not None and before.gates:
        told["offset"] = Offset(_at(call, before.offset.number))
    if before.link is not None:
        told["link"] = before.link
    return told


def _at(call: Call, number: float) -> float:
    """Return what a function of each element makes of a number; NaN where that differs, as by learned parameters."""
    if math.isnan(number):
        return math.nan
    source = call.dependent[0]
    plain = call.out_of_place() if call.writes_in_place else call
    # Of a number of its own, so that it is known also where nothing else is, in a graph that is traced.
    with concrete(), torch.no_grad(), OutOfSight():
        try:
            found = plain.over([source])(torch.full((1,) * source.dim(), number, dtype=source.dtype))
        except (RuntimeError, AssertionError):
            return math.nan
        first = found.flatten()[0]
        return float(first) if bool((found == first).all()) else math.nan


def rectified(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """ReLU: not negative."""
    return elementwise(run, call, known) | {"nonnegative": True}


def clamped(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """Clipping: as an activation, and not negative with a lower bound of at least 0."""
    bounds = bounds_of(call)
    if bounds is None:
        return selected(run, call, known)
    low = bounds[0]
    lowest = isinstance(low, int | float) and low >= 0
    return elementwise(run, call, known) | ({"nonnegative": True} if lowest else {})


def nonnegative(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """What is never negative, such as a softmax."""
    return fresh(known) | {"nonnegative": True}


def powered(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """Powers: even ones are not negative, and n-th ones are products of n factors."""
    exponent = {"square": 2.0, "sqrt": 0.5}.get(call.operation.name, call.argument(1, "exponent"))
    told = elementwise(run, call, known)
    if call.operation.reversed or not isinstance(exponent, int | float):
        return told
    before = known[0] if len(known) == 1 else None
    if exponent % 2 == 0 or call.operation.name == "sqrt" or (before is not None and before.nonnegative):
        told["nonnegative"] = True
    if exponent == int(exponent) and exponent > 1:
        told["degree"] = int(exponent) * (1 if before is None else before.degree)
    return told


def normalized(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """What keeps nothing but whether a linear layer is behind it."""
    return fresh(known)
