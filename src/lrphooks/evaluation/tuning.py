"""Choosing the parameters of a composite by a metric."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lrphooks.baselines import Baseline
from lrphooks.composite import Composite
from lrphooks.engine.errors import LRPError
from lrphooks.evaluation.flipping import SymmetricRelevanceGain
from lrphooks.evaluation.infill import Blur
from lrphooks.evaluation.method import Target
from lrphooks.evaluation.metric import Metric, whole
from lrphooks.evaluation.result import Result, difference


@dataclass(frozen=True, eq=False, repr=False)
class Space:
    """Composites to choose from: a function that makes one, and the values that its arguments may have.

    Parameters
    ----------
    make
        A preset, or any function of keyword arguments that returns a composite or a baseline.
    choices
        For each argument the values to try.

    Raises
    ------
    TypeError, ValueError
        If ``make`` is no function, or an argument has no values.

    Examples
    --------
    >>> Space(EpsilonGammaBox, low=[-2.1], high=[2.6], gamma=[0.1, 0.25, 0.5])
    """

    make: Callable[..., Composite | Baseline]
    choices: Mapping[str, tuple[Any, ...]]

    def __init__(self, make: Callable[..., Composite | Baseline], /, **choices: Iterable[Any]) -> None:
        if not callable(make):
            raise TypeError(f"Space: make must be a function that makes a composite, such as a preset, got {make!r}.")
        for name, values in choices.items():
            if isinstance(values, str | Tensor) or not isinstance(values, Iterable):
                raise TypeError(
                    f"Space: {name} must be a list of the values to try, got {values!r}. Give {name}=[...]."
                )
        listed = {name: tuple(values) for name, values in choices.items()}
        if empty := [name for name, values in listed.items() if not values]:
            raise ValueError(f"Space: {empty[0]} has no values to try.")
        object.__setattr__(self, "make", make)
        object.__setattr__(self, "choices", listed)

    def __len__(self) -> int:
        return math.prod(map(len, self.choices.values()))

    def __repr__(self) -> str:
        name = getattr(self.make, "__name__", repr(self.make))
        parts = [name, *(f"{argument}={list(values)!r}" for argument, values in self.choices.items())]
        return f"Space({', '.join(parts)})"

    def combinations(self) -> list[dict[str, Any]]:
        """Return the arguments of every composite of the space."""
        return [dict(zip(self.choices, values, strict=True)) for values in itertools.product(*self.choices.values())]


@dataclass(frozen=True, eq=False)
class Trial:
    """One combination: its arguments, the composite that they make, and what it got, or why it could not be judged."""

    arguments: Mapping[str, Any]
    composite: Composite | Baseline | None
    result: Result | None
    error: str = ""


@dataclass(frozen=True, eq=False, repr=False)
class Tuning:
    """All trials of a search, the best first; it prints as a table and the code of the best composite."""

    metric: Metric
    trials: tuple[Trial, ...]

    @property
    def best(self) -> Trial:
        """The best trial."""
        return self.trials[0]

    @property
    def composite(self) -> Composite | Baseline:
        """The composite of the best trial."""
        assert self.best.composite is not None
        return self.best.composite

    def __repr__(self) -> str:
        varied = [
            name
            for name in self.best.arguments
            if len({repr(trial.arguments[name]) for trial in self.trials}) > 1 or len(self.trials) == 1
        ]
        header = [*varied, "mean", "± se", "to the best"]
        table = [header, *([*(repr(t.arguments[n]) for n in varied), *self._numbers(t)] for t in self.trials)]
        widths = [max(len(line[i]) if i < len(line) else 0 for line in table) for i in range(len(header))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=False)) for line in table]
        return "\n".join([repr(self.metric), *(line.rstrip() for line in lines), repr(self.composite)])

    def _numbers(self, trial: Trial) -> list[str]:
        if trial.result is None:
            return [trial.error]
        found = [f"{trial.result.mean:.4g}", f"{trial.result.standard_error:.2g}"]
        if trial is not self.best and len(trial.result.values) > 1:
            assert self.best.result is not None
            apart = difference(trial.result, self.best.result)
            found.append(f"{apart.mean:+.4g} ± {apart.standard_error:.2g}")
        return found


def tune(
    model: nn.Module,
    x: Tensor,
    target: Target,
    space: Space | Sequence[Space],
    metric: Metric | None = None,
    *,
    truth: Tensor | None = None,
    budget: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int, Trial], None] | None = None,
) -> Tuning:
    """Choose the composite of a space that a metric judges best.

    The rows of x must not be those that the result is reported on later: what is best on some rows is a little worse on
    others, the more so the more combinations were tried. The table tells which are as good as the best within the
    standard error of their paired difference.

    Parameters
    ----------
    model, x, target
        As every metric takes them.
    space
        The composites to choose from, or several spaces.
    metric
        What judges them; by default, for pictures, the symmetric relevance gain of about 14 patches a side with a blur.
    truth
        For metrics of localisation: the region of each row.
    budget
        How many combinations are tried at most, drawn by chance; all by default.
    seed
        That chance.
    progress
        Called after each trial with the number of trials that are done, of all, and the trial.

    Returns
    -------
    Tuning
        All trials, the best first. A combination that cannot be made or cannot serve the model is one with its error.

    Raises
    ------
    TypeError, ValueError
        If an argument is wrong, the metric has no better direction, there is no usual metric for x, or no combination
        could be judged.

    Examples
    --------
    >>> space = Space(EpsilonGammaBox, low=[low], high=[high], gamma=[0.1, 0.25, 0.5])
    >>> found = tune(model, images, labels, space, budget=20)
    >>> print(found)  # every trial, and the code of the best composite
    >>> lrp(model, x, None, found.composite)
    """
    spaces = (space,) if isinstance(space, Space) else tuple(space)
    if not spaces or not all(isinstance(one, Space) for one in spaces):
        raise TypeError(f"tune: space must be a Space(preset, argument=[values]), or several, got {space!r}.")
    metric = _usual(x) if metric is None else metric
    if not isinstance(metric, Metric):
        raise TypeError(f"tune: metric must be a metric such as SymmetricRelevanceGain(), got {metric!r}.")
    if metric.better is None:
        raise ValueError(f"tune: {metric!r} has no better direction, so it cannot choose.")
    if budget is not None:
        whole("tune", "budget", budget)
    every = [(one, arguments) for one in spaces for arguments in one.combinations()]
    if budget is not None and budget < len(every):
        every = random.Random(seed).sample(every, budget)  # noqa: S311  no secret
    trials: list[Trial] = []
    for one, arguments in every:
        trials.append(_trial(one.make, arguments, lambda made: metric(model, x, target, made, truth=truth)))
        if progress is not None:
            progress(len(trials), len(every), trials[-1])
    judged = [trial for trial in trials if trial.result is not None]
    if not judged:
        raise ValueError(f"tune: none of {len(trials)} combinations could be judged; the first: {trials[0].error}")
    judged.sort(key=lambda trial: trial.result.mean if trial.result else 0.0, reverse=metric.better == "higher")
    return Tuning(metric, (*judged, *(trial for trial in trials if trial.result is None)))


def _trial(
    make: Callable[..., Composite | Baseline],
    arguments: Mapping[str, Any],
    judge: Callable[[Composite | Baseline], Result],
) -> Trial:
    made: Composite | Baseline | None = None
    try:
        made = make(**arguments)
        return Trial(arguments, made, judge(made))
    except (LRPError, ValueError, TypeError) as error:
        return Trial(arguments, made, None, f"{type(error).__name__}: {error}")


def _usual(x: Any) -> Metric:
    if not isinstance(x, Tensor) or x.dim() != 4:
        raise ValueError("tune: x is no batch of pictures, for which there is a usual metric; give metric=...")
    patch = max(1, min(x.shape[2:]) // 14)
    return SymmetricRelevanceGain(patch=patch, infill=Blur(max(1.0, 10 * patch / 16)), steps=14)
