"""Faithfulness by perturbation: how the output changes when regions are removed in the order of their relevance."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lrphooks.evaluation.infill import Blur, Constant, Infill
from lrphooks.evaluation.method import Judged, Output, Scorer, Target
from lrphooks.evaluation.metric import Metric, numbers, one_of, whole
from lrphooks.evaluation.regions import Order, Regions, ranks
from lrphooks.evaluation.result import Numbers, Result


@dataclass(frozen=True, kw_only=True, repr=False)
class Perturbation(Metric):
    """What the metrics that remove regions share.

    Parameters
    ----------
    patch
        The side of the square patches that are removed, in positions. Features of an input without positions are
        removed one by one.
    infill
        What stands in for a removed region.
    steps
        In how many steps of equal size everything is removed; None removes one region at a time.
    output
        What is measured: the softmax "probability" of the target, or its "logit", the explained value itself.
    seed
        The chance that orders regions of equal relevance.
    batch_size
        How many perturbed inputs the model sees at once; those of all steps and rows are put together.
    """

    patch: int = 1
    infill: Infill = field(default_factory=Blur)
    steps: int | None = None
    output: Output = "probability"
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "patch", self.patch)
        if self.steps is not None:
            whole(self, "steps", self.steps)
        whole(self, "seed", self.seed, minimum=0)
        one_of(self, "output", self.output, ("probability", "logit"))
        if not isinstance(self.infill, Infill):
            hint = f" Did you mean {self.infill.__name__}()?" if isinstance(self.infill, type) else ""
            raise TypeError(f"{self.name}: infill must be an infill such as Blur(), got {self.infill!r}.{hint}")

    def _judge(self, model: nn.Module, x: Tensor, target: Target, method: Judged, truth: Tensor | None) -> Result:  # noqa: ARG002
        # What may refuse comes before what takes long.
        scorer = Scorer(model, target, self.output, self.name)
        regions = Regions.of(x, self.patch, self.name)
        prepared = self.infill.prepare(x)
        sums = regions.sums(self._relevance(model, x, target, method))
        places = torch.stack([ranks(sums, order, self.seed) for order in self._orders()])
        removed = counts(sums.shape[1], self.steps)

        def score(row: Tensor, chosen: Tensor) -> Tensor:
            mask = regions.mask(chosen, x.dim())
            return scorer(self.infill.fill(x[row], prepared[row], mask), row)

        curves = self._curves(score, places, torch.as_tensor(removed, device=x.device))
        return Result(self, *self._summary([numbers(curve) for curve in curves], removed / sums.shape[1]))

    @abstractmethod
    def _orders(self) -> tuple[Order, ...]:
        """Return the orders of removal that the metric needs."""

    @abstractmethod
    def _summary(self, curves: list[Numbers], at: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """Return values, curve and places from a curve for each order."""

    @torch.no_grad()
    def _curves(self, score: Callable[[Tensor, Tensor], Tensor], places: Tensor, removed: Tensor) -> Tensor:
        """Return the score after each number of removed regions, shape (orders, rows, points).

        ``places`` are the places of the regions in each order, (orders, rows, regions).
        """
        curves = torch.empty((*places.shape[:2], len(removed)), dtype=torch.float64, device=places.device)
        wanted = torch.ones(curves.shape, dtype=torch.bool)
        # With nothing removed, and with everything, the inputs are the same for every order, and scored once.
        wanted[1:, :, 0] = wanted[1:, :, -1] = False
        for chunk in torch.split(wanted.nonzero().to(places.device), self.batch_size):
            order, row, point = chunk.unbind(1)
            curves[order, row, point] = score(row, places[order, row] < removed[point].unsqueeze(1))
        curves[1:, :, 0], curves[1:, :, -1] = curves[0, :, 0], curves[0, :, -1]
        return curves


@dataclass(frozen=True, kw_only=True, repr=False)
class PixelFlipping(Perturbation):
    """The area under the curve of pixel flipping, also called region perturbation.

    Formula: ``integral of f(x_q) dq`` from 0 to 1 by the trapezoid rule, where x_q is x with the fraction q of its
    regions removed, in the order of their relevance: most relevant first (MoRF), least relevant first (LeRF), or by
    chance.

    Range: that of f; probabilities from 0 to 1. Lower is better for MoRF, higher for LeRF; chance is the reference that
    both should beat. The AOPC of Samek et al. is the mean of ``f(x) - curve``.

    Result: ``curve`` is f(x_q), ``at`` is q.

    References
    ----------
    Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
    PLOS ONE 2015; Samek et al., "Evaluating the Visualization of What a Deep Neural Network Has Learned", IEEE TNNLS
    2017.
    """

    order: Order = "morf"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "order", self.order, ("morf", "lerf", "random"))

    @property
    def better(self) -> Literal["higher", "lower"] | None:  # type: ignore[override]
        """Which way is better, by the order."""
        return {"morf": "lower", "lerf": "higher", "random": None}[self.order]

    def _orders(self) -> tuple[Order, ...]:
        return (self.order,)

    def _summary(self, curves: list[Numbers], at: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        return area(curves[0], at), curves[0], at


@dataclass(frozen=True, kw_only=True, repr=False)
class SymmetricRelevanceGain(Perturbation):
    """The symmetric relevance gain (SRG): the area between the curves of least and of most relevant first (ABPC).

    Formula: ``integral of f(x_q by LeRF) - f(x_q by MoRF) dq`` from 0 to 1 by the trapezoid rule, with x_q as in
    :class:`PixelFlipping`.

    Range: -1 to 1 for probabilities; higher is better, and an order by chance has 0. Both orders together depend little
    on the infill: what makes one curve fall makes the other fall as well.

    Result: ``curve`` is the difference of the curves, ``at`` is q.

    References
    ----------
    Blücher et al., "Decoupling Pixel Flipping and Occlusion Strategy for Consistent XAI Benchmarks", TMLR 2024. The
    area between perturbation curves: Schulz et al., "Restricting the Flow: Information Bottlenecks for Attribution",
    ICLR 2020, there divided by f(x) less f of nothing; Achtibat et al., "AttnLRP", ICML 2024, there of logits.
    """

    better: ClassVar[Literal["higher", "lower"] | None] = "higher"

    def _orders(self) -> tuple[Order, ...]:
        return ("lerf", "morf")

    def _summary(self, curves: list[Numbers], at: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        between = curves[0] - curves[1]
        return area(between, at), between, at


@dataclass(frozen=True, kw_only=True, repr=False)
class Deletion(Perturbation):
    """Deletion: the area under the curve while the most relevant positions are replaced by a constant.

    Formula: that of :class:`PixelFlipping`, most relevant first; by default single pixels and a constant 0, in 100
    steps.

    Range: that of f; probabilities from 0 to 1. Lower is better.

    References
    ----------
    Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
    """

    infill: Infill = field(default_factory=Constant)
    steps: int | None = 100
    better: ClassVar[Literal["higher", "lower"] | None] = "lower"

    def _orders(self) -> tuple[Order, ...]:
        return ("morf",)

    def _summary(self, curves: list[Numbers], at: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        return area(curves[0], at), curves[0], at


@dataclass(frozen=True, kw_only=True, repr=False)
class Insertion(Perturbation):
    """Insertion: the area under the curve while the most relevant positions come back into a blurred input.

    Formula: ``integral of f(x_q) dq`` from 0 to 1 by the trapezoid rule, where x_q is the infill with the fraction q of
    the positions of x, most relevant first; by default single pixels and a blur, in 100 steps.

    Range: that of f; probabilities from 0 to 1. Higher is better.

    Result: ``curve`` is f(x_q), ``at`` is q, the fraction that is there.

    References
    ----------
    Petsiuk et al., "RISE: Randomized Input Sampling for Explanation of Black-box Models", BMVC 2018.
    """

    steps: int | None = 100
    better: ClassVar[Literal["higher", "lower"] | None] = "higher"

    def _orders(self) -> tuple[Order, ...]:
        # What is inserted first is removed last.
        return ("lerf",)

    def _summary(self, curves: list[Numbers], at: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        curve, at = np.ascontiguousarray(curves[0][:, ::-1]), np.ascontiguousarray(1 - at[::-1])
        return area(curve, at), curve, at


def counts(regions: int, steps: int | None) -> Numbers:
    """Return how many regions are removed at each point of a curve, from none to all."""
    steps = regions if steps is None else min(steps, regions)
    return np.round(np.linspace(0, regions, steps + 1))


def area(curve: Numbers, at: Numbers) -> Numbers:
    """Return the area under each row of a curve by the trapezoid rule."""
    return ((curve[:, 1:] + curve[:, :-1]) / 2) @ np.diff(at)
