"""What is inherited by sums, products and quotients."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrphooks.engine.call import Call, broadcast_shape
from lrphooks.engine.facts import Facts, Offset
from lrphooks.engine.inheritance.common import Known, degree_of, fresh, layer_of, tensors_of, whole
from lrphooks.rules.operation import Constant

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


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


def combined(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """Sums and their like: signs, offsets and degrees that all summands share; links of what is joined."""
    name = call.operation.name
    told = fresh(known) | degree_of(known)
    if len(known) > 1 and name in ("add", "sub") and not told.get("contracted"):
        # The state of a recurrent cell is a value, and not a sum of ever longer products.
        told.pop("degree", None)
    if name in ("sum", "mean") and "degree" in told:
        told["contracted"] = True
    if name in _KEEP_SIGN and _all_nonnegative(call, known):
        told["nonnegative"] = True
    offset = _sum_offset(run, call, known) if name in ("add", "sub", "neg") else None
    if offset is None and name in _KEEP_OFFSET and len(known) == len(tensors_of(call)):
        offsets = {each.offset.asked() if each is not None and each.offset is not None else None for each in known}
        offset = offsets.pop() if len(offsets) == 1 else None
    before = known[0]
    if name == "neg" and before is not None and before.layer is not None:
        told |= layer_of(before, call, -1.0)
    if name == "copy" and call.operation.in_place and len(known) == 1 and before is not None:
        told |= whole(before) if call.args[0].shape == call.dependent[0].shape else {}
    if name == "sum" and known[0] is not None and known[0].gates:
        offset = Offset(math.nan)
    if offset is not None and not offset.is_zero:
        told["offset"] = offset
    if name in ("cat", "stack") and len(known) == len(tensors_of(call)):
        links = [each.link for each in known if each is not None and each.link is not None]
        if len(links) == len(known):
            told["link"] = partial(_joined, links, call.over(call.dependent))
    return told


def _joined(links: list[Callable[[], Tensor | None]], function: Callable[..., Any]) -> Tensor | None:
    made = [link() for link in links]
    return None if any(link is None for link in made) else function(*made)


def _all_nonnegative(call: Call, known: Known) -> bool:
    """Whether all operands of a sum are: tensors of constants are not asked."""
    numbers = [a for a in (*call.args, *call.kwargs.values()) if isinstance(a, int | float)]
    if call.operation.name in ("add", "pad", "constant_pad_nd") and any(number < 0 for number in numbers):
        return False
    return len(known) == len(tensors_of(call)) and all(each is not None and each.nonnegative for each in known)


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
    shapes = [t.shape for t in tensors_of(call)]
    size = math.prod(broadcast_shape(*shapes))
    return all(math.prod(shape) < size for shape in shapes)


#: Products that sum nothing.
_BY_ELEMENTS = frozenset(("mul", "outer", "kron", "prod"))


def multiplied(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """Products: degrees add up; those of numbers, and of offsets alone, are offsets."""
    told = fresh(known)
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
    if (
        name == "mul"
        and count == len(tensors_of(call))
        and all(each is not None and each.nonnegative for each in known)
    ):
        told["nonnegative"] = True
    if known and all(each is not None and each.gates for each in known):
        told["offset"] = Offset(math.prod(each.offset.number for each in known if each is not None and each.offset))
        if count < len(tensors_of(call)) or name != "mul":
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
        told |= layer_of(before, call, number)
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


def added_product(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """A summand and a product: as their sum."""
    summand = call.argument(0, "input", call.kwargs.get("self"))
    degrees = [[1 if k is None else k.degree for t, k in zip(call.dependent, known, strict=True) if (t is summand) is s]
               for s in (True, False)]  # fmt: skip
    told = fresh(known)
    degree = sum(degrees[1])
    if degree > 1 and (not degrees[0] or degrees[0] == [degree]):
        told |= {"degree": degree, "contracted": call.operation.name != "addcmul"}
    return told


def divided(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """Quotients: of a constant denominator, as products with a number; of another, the numerator."""
    number = _factor(call)
    if len(known) == 1 and known[0] is not None and number is not None:
        return fresh(known) | degree_of(known) | _scaled(known[0], number, call)
    numerator = call.args[0] if call.args else None
    above = [k for t, k in zip(call.dependent, known, strict=True) if t is numerator][:1]
    told = fresh(known)
    if call.operation.name == "div" and not call.operation.reversed and above and above[0] is not None:
        if above[0].degree != 1:
            told |= {"degree": above[0].degree, "contracted": above[0].contracted}
        if above[0].gates:
            told["offset"] = Offset(math.nan)
    return told


def attended(run: Run, call: Call, known: Known) -> dict[str, Any]:
    """Attention: as the product of weights and values that it is; weights that count as constant are no factor."""
    query, key, value, mask = (call.argument(i, n) for i, n in enumerate(("query", "key", "value", "attn_mask")))
    facts_of = {id(t): each for t, each in zip(call.dependent, known, strict=True)}
    weights = not isinstance(call.rule, Constant) and any(id(t) in facts_of for t in (query, key, mask))
    told = fresh(known)
    degree = int(weights)
    if id(value) in facts_of:
        each = facts_of[id(value)]
        gates = weights and each is not None and each.gates
        degree += 0 if gates else 1 if each is None else each.degree
    return told | ({"degree": degree, "contracted": True} if degree > 1 else {})
