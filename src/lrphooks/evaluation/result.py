"""What a metric returns: a number for each row, and how two methods differ on the same rows."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Numbers: TypeAlias = NDArray[np.float64]


class Scale(Protocol):
    """A metric, as its numbers know it."""

    @property
    def better(self) -> Literal["higher", "lower"] | None:
        """Which way is better."""


@dataclass(frozen=True, eq=False, repr=False)
class Result:
    """The numbers that one metric gave one method.

    Parameters
    ----------
    metric
        The metric, with its options.
    values
        One number a row, shape (rows,).
    curve
        What the numbers are made of, shape (rows, points), where the metric has a curve.
    at
        Where the points of the curve lie: numbers, such as the fraction of the input that is removed, or names, such
        as those of the modules that are randomised. Shape (points,).
    """

    metric: Scale
    values: Numbers
    curve: Numbers | None = None
    at: NDArray[np.float64] | NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        for array in (self.values, self.curve, self.at):
            if array is not None:
                array.setflags(write=False)

    @property
    def mean(self) -> float:
        """The mean of the rows."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """The standard error of the mean, ``s / sqrt(rows)``; NaN for a single row."""
        return _standard_error(self.values)

    def __repr__(self) -> str:
        rows = len(self.values)
        direction = f", {self.metric.better} is better" if self.metric.better else ""
        if rows == 1:
            return f"{self.metric!r}: {self.mean:.4g} (1 row{direction})"
        return f"{self.metric!r}: {self.mean:.4g} ± {self.standard_error:.2g} ({rows} rows{direction})"


@dataclass(frozen=True, eq=False, repr=False)
class Difference:
    """The paired difference of two methods, ``values = first - second`` row by row, with the interval of its mean."""

    metric: Scale
    values: Numbers
    level: float
    low: float
    high: float

    def __post_init__(self) -> None:
        self.values.setflags(write=False)

    @property
    def mean(self) -> float:
        """The mean difference."""
        return float(self.values.mean())

    @property
    def standard_error(self) -> float:
        """The standard error of the mean difference."""
        return _standard_error(self.values)

    def __repr__(self) -> str:
        return (
            f"{self.metric!r}: difference {self.mean:+.4g} ± {self.standard_error:.2g} "
            f"({self.level:.0%} interval {self.low:+.4g} to {self.high:+.4g}, {len(self.values)} rows)"
        )


def difference(first: Result, second: Result, *, level: float = 0.95) -> Difference:
    """Return the paired difference of two methods that the same metric judged on the same rows.

    Formula: ``mean(d) ± t s / sqrt(n)`` for the differences d of the n rows, with s their standard deviation and t the
    quantile of Student's distribution with n - 1 degrees of freedom: the interval that covers the true mean difference
    with probability ``level``.

    Raises
    ------
    ValueError
        If the metrics or the numbers of rows differ, there are fewer than two rows, or ``level`` is not between 0
        and 1.
    """
    if first.metric != second.metric:
        raise ValueError(f"difference: two metrics cannot be compared: {first.metric!r} and {second.metric!r}.")
    if len(first.values) != len(second.values):
        raise ValueError(
            f"difference: the first result has {len(first.values)} rows and the second {len(second.values)}. Judge "
            "both methods on the same rows."
        )
    if len(first.values) < 2:
        raise ValueError("difference: one row has no spread, so there is no interval. Judge two rows or more.")
    if not 0.0 < level < 1.0:
        raise ValueError(f"difference: level is a probability between 0 and 1, got {level!r}.")
    values = first.values - second.values
    half = student_quantile((1 + level) / 2, len(values) - 1) * _standard_error(values)
    mean = float(values.mean())
    return Difference(first.metric, values, level, mean - half, mean + half)


def _standard_error(values: Numbers) -> float:
    return float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


@lru_cache(maxsize=64)
def student_quantile(probability: float, degrees: int) -> float:
    """Return the quantile of Student's t distribution for a probability of at least one half.

    With ``t = sqrt(degrees) tan(u)`` the distribution is ``1/2 + c * integral of cos(v)**(degrees - 1) from 0 to u``,
    a smooth integral over a finite range, which is bisected.
    """
    nodes, weights = np.polynomial.legendre.leggauss(200)
    # Beyond twelve standard deviations of v nothing is left to integrate, and the nodes must not miss the peak.
    farthest = min(math.pi / 2, 12 / math.sqrt(degrees))

    def integral(u: float) -> float:
        return float(weights @ np.cos((nodes + 1) * u / 2) ** (degrees - 1)) * u / 2

    whole = 2 * integral(farthest)
    low, high = 0.0, farthest
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 + integral(middle) / whole < probability else (low, middle)
    return math.sqrt(degrees) * math.tan(low)
