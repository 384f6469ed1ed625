"""Regions: the patches or features that are removed together, and the order in which they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from lrphooks.evaluation.metric import generator

#: Most relevant first (MoRF), least relevant first (LeRF), or by chance.
Order: TypeAlias = Literal["morf", "lerf", "random"]


@dataclass(frozen=True)
class Regions:
    """The positions of an input in patches of equal sides; those at the end are cut where the sides do not fit."""

    shape: tuple[int, ...]
    patch: int
    """The side of a patch in positions."""

    @classmethod
    def of(cls, x: Tensor, patch: int, who: str) -> Regions:
        """Return the regions of one row of x: patches of positions, or single features where x has no positions."""
        shape = tuple(x.shape[2:]) if x.dim() > 2 else (x.shape[1],)
        if x.dim() == 2 and patch != 1:
            raise ValueError(
                f"{who}: x has shape {tuple(x.shape)}, features without neighbours, which are removed one by one: "
                "patch=1."
            )
        if patch > max(shape):
            raise ValueError(f"{who}: a patch of side {patch} is larger than the input, {tuple(x.shape)}.")
        return cls(shape, patch)

    @property
    def grid(self) -> tuple[int, ...]:
        """How many patches there are in each dimension."""
        return tuple(-(-size // self.patch) for size in self.shape)

    def sums(self, relevance: Tensor) -> Tensor:
        """Return the relevance of each region, the sum over its channels and positions, shape (rows, regions)."""
        relevance = relevance.double()
        summed = relevance.sum(1) if relevance.dim() > 2 else relevance
        for dim, size in enumerate(self.shape, start=1):
            index = torch.arange(size, device=summed.device) // self.patch
            shape = (*summed.shape[:dim], self.grid[dim - 1], *summed.shape[dim + 1 :])
            summed = torch.zeros(shape, dtype=summed.dtype, device=summed.device).index_add_(dim, index, summed)
        return summed.flatten(1)

    def mask(self, chosen: Tensor, dims: int) -> Tensor:
        """Return the positions of chosen regions, (rows, regions), as a mask for inputs of ``dims`` dimensions."""
        mask = chosen.reshape(-1, *self.grid)
        for dim, size in enumerate(self.shape, start=1):
            mask = mask.index_select(dim, torch.arange(size, device=mask.device) // self.patch)
        return mask.unsqueeze(1) if dims > 2 else mask


def ranks(relevance: Tensor, order: Order, seed: int = 0) -> Tensor:
    """Return the place of each region in the order of removal, 0 for the first, shape (rows, regions).

    Regions of equal relevance come in an order by chance, the same in every row, so that no row depends on those beside
    it: the order of positions would remove one side of the picture first. The order of LeRF is that of MoRF turned
    round. In the order by chance each row has its own.
    """
    rows, count = relevance.shape
    drawings = rows if order == "random" else 1
    drawn = torch.rand(drawings, count, generator=generator(seed), dtype=torch.float64).argsort(1)
    drawn = drawn.to(relevance.device).expand(rows, count)
    if order == "random":
        return drawn
    shuffled = relevance.gather(1, drawn)
    most_relevant_first = drawn.gather(1, shuffled.argsort(dim=1, descending=True, stable=True))
    place = most_relevant_first.argsort(1)
    return place if order == "morf" else count - 1 - place
