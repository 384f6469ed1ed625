"""Which facts the results of an operation inherit from its operands: one function a kind, asked in one place."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrphooks.engine import facts
from lrphooks.engine.bounds import bounds_of
from lrphooks.engine.call import Call, broadcast_shape, tensors_in
from lrphooks.engine.facts import Facts, Offset
from lrphooks.layers.linear_map import Moved
from lrphooks.operations import Kind, names
from lrphooks.torch_private import OutOfSight, concrete

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

Known = Sequence[Facts | None]
#: What the results of a call are known to be, from what is known of its dependent operands.
Inherits = Callable[["Run", Call, Known], dict[str, Any]]


def inherit(run: Run, call: Call, known: Known, inherits: Inherits, out: Any) -> None:
    """Note on the results of a call what they inherit; ``known`` is from before it ran."""
    told = inherits(run, call, known)
    if not told:
        return
    results = (call.args[0],) if call.operation.in_place and call.args else tensors_in((out,))
    link = told.get("link")
    for number, tensor in enumerate(results):
        if link is not None and call.operation.kind == "split":
            told["link"] = partial(_part, link, number)
        # What hands its operand on, as a view of the same shape may, made nothing.
        if tensor.requires_grad and not tensor.is_leaf and (call.writes_in_place or not _given(call, tensor)):
            facts.write(tensor, run, **told)


def _given(call: Call, tensor: Tensor) -> bool:
    return any(tensor is operand for operand in call.dependent)


def _whole(known: Facts) -> dict[str, Any]:
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


def _fresh(known: Known) -> dict[str, Any]:
    return {"fresh": True} if known and all(each is not None and each.fresh for each in known) else {}


def _degree(known: Known) -> dict[str, Any]:
    """Return the number of factors of what several values are joined to, where it is the same for all."""
    degrees = {1 if each is None else each.degree for each in known}
    contracted = all(each is not None and each.contracted for each in known)
    return {"degree": degrees.pop(), "contracted": contracted} if len(degrees) == 1 and degrees != {1} else {}


# --- moves ---

#: What is of the kind "shape" and does not only move elements: it draws, or changes the type.
_CHANGES = frozenset(
    "dropout dropout1d dropout2d dropout3d feature_dropout half bfloat16 cfloat cdouble chalf".split()  # noqa: SIM905 -- as names.py lists them
)


def _moved(run: Run, call: Call, known: Known) -> dict[str, Any]:
    before = known[0] if len(known) == 1 else None
    if before is None:
        return {}
    told = _whole(before)
    name = call.operation.name
    if before.layer is not None and name not in _CHANGES:
        told |= _layer(before, call, None)
    if before.link is not None:
        # Run again, dropout would draw another mask; what arrives as relevance keeps its place.
        follow = None if "dropout" in name else call.over([call.dependent[0]])
        told["link"] = before.link if follow is None else partial(_rearranged, before.link, follow)
    return told


def _layer(before: Facts, call: Call, number: float | None) -> dict[str, Any]:
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


def _rearranged(link: Callable[[], Tensor | None], function: Callable[[Tensor], Any]) -> Tensor | None:
    made = link()
    return None if made is None else function(made)


def _split(run: Run, call: Call, known: Known) -> dict[str, Any]:
    before = known[0] if len(known) == 1 else None
    if before is None:
        return {}
    told = _whole(before)
    if before.link is not None and call.operation.name in _CUTS:
        told["link"] = partial(_rearranged, before.link, call.over([call.dependent[0]]))
    return told


#: Those that return parts of one tensor, and nothing else.
_CUTS = frozenset(
    ("chunk", "split", "split_with_sizes", "tensor_split", "unbind", "iter", "unsafe_chunk", "unsafe_split")
)


def _part(link: Callable[[], Any], number: int) -> Tensor | None:
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


def _selected(run: Run, call: Call, known: Known) -> dict[str, Any]:
    name = call.operation.name
    if name in _EACH and name != "nan_to_num":
        return _elementwise(run, call, known) | ({"nonnegative": True} if name == "abs" else {})
    told = _fresh(known) | _degree(known)
    before = known[0] if len(known) == 1 else None
    if before is None or name in _MASKS:
        return told
    if name.startswith(_PICKS) or name in _PICKED:
        told |= _whole(before)
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


def _elementwise(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """Activations, and the like: an offset c becomes f(c)."""
    told = _fresh(known)
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


def _rectified(run: Run, call: Call, known: Known) -> dict[str, Any]:
    return _elementwise(run, call, known) | {"nonnegative": True}


def _clamped(run: Run, call: Call, known: Known) -> dict[str, Any]:
    bounds = bounds_of(call)
    if bounds is None:
        return _selected(run, call, known)
    low = bounds[0]
    lowest = isinstance(low, int | float) and low >= 0
    return _elementwise(run, call, known) | ({"nonnegative": True} if lowest else {})


def _nonnegative(run: Run, call: Call, known: Known) -> dict[str, Any]:
    return _fresh(known) | {"nonnegative": True}


def _powered(run: Run, call: Call, known: Known) -> dict[str, Any]:
    exponent = {"square": 2.0, "sqrt": 0.5}.get(call.operation.name, call.argument(1, "exponent"))
    told = _elementwise(run, call, known)
    if call.operation.reversed or not isinstance(exponent, int | float):
        return told
    before = known[0] if len(known) == 1 else None
    if exponent % 2 == 0 or call.operation.name == "sqrt" or (before is not None and before.nonnegative):
        told["nonnegative"] = True
    if exponent == int(exponent) and exponent > 1:
        told["degree"] = int(exponent) * (1 if before is None else before.degree)
    return told


# --- sums ---

#: Sums with weights that are not negative: of nonnegative operands they are nonnegative.
_KEEP_SIGN_NAMES = """
    add cat hstack vstack dstack column_stack stack sum mean nansum nanmean cumsum avg_pool1d avg_pool2d avg_pool3d
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d upsample_nearest upsample_nearest1d
    upsample_nearest2d upsample_nearest3d pad constant_pad_nd
"""
_KEEP_SIGN = frozenset(_KEEP_SIGN_NAMES.split())
#: Those that hand an offset of all operands on as it is.
_KEEP_OFFSET_NAMES = """
    cat hstack vstack dstack column_stack stack mean avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d interpolate upsample upsample_nearest upsample_bilinear
    upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d upsample_trilinear3d reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d
    replication_pad2d replication_pad3d
"""
_KEEP_OFFSET = frozenset(_KEEP_OFFSET_NAMES.split())


def _combined(run: Run, call: Call, known: Known) -> dict[str, Any]:
    name = call.operation.name
    told = _fresh(known) | _degree(known)
    if len(known) > 1 and name in ("add", "sub") and not told.get("contracted"):
        # The state of a recurrent cell is a value, and not a sum of ever longer products.
        told.pop("degree", None)
    if name in ("sum", "mean") and "degree" in told:
        told["contracted"] = True
    if name in _KEEP_SIGN and _all_nonnegative(call, known):
        told["nonnegative"] = True
    offset = _sum_offset(run, call, known) if name in ("add", "sub", "neg") else None
    if offset is None and name in _KEEP_OFFSET and len(known) == len(_tensors(call)):
        offsets = {each.offset.asked() if each is not None and each.offset is not None else None for each in known}
        offset = offsets.pop() if len(offsets) == 1 else None
    before = known[0]
    if name == "neg" and before is not None and before.layer is not None:
        told |= _layer(before, call, -1.0)
    if name == "copy" and call.operation.in_place and len(known) == 1 and before is not None:
        told |= _whole(before) if call.args[0].shape == call.dependent[0].shape else {}
    if name == "sum" and known[0] is not None and known[0].gates:
        offset = Offset(math.nan)
    if offset is not None and not offset.is_zero:
        told["offset"] = offset
    if name in ("cat", "stack") and len(known) == len(_tensors(call)):
        links = [each.link for each in known if each is not None and each.link is not None]
        if len(links) == len(known):
            told["link"] = partial(_joined, links, call.over(call.dependent))
    return told


def _joined(links: list[Callable[[], Tensor | None]], function: Callable[..., Any]) -> Tensor | None:
    made = [link() for link in links]
    return None if any(link is None for link in made) else function(*made)


def _tensors(call: Call) -> list[Tensor]:
    return tensors_in((call.args, call.kwargs))


def _all_nonnegative(call: Call, known: Known) -> bool:
    """Whether all operands of a sum are: tensors of constants are not asked."""
    numbers = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, int | float)]
    if call.operation.name in ("add", "pad", "constant_pad_nd") and any(number < 0 for number in numbers):
        return False
    return len(known) == len(_tensors(call)) and all(each is not None and each.nonnegative for each in known)


def _sum_offset(run: Run, call: Call, known: Known) -> Offset | None:
    """Return the constant in a sum or a difference of two, or in what has its sign turned."""
    first = call.argument(0, "input")
    operands = (first,) if call.operation.name == "neg" else (first, call.argument(1, "other"))
    alpha = call.argument(2, "alpha", 1)
    if not isinstance(alpha, int | float):
        return None
    second = -alpha if call.operation.name == "sub" else alpha
    signs = (-1.0,) if call.operation.name == "neg" else (second, 1.0) if call.operation.reversed else (1.0, second)
    total = Offset()
    facts_of = {id(t): each for t, each in zip(call.dependent, known, strict=True)}
    for operand, sign in zip(operands, signs, strict=True):
        if isinstance(operand, bool | int | float):
            total = total.plus(Offset(float(operand) * sign))
        elif not isinstance(operand, Tensor):
            return None
        elif id(operand) in facts_of:
            each = facts_of[id(operand)]
            if each is not None and each.offset is not None:
                total = total.plus(each.offset.times(sign))
        elif not operand.requires_grad and not run.holds(operand):
            total = total.plus(Offset(0.0, ((operand.detach(), sign),)))
    return total


# --- products ---


def _spreads(call: Call) -> bool:
    """Whether a product is one of all elements with all, as of a column and a row."""
    shapes = [t.shape for t in _tensors(call)]
    size = math.prod(broadcast_shape(*shapes))
    return all(math.prod(shape) < size for shape in shapes)


#: Products that sum nothing.
_BY_ELEMENTS = frozenset(("mul", "outer", "kron", "prod"))


def _multiplied(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """Products: degrees add up; those of numbers, and of offsets alone, are offsets."""
    told = _fresh(known)
    count = len(known)
    name = call.operation.name
    if name == "prod":
        dim = call.argument(1, "dim", call.kwargs.get("axis"))
        source = call.dependent[0]
        factors = source.shape[dim] if isinstance(dim, int) else source.numel()
        return told | {"degree": factors * (1 if known[0] is None else known[0].degree)}
    if name in ("lerp", "grid_sample"):
        return told
    # What gates is no factor, beside others that are not.
    signals = [each for each in known if each is None or not each.gates] or list(known)
    degree = sum(1 if each is None else each.degree for each in signals)
    if degree != 1:
        contracts = name not in _BY_ELEMENTS or (name == "mul" and _spreads(call))
        told |= {"degree": degree, "contracted": contracts or all(each and each.contracted for each in known)}
    number = _factor(call)
    if number is not None:
        return told | (_scaled(known[0], number, call) if known[0] is not None else {})
    if name == "mul" and count == 1 and (weighted := _weighted(run, call)) is not None:
        told["weighted"] = weighted
    if name == "mul" and count == len(_tensors(call)) and all(each is not None and each.nonnegative for each in known):
        told["nonnegative"] = True
    if known and all(each is not None and each.gates for each in known):
        told["offset"] = Offset(math.prod(each.offset.number for each in known if each is not None and each.offset))
        if count < len(_tensors(call)) or name != "mul":
            told["offset"] = Offset(math.nan)
    return told


def _weighted(run: Run, call: Call) -> tuple[Callable[..., Tensor], Tensor, Tensor] | None:
    """Return a product with a parameter, element by element, as a function of the two."""
    if call.writes_in_place or call.kwargs or len(call.args) != 2:
        return None
    (a,) = call.dependent
    weight = call.args[1] if call.args[0] is a else call.args[0]
    # A mask that the model computes is no weight.
    if not isinstance(weight, Tensor) or weight.numel() == 1 or not run.holds(weight):
        return None
    return call.over((a, weight)), a, weight


def _scaled(before: Facts, number: float, call: Call) -> dict[str, Any]:
    """Return what is known of a multiple of a value."""
    told: dict[str, Any] = {}
    if before.nonnegative and number >= 0:
        told["nonnegative"] = True
    if before.offset is not None:
        told["offset"] = before.offset.times(number)
    if before.layer is not None and number:
        told |= _layer(before, call, number)
    return told


def _factor(call: Call) -> float | None:
    """Return the number that all a call does is to multiply its one tensor by, else None."""
    if call.operation.name not in ("mul", "div") or call.kwargs or len(call.args) != 2 or len(call.dependent) != 1:
        return None
    first, second = call.args
    number = second if first is call.dependent[0] else first
    if isinstance(number, Tensor) and number.dim() == 0 and not number.requires_grad and number.device.type == "cpu":
        number = number.item()
    if not isinstance(number, int | float):
        return None
    if call.operation.name == "mul":
        return float(number)
    return 1.0 / number if number and not call.operation.reversed else None


def _added_product(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """A summand and a product: as their sum."""
    summand = call.argument(0, "input", call.kwargs.get("self"))
    degrees = [[1 if k is None else k.degree for t, k in zip(call.dependent, known, strict=True) if (t is summand) is s]
               for s in (True, False)]  # fmt: skip
    told = _fresh(known)
    degree = sum(degrees[1])
    if degree > 1 and (not degrees[0] or degrees[0] == [degree]):
        told |= {"degree": degree, "contracted": call.operation.name != "addcmul"}
    return told


def _divided(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """Quotients: of a constant denominator, as products with a number; of another, the numerator."""
    number = _factor(call)
    if len(known) == 1 and known[0] is not None and number is not None:
        return _fresh(known) | _degree(known) | _scaled(known[0], number, call)
    numerator = call.args[0] if call.args else None
    above = [k for t, k in zip(call.dependent, known, strict=True) if t is numerator][:1]
    told = _fresh(known)
    if call.operation.name == "div" and not call.operation.reversed and above and above[0] is not None:
        if above[0].degree != 1:
            told |= {"degree": above[0].degree, "contracted": above[0].contracted}
        if above[0].gates:
            told["offset"] = Offset(math.nan)
    return told


def _normalized(run: Run, call: Call, known: Known) -> dict[str, Any]:
    return _fresh(known)


INHERITS: dict[Kind, Inherits] = {
    "relu": _rectified,
    "shape": _moved,
    "split": _split,
    "select": _selected,
    "clamp": _clamped,
    "combination": _combined,
    "product": _multiplied,
    "added product": _added_product,
    "division": _divided,
    "power": _powered,
    "activation": _elementwise,
    "gate": _normalized,
    "constant": _normalized,
    "softmax": _nonnegative,
    "attention": _normalized,
    "normalization": _normalized,
    "batch norm": _normalized,
}
