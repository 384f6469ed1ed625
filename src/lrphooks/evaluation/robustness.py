"""Robustness and conservation: whether relevance is steady, and whether it sums to what it explains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from lrphooks.evaluation.method import Judged, Scorer, Target
from lrphooks.evaluation.metric import Metric, generator, numbers, ratio, whole
from lrphooks.evaluation.result import Result
from lrphooks.rules.base import number


@dataclass(frozen=True, kw_only=True, repr=False)
class MaxSensitivity(Metric):
    """Max-sensitivity: how much relevance changes, at most, where the input hardly does.

    Formula: ``max over d of ||R(x + d) - R(x)|| / ||R(x)||`` in the Euclidean norm, over ``samples`` of d drawn evenly
    from ``-radius`` to ``radius`` for each value. The explained class stays that of x.

    Range: 0 and above; lower is steadier, which a constant map is too.

    Parameters
    ----------
    radius
        How far each value may move, in the units of x.
    samples
        How many changed inputs are explained.
    seed
        The chance that draws them.

    References
    ----------
    Yeh et al., "On the (In)fidelity and Sensitivity of Explanations", NeurIPS 2019.
    """

    radius: float = 0.02
    samples: int = 10
    seed: int = 0
    better: ClassVar[Literal["higher", "lower"] | None] = "lower"

    def __post_init__(self) -> None:
        super().__post_init__()
        if number(self.name, "radius", self.radius) <= 0:
            raise ValueError(f"{self.name}: radius must be above 0, got {self.radius!r}.")
        whole(self, "samples", self.samples)
        whole(self, "seed", self.seed, minimum=0)

    def _judge(self, model: nn.Module, x: Tensor, target: Target, method: Judged, truth: Tensor | None) -> Result:  # noqa: ARG002
        if isinstance(method, Tensor):
            raise TypeError(f"{self.name}: explains changed inputs, so it needs a method, not its relevance for x.")
        usual = self._relevance(model, x, target, method).double().flatten(1)
        drawing = generator(self.seed)
        worst = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        for _ in range(self.samples):
            step = (2 * torch.rand(x.shape, generator=drawing, dtype=torch.float64) - 1) * self.radius
            changed = self._relevance(model, x + step.to(x), target, method).double().flatten(1)
            worst = torch.maximum(worst, ratio((changed - usual).norm(dim=1), usual.norm(dim=1)))
        return Result(self, numbers(worst))


@dataclass(frozen=True, kw_only=True, repr=False)
class ConservationError(Metric):
    """The conservation error: how far the relevance is from summing to the explained value.

    Formula: ``|sum of R - f(x)| / |f(x)|``, with f(x) the explained value itself, not a probability.

    Range: 0 and above; 0 is conserved. What biases absorb counts as an error here; :func:`lrphooks.audit` tells which
    operation took what.

    References
    ----------
    Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
    PLOS ONE 2015.
    """

    better: ClassVar[Literal["higher", "lower"] | None] = "lower"

    def _judge(self, model: nn.Module, x: Tensor, target: Target, method: Judged, truth: Tensor | None) -> Result:  # noqa: ARG002
        scorer = Scorer(model, target, "logit", self.name)
        total = self._relevance(model, x, target, method).double().flatten(1).sum(1)
        chunks = torch.split(torch.arange(len(x), device=x.device), self.batch_size)
        explained = torch.cat([scorer(x[rows], rows) for rows in chunks])
        return Result(self, numbers(ratio((total - explained).abs(), explained.abs())))
