"""From relevance to colour: channels pooled, one scale for both signs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from lrphooks.visualization.arrays import Floats, Relevance, image_floats
from lrphooks.visualization.colours import ColourMap, colour_map
from lrphooks.visualization.lettering import number

#: How several channels become one value.
POOLINGS: Mapping[str, Callable[[Floats, int], Floats]] = MappingProxyType(
    {
        "sum": lambda values, axis: values.sum(axis=axis),
        "positive": lambda values, axis: values.sum(axis=axis).clip(min=0.0),
        "negative": lambda values, axis: (-values.sum(axis=axis)).clip(min=0.0),
        "absolute": lambda values, axis: np.abs(values).sum(axis=axis),
        "norm": lambda values, axis: np.sqrt(np.square(values).sum(axis=axis)),
        "max": lambda values, axis: np.abs(values).max(axis=axis),
    }
)
#: The colour maps that they have by default; sizes have "reds".
_COLOURS = {"sum": "red-blue", "negative": "blues"}


@final
@dataclass(frozen=True)
class Paint:
    """A colour map stretched over [-limit, limit], or over [0, limit] if it has one side.

    limit: the absolute value that gets the full colour; 0 where there is no relevance at all.
    seen: the least and the greatest value that the paint was made for; what lies beyond the limit gets the full colour.
    """

    colours: ColourMap
    limit: float
    seen: tuple[float, float] = (0.0, 0.0)

    @property
    def lowest(self) -> float:
        """The least share of the limit that has a colour."""
        return -1.0 if self.colours.diverging else 0.0

    @property
    def numbers(self) -> dict[float, str]:
        """What stands beside a colour bar, by the share of the limit."""
        shares = (1.0, 0.0, -1.0) if self.colours.diverging else (1.0, 0.0)
        kept = [share for share in shares if self.limit > 0.0 or share == 0.0]
        return {share: number(share * self.limit, signed=self.colours.diverging) for share in kept}

    @property
    def beyond(self) -> tuple[bool, bool]:
        """Whether values were seen beyond the lower and the upper end."""
        return self.seen[0] < -self.limit, self.seen[1] > self.limit

    def shares(self, values: ArrayLike) -> Floats:
        """Return values as shares of the limit, at most 1 in size; all 0 if the limit is."""
        values = np.asarray(values, dtype=np.float64)
        return np.clip(values / self.limit, -1.0, 1.0) if self.limit > 0.0 else np.zeros_like(values)

    def __call__(self, values: ArrayLike) -> NDArray[np.uint8]:
        """Return the colours of values, any shape (...): (..., 3)."""
        return self.colours(self.shares(values))

    def image(self, values: Floats) -> Image.Image:
        """Return (H, W) values as a picture."""
        return Image.fromarray(self(values))


@final
@dataclass(frozen=True)
class Style:
    """How relevance becomes colour: the arguments that all drawings share.

    Parameters
    ----------
    pooling
        How the channels of a pixel become one value: "sum" (the default; signs cancel), "positive" or "negative" (the
        part of the sum that speaks for or against), "absolute" (the sum of sizes), "norm" (Euclidean) or "max" (the
        largest size).
    percentile
        The full colour stands for this percentile of the non-zero absolute values (their maximum by default), on both
        sides of zero alike; what lies beyond gets the full colour too.
    limit
        The full colour stands for this absolute value, whatever the relevance is: pictures that are drawn one by one
        can be compared.
    colours
        A colour map, see :func:`lrphooks.visualization.colours.colour_map`; by default "red-blue" for "sum", "blues"
        for "negative", and "reds" for the other poolings.

    """

    pooling: str = "sum"
    percentile: float = 100.0
    limit: float | None = None
    colours: Any = None

    def __post_init__(self) -> None:
        """Check the numbers and the names."""
        if self.pooling not in POOLINGS:
            raise ValueError(f"there is no pooling {self.pooling!r}: there are {', '.join(POOLINGS)}.")
        if not 0.0 < self.percentile <= 100.0:
            raise ValueError(f"percentile must be above 0 and at most 100, not {self.percentile}")
        if self.limit is not None and not 0.0 < self.limit < math.inf:
            raise ValueError(
                f"limit must be a positive number, the relevance that gets the full colour, not {self.limit}"
            )
        if self.limit is not None and self.percentile != 100.0:
            raise ValueError(f"limit={self.limit} and percentile={self.percentile} both set the scale: give one.")

    def paint(self, pooled: Iterable[Floats]) -> Paint:
        """Return the paint for values that share one scale."""
        colours = colour_map(self.colours, _COLOURS.get(self.pooling, "reds"))
        values = np.concatenate([part.ravel() for part in pooled])
        least, greatest = float(values.min()), float(values.max())
        if least < 0.0 and not colours.diverging:
            raise ValueError(
                f"the colour map {colours.name!r} has one side, and there is relevance below zero (least "
                f"{least:.3g}). Draw one part with pooling='positive' or 'negative', sizes with 'absolute', 'norm' or "
                "'max', or take a diverging map such as 'red-blue'."
            )
        sizes = np.abs(values[values != 0.0])
        limit = self.limit if self.limit is not None else percentile_of(sizes, self.percentile)
        return Paint(colours, limit, seen=(least, greatest))


def pool(relevance: Relevance, pooling: str = "sum") -> Floats:
    """Pool the relevance of one image over its channels: (C, H, W) or (H, W) becomes (H, W).

    Raises
    ------
    ValueError
        If the relevance is that of no image or not finite, or there is no such pooling.

    """
    return POOLINGS[Style(pooling).pooling](image_floats(relevance), 0)


def percentile_of(sizes: Floats, percentile: float) -> float:
    """Return the percentile of sizes that are not 0; 0 of none.

    Zeros are left out: on a mostly empty picture they would make any percentile 0.
    """
    return float(np.percentile(sizes, percentile)) if sizes.size else 0.0
