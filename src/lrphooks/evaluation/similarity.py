"""How alike two maps of relevance are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_POOL: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
#: The side of the window of SSIM, and the usual constants of Wang et al.
WINDOW = 7
_K1, _K2 = 0.01, 0.03


def spearman(first: Tensor, second: Tensor) -> Tensor:
    """Return Spearman's rank correlation of each row, (rows, ...); 0 where all values of a row are equal.

    Formula: the correlation of the ranks, where equal values share the mean of their ranks.
    """
    a, b = (_ranks(values.double().flatten(1)) for values in (first, second))
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    size = a.norm(dim=1) * b.norm(dim=1)
    return torch.where(size == 0, torch.zeros_like(size), (a * b).sum(1) / size)


def _ranks(values: Tensor) -> Tensor:
    ordered = values.sort(dim=1).values.contiguous()
    below = torch.searchsorted(ordered, values.contiguous())
    up_to = torch.searchsorted(ordered, values.contiguous(), right=True)
    return (below + up_to).double() / 2


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """Return the structural similarity of each row, (rows, positions...), each map over its largest absolute value.

    Formula: the mean over all windows of 7 positions a side of
    ``(2 m1 m2 + c1) (2 s12 + c2) / ((m1² + m2² + c1) (s1² + s2² + c2))`` with means m and unbiased (co)variances s, and
    ``c = (k * 2)²`` for k of 0.01 and 0.03, as values range over 2.

    References
    ----------
    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", IEEE TIP 2004.
    """
    count = first.dim() - 1
    a, b = (_scaled(values.double()).unsqueeze(1) for values in (first, second))
    pool = _POOL[count]
    points = WINDOW**count
    unbiased = points / (points - 1)
    mean_a, mean_b = pool(a, WINDOW, 1), pool(b, WINDOW, 1)
    var_a = unbiased * (pool(a * a, WINDOW, 1) - mean_a**2)
    var_b = unbiased * (pool(b * b, WINDOW, 1) - mean_b**2)
    both = unbiased * (pool(a * b, WINDOW, 1) - mean_a * mean_b)
    c1, c2 = (_K1 * 2) ** 2, (_K2 * 2) ** 2
    alike = (2 * mean_a * mean_b + c1) * (2 * both + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    result: Tensor = alike.flatten(1).mean(1)
    return result


def _scaled(values: Tensor) -> Tensor:
    largest = values.abs().flatten(1).amax(1).reshape(-1, *[1] * (values.dim() - 1))
    return values / torch.where(largest == 0, torch.ones_like(largest), largest)
