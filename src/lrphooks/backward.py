"""Backward passes for several explained values over the graph of one forward pass."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from lrphooks.engine import containers
from lrphooks.engine.errors import LRPError
from lrphooks.torch_private import shapes_received

#: Where gradients are wanted: leaves of the graph, and places within it.
Places: TypeAlias = "Sequence[Tensor] | Sequence[GradientEdge]"
#: How many gradients of the size of the largest are alive at a time in a backward pass, roughly.
_ALIVE = 6


#: What the largest explained value of a batch is brought to in float16, roughly: far from either end of its range.
_SAFE = 16.0


@dataclass(frozen=True, eq=False)
class Scaled:
    """An explained value times a power of two, and the way back: relevance is linear in what is explained.

    In float16 nothing below 6e-8 is left, so the relevance of a value of a few thousandths is lost on its way.
    """

    value: Tensor
    scale: Tensor | None = None

    @classmethod
    def of(cls, value: Tensor, inputs: Sequence[Tensor]) -> Scaled:
        """Return the value at a safe scale, which is its own unless it or an input is of float16."""
        if not value.numel() or all(t.dtype != torch.float16 for t in (value, *inputs)):
            return cls(value)
        with torch.no_grad():
            # All on the device: to ask for the number would wait for it.
            exponent = (_SAFE / value.abs().amax().float()).log2().floor()
            scale = exponent.nan_to_num(0.0).clamp(0, 14).exp2().to(value.dtype)
        return cls(value * scale, scale)

    def back(self, found: Any) -> Any:
        """Return what was found for the scaled value as it is for the value itself."""
        if self.scale is None:
            return found
        scale = self.scale
        return containers.map_tensors(found, lambda t: t / scale.to(t), "relevance")

    def each_back(self, found: Sequence[Tensor | None]) -> list[Tensor | None]:
        """Return gradients, which may be missing, as they are for the value itself."""
        return [None if t is None else self.back(t) for t in found]

    def keeps(self, found: Sequence[Tensor | None]) -> bool:
        """Whether the scale was not too large for what was found on the way."""
        return self.scale is None or all(bool(t.isfinite().all()) for t in found if t is not None)


def at_safe_scale(
    explained: Sequence[Tensor], inputs: Sequence[Tensor], places: Places, budget: int
) -> list[tuple[Scaled, tuple[Tensor | None, ...]]]:
    """Return the gradients at some places for each explained tensor at a safe scale, and the way back from there."""
    scaled = [Scaled.of(value, inputs) for value in explained]
    if all(each.scale is None for each in scaled):
        return list(zip(scaled, each(explained, places, budget), strict=True))
    found: list[tuple[Scaled, tuple[Tensor | None, ...]]] = []
    for one in scaled:
        if not one.value.requires_grad:
            found.append((one, (None,) * len(places)))
            continue
        grads = torch.autograd.grad(one.value.sum(), places, retain_graph=True, allow_unused=True)
        if not one.keeps(grads):
            one = Scaled(explained[len(found)])  # noqa: PLW2901  # the same value, as it is
            grads = torch.autograd.grad(one.value.sum(), places, retain_graph=True, allow_unused=True)
        found.append((one, grads))
    return found


def each(explained: Sequence[Tensor], leaves: Places, budget: int) -> list[tuple[Tensor | None, ...]]:
    """Return the gradients at the leaves for each explained tensor, several at a time as far as the budget goes."""
    nothing: tuple[Tensor | None, ...] = (None,) * len(leaves)
    found = [nothing] * len(explained)
    pending = [index for index, value in enumerate(explained) if value.requires_grad]
    if not pending:
        return found
    sums = [explained[index].sum() for index in pending]
    chunk = 1 if len(pending) == 1 else max(1, budget // (_ALIVE * _largest(sums)))
    for start in range(0, len(pending), chunk):
        part = slice(start, start + chunk)
        last = start + chunk >= len(pending)
        for index, grads in zip(pending[part], _together(sums[part], leaves, last=last), strict=True):
            found[index] = grads
    return found


def from_starts(
    starts: Sequence[Tensor], seeds: Sequence[Sequence[Tensor]], places: Places, budget: int
) -> list[tuple[Tensor | None, ...]]:
    """Return the gradients at some places for several sets of seeds, each with one seed for every start.

    The graph stays for further passes.
    """
    chunk = 1 if len(seeds) == 1 else max(1, budget // (_ALIVE * _largest(starts)))
    found: list[tuple[Tensor | None, ...]] = []
    for start in range(0, len(seeds), chunk):
        part = seeds[start : start + chunk]
        batched = _batched(starts, [torch.stack(column) for column in zip(*part, strict=True)], places)
        found += batched or [
            torch.autograd.grad(starts, places, each, retain_graph=True, allow_unused=True) for each in part
        ]
    return found


def _together(sums: list[Tensor], leaves: Places, *, last: bool) -> list[tuple[Tensor | None, ...]]:
    """Return the gradients for several values in one batched pass; one by one where an operation has no such form."""
    seeds = torch.eye(len(sums), dtype=sums[0].dtype, device=sums[0].device)
    return (len(sums) > 1 and _batched([torch.stack(sums)], [seeds], leaves)) or [
        torch.autograd.grad(value, leaves, retain_graph=not last or i + 1 < len(sums), allow_unused=True)
        for i, value in enumerate(sums)
    ]


def _batched(
    starts: Sequence[Tensor], seeds: Sequence[Tensor], places: Places
) -> list[tuple[Tensor | None, ...]] | None:
    """Return the gradients for seeds with one more dimension in front; None where an operation has no such form."""
    count = len(seeds[0])
    if count == 1:
        return None
    try:
        with warnings.catch_warnings():
            # What torch computes in a loop inside the batched pass is right all the same.
            warnings.filterwarnings("ignore", message="There is a performance drop", category=UserWarning)
            batched = torch.autograd.grad(
                starts, places, seeds, retain_graph=True, allow_unused=True, is_grads_batched=True
            )
    except LRPError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        if not any(word in str(error) for word in ("vmap", "functorch", "atching rule")):
            raise
        return None
    return [tuple(None if g is None else g[i] for g in batched) for i in range(count)]


def _largest(values: Sequence[Tensor]) -> int:
    """Return the bytes of the largest gradient in the graph behind some values."""
    most = 1
    pending = [value.grad_fn for value in values]
    seen = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        for made in shapes_received(node):
            most = max(most, math.prod(made.shape) * made.dtype.itemsize)
        pending.extend(behind for behind, _ in node.next_functions)
    return most
