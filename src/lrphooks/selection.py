"""From a model's output to one value for each row: the class that an index names, in the output of any model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lrphooks.engine.errors import LRPError
from lrphooks.engine.tracing import require
from lrphooks.labels import Classes

#: What :func:`lrphooks.lrp` takes as a target; see :mod:`lrphooks.targets`.
Target: TypeAlias = "Classes | Callable[[Any], Tensor] | None"


def select(output: Any, target: Target, rows_given: int | None = None) -> Tensor:
    """Return the explained value of each row of a model's output; ``rows_given`` are the rows of its input, if known.

    Raises
    ------
    LRPError, TypeError, ValueError
        As :func:`lrphooks.lrp`.
    """
    if callable(target) and not isinstance(target, Tensor):
        chosen = target(output)
        if not isinstance(chosen, Tensor):
            raise TypeError(f"lrp: the target function must return a tensor, got {type(chosen).__name__}.")
        return finite(chosen)
    matrix = finite(as_matrix(output, rows_given))
    return picked(matrix, matrix.detach().argmax(1) if target is None else target)


def picked(matrix: Tensor, classes: Classes) -> Tensor:
    """Return the output of one class in each row."""
    return matrix.gather(1, index_of(classes, matrix).unsqueeze(1)).squeeze(1)


def index_of(given: Classes, output: Tensor) -> Tensor:
    """Return one index a row, from 0 up, into the classes of an output (rows, classes, ...)."""
    rows, classes, device = output.shape[0], output.shape[1], output.device
    index = as_index(given, device)
    if index.dim() == 1 and index.numel() != rows:
        raise ValueError(f"lrp: {int(index.numel())} targets were given for {int(rows)} rows; give one, or one a row.")
    index = index.expand(rows)

    def out_of_range(index: Tensor) -> ValueError:
        outside = index[(index < -classes) | (index >= classes)]
        return ValueError(
            f"lrp: target {int(outside[0])} is out of range for a model with {classes} outputs (0 to {classes - 1})."
        )

    require(((index >= -classes) & (index < classes)).all(), out_of_range, index)
    return index % classes


def as_index(given: Classes, device: torch.device) -> Tensor:
    """Return an index, or one a row, as a tensor of whole numbers."""
    try:
        index = torch.as_tensor(given, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"lrp: a target is an integer or one integer a row, got {given!r}.") from error
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool or index.dim() > 1:
        raise TypeError(f"lrp: a target is an integer or one integer a row, got {given!r}.")
    return index.long()


def as_tensor(output: Any) -> Tensor:
    """Return the tensor of logits that a model answers with, also in the containers of transformers and torchvision."""
    for key in ("logits", "out"):
        found = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        if not isinstance(output, Tensor) and isinstance(found, Tensor):
            return found
    if not isinstance(output, Tensor):
        raise TypeError(
            f"lrp: the model returns a {type(output).__name__}, so the target must be a function that picks a tensor "
            "from it, such as target=lambda output: output.logits[:, 3]."
        )
    return output


def as_matrix(output: Any, rows_given: int | None = None) -> Tensor:
    """Return a model's output as (rows, classes)."""
    output = as_tensor(output)
    if output.dim() == 1 and rows_given is not None and output.shape[0] != rows_given:
        raise ValueError(
            f"lrp: the model's output has shape {tuple(output.shape)}, but its input has {rows_given} rows. Is x a "
            "single example without a dimension for rows? Give x.unsqueeze(0), or a function as the target."
        )
    if output.dim() == 1:
        output = output.unsqueeze(1)
    if output.dim() != 2:
        raise ValueError(
            f"lrp: the model's output has shape {tuple(output.shape)}, not (rows, classes), so the target must be a "
            "function that picks from it, such as target=lambda output: output[:, 3].sum((1, 2))."
        )
    matrix: Tensor = output
    return matrix


def finite(output: Tensor) -> Tensor:
    """Return the output, or raise an error if a value of it is not finite."""
    require(torch.isfinite(output).all(), _not_finite)
    return output


def _not_finite() -> LRPError:
    return LRPError(
        "lrp: the model's output contains NaN or infinite values, so no relevance can be told. Check the input (its "
        "scale, missing values) and the model's weights; in half precision, an overflow."
    )
