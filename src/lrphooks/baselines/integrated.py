"""Integrated gradients."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from lrphooks.baselines import reference as references
from lrphooks.baselines.base import Baseline, count
from lrphooks.baselines.question import Question
from lrphooks.baselines.reference import Reference
from lrphooks.rules.base import number


@final
class IncompleteWarning(UserWarning):
    """The attributions of integrated gradients do not sum to the difference that they explain."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class IntegratedGradients(Baseline):
    """The gradient, averaged on the way from a reference to the input, times the difference of the two.

    Formula: ``A = (x - x') * integral_0^1 df/dx(x' + t (x - x')) dt``, which sums to f(x) - f(x') (completeness).

    The integral is a Gauss-Legendre sum: exact to rounding with a few steps where f is smooth, as good as any equal
    steps where its gradient jumps, as with ReLU; and never at an end, since a reference of zeros may be a kink of f.

    Parameters
    ----------
    steps
        How many points of the way are summed over.
    reference
        The input x' that stands for nothing to see: a number, a tensor that broadcasts to the input, or a tuple with
        one of these for each floating-point input.
    tolerance
        What part of f(x) - f(x') the attributions of a row may miss without a warning.
    batch
        How many rows run together at most, if there are more; a call with a target function runs one point at a time.

    Raises
    ------
    TypeError, ValueError
        If a number is out of its range, or the reference does not fit the inputs.

    Warns
    -----
    IncompleteWarning
        If the attributions of a row miss more than the tolerance.

    References
    ----------
    Sundararajan et al., "Axiomatic Attribution for Deep Networks", ICML 2017.
    """

    steps: int = 50
    reference: Reference = 0.0
    tolerance: float = 0.1
    batch: int = 64

    def __post_init__(self) -> None:
        count("IntegratedGradients", "steps", self.steps)
        count("IntegratedGradients", "batch", self.batch)
        number("IntegratedGradients", "tolerance", self.tolerance, minimum=0.0)
        object.__setattr__(self, "reference", references.checked("IntegratedGradients", self.reference))

    def attributions(self, question: Question) -> list[Tensor]:
        """Return the attribution of each input of a question, with its shape."""
        start = references.expanded("IntegratedGradients", self.reference, question.inputs)
        way = [x - x0 for x, x0 in zip(question.inputs, start, strict=True)]
        nodes, weights = np.polynomial.legendre.leggauss(self.steps)
        means = [torch.zeros_like(x) for x in question.inputs]
        together = question.together(self.batch)
        for first in range(0, self.steps, together):
            part = slice(first, first + together)
            trials = [
                torch.stack([x0 + (node + 1) / 2 * d for node in nodes[part]]) for x0, d in zip(start, way, strict=True)
            ]
            for mean, grads in zip(means, question.gradients(trials), strict=True):
                mean.add_(torch.tensordot(torch.as_tensor(weights[part] / 2).to(grads), grads, 1))
        found = [mean * d for mean, d in zip(means, way, strict=True)]
        self._check(question, start, found)
        return found

    def _check(self, question: Question, start: Sequence[Tensor], found: Sequence[Tensor]) -> None:
        """Warn of the row whose attributions miss most of what they should sum to."""
        with torch.no_grad():
            before, after = (question.explained([t.unsqueeze(0) for t in each]) for each in (start, question.inputs))
        # What several rows share, and a target function that sums over them, are judged as a whole.
        apart = all(t.dim() and len(t) == question.rows for t in (after, *found))
        rows = question.rows if apart else 1
        before, after, *parts = (t.detach().reshape(rows, -1).sum(1) for t in (before, after, *found))
        total = torch.stack(parts).sum(0)
        # What the difference of two values loses to rounding is nobody's fault.
        rounding = torch.finfo(after.dtype).eps ** 0.5 * (before.abs() + after.abs())
        missing = (after - before - total).abs()
        excess = missing - rounding - self.tolerance * (after - before).abs()
        row = int(excess.argmax())
        if excess[row] > 0:
            warnings.warn(
                f"IntegratedGradients: the attributions of row {row} miss {float(missing[row]):.3g} of f(x) - f(x') = "
                f"{float(after[row] - before[row]):.3g}, with f(x) = {float(after[row]):.3g}. More steps than "
                f"{self.steps} follow the gradient better.",
                IncompleteWarning,
                stacklevel=5,
            )
