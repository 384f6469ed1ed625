"""The bounds of operations that clip, in all spellings."""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from lrphooks.engine.call import Call

#: A number, a tensor of them, or none.
Bound: TypeAlias = "float | Tensor | None"


def bounds_of(call: Call) -> tuple[Bound, Bound] | None:
    """Return the lower and the upper bound that a call clips its one dependent operand to, or None if it does not."""
    if len(call.dependent) != 1:
        return None
    name, low, high = call.operation.name, None, None
    if name == "clamp":
        low, high = call.argument(1, "min"), call.argument(2, "max")
    elif name == "clamp_min":
        low = call.argument(1, "min")
    elif name == "clamp_max":
        high = call.argument(1, "max")
    elif name == "relu6":
        low, high = 0.0, 6.0
    elif name == "hardtanh":
        low, high = call.argument(1, "min_val", -1.0), call.argument(2, "max_val", 1.0)
    elif name == "threshold":
        low, value = call.argument(1, "threshold"), call.argument(2, "value")
        if low != value:
            return None
    else:
        # Of two tensors, whichever is the bound.
        pair = call.argument(0, "input"), call.argument(1, "other")
        bound = pair[1] if pair[0] is call.dependent[0] else pair[0]
        low, high = (bound, None) if name in ("maximum", "fmax") else (None, bound)
    return low, high


def clips_as_activation(call: Call) -> bool:
    """Whether a call clips to numbers beyond which it is an activation, other than a ReLU."""
    bounds = bounds_of(call) if call.operation.kind == "clamp" else None
    if bounds is None or any(isinstance(bound, Tensor) for bound in bounds) or bounds == (0, None):
        return False
    low, high = (0 if bound is None else bound for bound in bounds)
    return bool(low <= 0 <= high)
