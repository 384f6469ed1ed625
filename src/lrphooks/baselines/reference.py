"""References: the inputs that stand for nothing to see, such as black or the mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from lrphooks.rules.base import number

Reference: TypeAlias = "float | Tensor | tuple[float | Tensor, ...]"


def checked(owner: str, reference: Reference) -> Reference:
    """Return a reference whose tensors no one else can change, or raise an error that says what one may be."""
    if isinstance(reference, tuple | list):
        return tuple(_checked_one(owner, part) for part in reference)
    return _checked_one(owner, reference)


def _checked_one(owner: str, reference: float | Tensor) -> float | Tensor:
    if not isinstance(reference, Tensor):
        return number(owner, "reference", reference)
    if not bool(torch.isfinite(reference).all()):
        raise ValueError(f"{owner}: reference must be finite, got NaN or infinite values.")
    return reference.detach().clone()


def expanded(owner: str, reference: Reference, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the reference of each input, with its shape, dtype and device.

    Raises
    ------
    ValueError
        If there are more or fewer references than inputs, or one has a shape that does not broadcast.
    """
    references = reference if isinstance(reference, tuple) else (reference,) * len(inputs)
    if len(references) != len(inputs):
        raise ValueError(
            f"{owner}: {len(references)} references were given for {len(inputs)} inputs that are floating-point "
            "tensors; give one for each, or one for all."
        )
    return [_expanded(owner, value, x) for value, x in zip(references, inputs, strict=True)]


def _expanded(owner: str, reference: float | Tensor, x: Tensor) -> Tensor:
    value = torch.as_tensor(reference, dtype=x.dtype, device=x.device)
    try:
        return value.expand_as(x)
    except RuntimeError as error:
        raise ValueError(
            f"{owner}: a reference of shape {tuple(value.shape)} does not broadcast to an input of shape "
            f"{tuple(x.shape)}. Give a number, or a tensor such as one value a channel, (1, 3, 1, 1)."
        ) from error
