"""Complexity: how few positions an explanation points at, whether rightly or not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lrphooks.evaluation.method import Judged, Target
from lrphooks.evaluation.metric import Metric, numbers, pooled, ratio
from lrphooks.evaluation.result import Result


@dataclass(frozen=True, kw_only=True, repr=False)
class Sparseness(Metric):
    """Sparseness: the Gini index of the absolute relevance.

    Formula: ``sum of (2 i - n - 1) |R|_(i) / (n sum of |R|)`` with |R|_(i) the i-th smallest of the n positions, whose
    channels are summed; 0 where there is no relevance.

    Range: 0, where all positions are equally relevant, to 1 - 1/n, where one has it all. Higher is sparser, which is
    easier to read, but need not be right.

    References
    ----------
    Chalasani et al., "Concise Explanations of Neural Networks Using Adversarial Training", ICML 2020.
    """

    better: ClassVar[Literal["higher", "lower"] | None] = "higher"

    def _judge(self, model: nn.Module, x: Tensor, target: Target, method: Judged, truth: Tensor | None) -> Result:  # noqa: ARG002
        amounts = pooled(self._relevance(model, x, target, method)).abs().sort(dim=1).values
        count = amounts.shape[1]
        weights = 2 * torch.arange(1, count + 1, dtype=amounts.dtype, device=amounts.device) - count - 1
        return Result(self, numbers(ratio(amounts @ weights, count * amounts.sum(1))))


@dataclass(frozen=True, kw_only=True, repr=False)
class Complexity(Metric):
    """Complexity: the entropy of the absolute relevance, in nats.

    Formula: ``- sum of p log p`` with ``p = |R| / sum of |R|`` over the n positions, whose channels are summed; log n
    where there is no relevance.

    Range: 0, where one position has it all, to log n, where all are equally relevant. Lower is simpler, which is easier
    to read, but need not be right.

    References
    ----------
    Bhatt, Weller and Moura, "Evaluating and Aggregating Feature-Based Model Explanations", IJCAI 2020.
    """

    better: ClassVar[Literal["higher", "lower"] | None] = "lower"

    def _judge(self, model: nn.Module, x: Tensor, target: Target, method: Judged, truth: Tensor | None) -> Result:  # noqa: ARG002
        amounts = pooled(self._relevance(model, x, target, method)).abs()
        total = amounts.sum(1, keepdim=True)
        shares = torch.where(total == 0, torch.full_like(amounts, 1 / amounts.shape[1]), amounts / total)
        return Result(self, numbers(torch.special.entr(shares).sum(1)))
