"""Which facts the results of an operation inherit from its operands: one function a kind, asked in one place."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrphooks.engine import facts
from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.inheritance.arithmetic import added_product, attended, combined, divided, multiplied
from lrphooks.engine.inheritance.common import Inherits, Known
from lrphooks.engine.inheritance.moves import (
    clamped,
    elementwise,
    moved,
    nonnegative,
    normalized,
    part,
    powered,
    rectified,
    selected,
    split,
)
from lrphooks.operations import Kind

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


def inherit(run: Run, call: Call, known: Known, inherits: Inherits, out: Any) -> None:
    """Note on the results of a call what they inherit; ``known`` is from before it ran."""
    told = inherits(run, call, known)
    if not told:
        return
    results = (call.args[0],) if call.operation.in_place and call.args else tensors_in((out,))
    link = told.get("link")
    for number, tensor in enumerate(results):
        if link is not None and call.operation.kind == "split":
            told["link"] = partial(part, link, number)
        # What hands its operand on, as a view of the same shape may, made nothing.
        if tensor.requires_grad and not tensor.is_leaf and (call.writes_in_place or not _given(call, tensor)):
            facts.write(tensor, run, **told)


def _given(call: Call, tensor: Tensor) -> bool:
    return any(tensor is operand for operand in call.dependent)


INHERITS: dict[Kind, Inherits] = {
    "relu": rectified,
    "shape": moved,
    "split": split,
    "select": selected,
    "clamp": clamped,
    "combination": combined,
    "product": multiplied,
    "added product": added_product,
    "division": divided,
    "power": powered,
    "activation": elementwise,
    "gate": normalized,
    "constant": normalized,
    "softmax": nonnegative,
    "attention": attended,
    "normalization": normalized,
    "batch norm": normalized,
}
