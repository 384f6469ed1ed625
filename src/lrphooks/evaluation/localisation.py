"""Localisation: whether relevance lies where it should, by a mask, a box, or the cell of a mosaic."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrphooks.evaluation.method import Judged, Target
from lrphooks.evaluation.metric import Metric, numbers, one_of, ratio, whole
from lrphooks.evaluation.result import Result

#: How the channels of a position become one amount that is not negative.
Pool: TypeAlias = Literal["positive", "absolute", "square"]

_CONVOLVE: dict[int, Any] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True, kw_only=True, repr=False)
class Localisation(Metric):
    """What the metrics that compare relevance with a region share; the region is given as ``truth``.

    Parameters
    ----------
    pool
        How the relevance of a position is counted: the "positive" part of its sum over the channels, the "absolute"
        value of that sum, or the sum of "square"s. Where a method's sign has no meaning, as that of a gradient,
        "absolute" or "square" do it more justice.
    """

    pool: Pool = "positive"
    needs_truth: ClassVar[bool] = True
    better: ClassVar[Literal["higher", "lower"] | None] = "higher"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "pool", self.pool, ("positive", "absolute", "square"))

    def _judge(self, model: nn.Module, x: Tensor, target: Target, method: Judged, truth: Tensor | None) -> Result:
        assert truth is not None
        inside = region(truth, x, self.name)
        amounts = _amounts(self._relevance(model, x, target, method), self.pool)
        return Result(self, numbers(self._values(amounts, inside)))

    @abstractmethod
    def _values(self, amounts: Tensor, inside: Tensor) -> Tensor:
        """Return the value of each row from the amount at each position and the mask, both (rows, ...)."""


@dataclass(frozen=True, kw_only=True, repr=False)
class PointingGame(Localisation):
    """The pointing game: whether the most relevant position lies in the region.

    Formula: 1 where the position of the largest relevance is at most ``tolerance`` positions (in Euclidean distance)
    away from the region, else 0. Of several positions that are equally relevant, the fraction that hits.

    Range: 0 to 1; higher is better, and a position by chance has the region's fraction of the input.

    References
    ----------
    Zhang et al., "Top-Down Neural Attention by Excitation Backprop", ECCV 2016; there the tolerance is 15 pixels.
    """

    tolerance: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        whole(self, "tolerance", self.tolerance, minimum=0)

    def _values(self, amounts: Tensor, inside: Tensor) -> Tensor:
        near = _grown(inside, self.tolerance).flatten(1)
        flat = amounts.flatten(1)
        largest = flat == flat.amax(1, keepdim=True)
        return (largest & near).sum(1).double() / largest.sum(1)


@dataclass(frozen=True, kw_only=True, repr=False)
class RelevanceMass(Localisation):
    """Relevance mass accuracy: the fraction of the relevance that lies in the region.

    Formula: ``sum of R over the region / sum of R``, with R pooled to amounts that are not negative; 0 where all are 0.

    Range: 0 to 1; higher is better, and relevance spread evenly has the region's fraction of the input.

    References
    ----------
    Arras, Osman and Samek, "CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network
    Explanations", Information Fusion 2022.
    """

    def _values(self, amounts: Tensor, inside: Tensor) -> Tensor:
        return _mass(amounts, inside)


@dataclass(frozen=True, kw_only=True, repr=False)
class RelevanceRank(Localisation):
    """Relevance rank accuracy: the fraction of the K most relevant positions that lie in the region of K positions.

    Formula: ``|top K by R ∩ region| / K``. Of positions that are equally relevant, those that fit are taken by chance,
    and the expected value is returned.

    Range: 0 to 1; higher is better, and an order by chance has the region's fraction of the input.

    References
    ----------
    Arras, Osman and Samek, "CLEVR-XAI: A Benchmark Dataset for the Ground Truth Evaluation of Neural Network
    Explanations", Information Fusion 2022.
    """

    def _values(self, amounts: Tensor, inside: Tensor) -> Tensor:
        flat, inside = amounts.flatten(1), inside.flatten(1)
        size = inside.sum(1, keepdim=True)
        least = flat.sort(dim=1, descending=True).values.gather(1, size - 1)
        above, level = flat > least, flat == least
        left = size - above.sum(1, keepdim=True)
        hits = (above & inside).sum(1) + left.squeeze(1) * (level & inside).sum(1) / level.sum(1)
        return hits.double() / size.squeeze(1)


@dataclass(frozen=True, kw_only=True, repr=False)
class GridPointingGame(Localisation):
    """The grid pointing game: the fraction of positive relevance in that cell of a mosaic which shows the class.

    Formula: ``sum of R+ over the cell / sum of R+``, with R+ the positive part of the sum over the channels; 0 where
    there is none. Made for :func:`mosaics`, whose ``truth`` is the cell.

    Range: 0 to 1; higher is better, and relevance spread evenly has 1 / cells.

    References
    ----------
    Böhle, Fritz and Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications", CVPR 2021.
    """

    def _values(self, amounts: Tensor, inside: Tensor) -> Tensor:
        return _mass(amounts, inside)


def region(truth: Tensor, x: Tensor, who: str) -> Tensor:
    """Return masks or boxes as a mask of the positions of x, (rows, ...)."""
    if x.dim() < 3:
        raise ValueError(f"{who}: x has shape {tuple(x.shape)}, features without positions, so it has no regions.")
    if not isinstance(truth, Tensor):
        raise TypeError(f"{who}: truth must be a tensor of masks or boxes, got {type(truth).__name__}.")
    truth = truth.to(x.device)
    rows, shape = len(x), tuple(x.shape[2:])
    if truth.dim() == x.dim() and truth.shape[1] == 1:
        truth = truth.squeeze(1)
    if tuple(truth.shape) == (rows, *shape):
        inside = truth != 0
    elif (
        len(shape) == 2
        and tuple(truth.shape) == (rows, 4)
        and not truth.is_floating_point()
        and truth.dtype != torch.bool
    ):
        left, top, right, bottom = (side.reshape(-1, 1, 1) for side in truth.unbind(1))
        across = torch.arange(shape[1], device=x.device).reshape(1, 1, -1)
        down = torch.arange(shape[0], device=x.device).reshape(1, -1, 1)
        inside = (left <= across) & (across < right) & (top <= down) & (down < bottom)
    else:
        raise ValueError(
            f"{who}: truth has shape {tuple(truth.shape)} and dtype {truth.dtype}; for x of shape {tuple(x.shape)} "
            f"masks of shape {(rows, *shape)} are wanted, or for pictures boxes of integers {(rows, 4)}: left, top, "
            "right, bottom."
        )
    empty = (~inside.flatten(1).any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"{who}: the region of row {empty[0]} is empty, so nothing can lie in it. Leave such rows out."
        )
    return inside


def _amounts(relevance: Tensor, pool: Pool) -> Tensor:
    relevance = relevance.double()
    if pool == "square":
        return relevance.square().sum(1)
    summed = relevance.sum(1)
    return summed.clamp(min=0) if pool == "positive" else summed.abs()


def _mass(amounts: Tensor, inside: Tensor) -> Tensor:
    return ratio((amounts * inside).flatten(1).sum(1), amounts.flatten(1).sum(1))


def _grown(inside: Tensor, tolerance: int) -> Tensor:
    """Return the positions that are at most ``tolerance`` away from the region."""
    if not tolerance:
        return inside
    count = inside.dim() - 1
    steps = torch.arange(-tolerance, tolerance + 1, device=inside.device)
    squares = torch.zeros((), dtype=torch.long, device=inside.device)
    for dim in range(count):
        squares = squares + (steps**2).reshape([-1 if d == dim else 1 for d in range(count)])
    disc = (squares <= tolerance**2).to(torch.float32)[None, None]
    near: Tensor = _CONVOLVE[count](inside.unsqueeze(1).to(disc.dtype), disc, padding=tolerance)
    # A sum of ones; rounding of fast convolutions stays far from a half.
    return near.squeeze(1) > 0.5
