"""The relevance filter: a wrapper that lets only the largest relevance through to a rule."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lrphooks.rules.base import LayerRule, number


@dataclass(frozen=True)
class TopRelevance(LayerRule):
    """The relevance filter: of each row's relevance at the layer's output, only the largest values reach the rule.

    Formula: ``R' = R where R is among the max(1, floor(n percent / 100)) largest of its row, else 0``, with n the
    values in a row; then the rule hands R' on.

    Negative relevance is the first to go, so the filter is for explained values above 0: one below 0 is dropped whole
    at the last layer. What is dropped is missing from the sum of relevance; the audit counts it as
    "filtered". Where a layer's output has several consumers, the sum of their relevance is filtered.

    Parameters
    ----------
    rule
        The rule of the layer, any for linear layers.
    percent
        How many per cent of the values pass, above 0 and up to 100.

    Raises
    ------
    TypeError, ValueError
        If the rule is not for linear layers or a filter itself, or ``percent`` is out of range.

    References
    ----------
    Fischer, "Relevance Propagation with PyTorch", 2021 (the relevance filter of PyTorchRelevancePropagation).
    """

    rule: LayerRule
    percent: float = 10.0

    def __post_init__(self) -> None:
        if isinstance(self.rule, TopRelevance) or not isinstance(self.rule, LayerRule):
            hint = f" Did you mean {self.rule.__name__}()?" if isinstance(self.rule, type) else ""
            raise TypeError(
                f"TopRelevance: rule must be one for linear layers, such as ZPlus(), got {self.rule!r}.{hint}"
            )
        number("TopRelevance", "percent", self.percent, minimum=0.0)
        if not 0 < self.percent <= 100:
            raise ValueError(f"TopRelevance: percent must be above 0 and at most 100, got {self.percent!r}.")

    @property
    def inner(self) -> LayerRule:
        return self.rule

    def kept(self, relevance: Tensor) -> Tensor:
        """Return 1 where relevance passes, else 0; the first of several dimensions counts rows."""
        rows = relevance.flatten(1) if relevance.dim() > 1 else relevance.reshape(1, -1)
        # The small number keeps 29 % of 100 values from becoming 28.
        count = max(1, math.floor(rows.shape[1] * self.percent / 100 + 1e-9))
        passing = rows.topk(count, dim=1).indices
        return torch.zeros_like(rows).scatter(1, passing, 1.0).reshape(relevance.shape)
