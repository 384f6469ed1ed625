"""The positive and the negative contributions of a layer, where they are differentiated."""

from __future__ import annotations

import torch
from torch import Tensor

#: A sum of contributions below this many units in the last place of its absolute terms is rounding, and truly 0.
_ULPS = 8.0


def _noise(total: Tensor) -> Tensor:
    return total.abs() * (_ULPS * torch.finfo(total.dtype).eps)


def positive(linear: Tensor, total: Tensor) -> Tensor:
    """Return P from w a and |w| |a|, exactly 0 where it is only rounding."""
    positive = (linear + total) / 2
    return torch.where(positive > _noise(total), positive, torch.zeros_like(positive))


def negative(linear: Tensor, total: Tensor) -> Tensor:
    """Return N from w a and |w| |a|, exactly 0 where it is only rounding."""
    negative = (linear - total) / 2
    return torch.where(-negative > _noise(total), negative, torch.zeros_like(negative))


def remainder(linear: Tensor, positive: Tensor) -> Tensor:
    """Return N = w a - P for a P that was computed on its own, exactly 0 where it is only rounding."""
    negative = linear - positive
    return torch.where(-negative > _noise(positive + linear.abs()), negative, torch.zeros_like(negative))
