"""Occlusion."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lrphooks.baselines import reference as references
from lrphooks.baselines.base import Baseline, count
from lrphooks.baselines.question import Question
from lrphooks.baselines.reference import Reference

Sizes = int | tuple[int, ...]


@final
@dataclass(frozen=True, eq=False, repr=False)
class Occlusion(Baseline):
    """How much the explained output falls when a window of the input is covered.

    Formula: ``A_i = mean of f(x) - f(x with window w set to the reference), over the windows w that hold i``.

    Parameters
    ----------
    window
        The size of the window: in each of the last dimensions (a tuple), the others being covered in full, or in all
        dimensions behind rows and channels (an integer; of inputs without channels, such as tables, in the last one).
    stride
        How far the window moves, an integer or one in each dimension of the window, at most the window's size; the
        window's size when None. The last window of a dimension ends with the input.
    reference
        What a covered value becomes: a number, a tensor that broadcasts to the input, or a tuple with one of these for
        each floating-point input.
    batch
        How many rows run together at most, if there are more; a call with a target function runs one window at a time.

    Several inputs are covered one after the other.

    Raises
    ------
    TypeError, ValueError
        If a size is no integer of at least 1, a stride leaves gaps, or window or reference do not fit the inputs.

    References
    ----------
    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
    """

    window: Sizes
    stride: Sizes | None = None
    reference: Reference = 0.0
    batch: int = 64

    def __post_init__(self) -> None:
        window = self._sizes("window", self.window)
        stride = window if self.stride is None else self._sizes("stride", self.stride)
        if isinstance(window, tuple) and isinstance(stride, int):
            stride = (stride,) * len(window)
        if isinstance(stride, tuple) and (isinstance(window, int) or len(window) != len(stride)):
            raise ValueError(f"Occlusion: window {window} and stride {stride} count different dimensions.")
        pairs = zip(*((v,) if isinstance(v, int) else v for v in (window, stride)), strict=True)
        if any(step > size for size, step in pairs):
            raise ValueError(
                f"Occlusion: stride {stride} is larger than window {window}, so some values would never be covered."
            )
        object.__setattr__(self, "window", window)
        object.__setattr__(self, "stride", stride)
        count("Occlusion", "batch", self.batch)
        object.__setattr__(self, "reference", references.checked("Occlusion", self.reference))

    @staticmethod
    def _sizes(name: str, value: Sizes) -> Sizes:
        if isinstance(value, tuple | list) and value:
            return tuple(count("Occlusion", name, size) for size in value)
        return count("Occlusion", name, value)

    def attributions(self, question: Question) -> list[Tensor]:
        """Return the attribution of each input of a question, with its shape."""
        covers = references.expanded("Occlusion", self.reference, question.inputs)
        whole = question.values([t.unsqueeze(0) for t in question.inputs])
        return [self._falls(question, index, cover, whole) for index, cover in enumerate(covers)]

    def _falls(self, question: Question, index: int, cover: Tensor, whole: Tensor) -> Tensor:
        """Return the mean fall over the windows that hold each value of one input."""
        x = question.inputs[index]
        if not x.dim() or len(x) != question.rows:
            raise ValueError(
                f"Occlusion: input {index} has shape {tuple(x.shape)}, so what of it belongs to which of the "
                f"{question.rows} rows cannot be told. Give one row at a time, or bind that input in a function."
            )
        total, times = torch.zeros_like(x), torch.zeros_like(x)
        windows = list(self._windows(tuple(x.shape)))
        together = question.together(self.batch)
        for first in range(0, len(windows), together):
            part = windows[first : first + together]
            trials = [t.expand(len(part), *t.shape) for t in question.inputs]
            trials[index] = trials[index].clone()
            for trial, window in zip(trials[index], part, strict=True):
                trial[window] = cover[window]
            for fall, window in zip(whole - question.values(trials), part, strict=True):
                total[window] += fall.reshape(-1, *(1,) * (x.dim() - 1)).to(total)
                times[window] += 1
        return total / times

    def _windows(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
        """Yield the windows of an input as slices."""
        dims = len(shape) - 1
        behind = max(1, dims - 1)
        window, stride = (
            (sizes,) * behind if isinstance(sizes, int) else sizes
            for sizes in (self.window, self.stride or self.window)
        )
        covered = dims - len(window)
        if covered < 0 or any(size > length for size, length in zip(window, shape[1 + covered :], strict=True)):
            raise ValueError(
                f"Occlusion: a window of {window} does not fit into rows of shape {shape[1:]}. Its sizes are those in "
                "the last dimensions."
            )
        ranges = []
        for size, step, length in zip(window, stride, shape[1 + covered :], strict=True):
            steps = math.ceil((length - size) / step) + 1
            ranges.append([slice(i * step, min(i * step + size, length)) for i in range(steps)])
        for slices in itertools.product(*ranges):
            yield (slice(None),) * (1 + covered) + slices
