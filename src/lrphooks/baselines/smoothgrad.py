"""SmoothGrad, over any method."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from lrphooks import backward
from lrphooks.baselines.base import Baseline, count
from lrphooks.baselines.gradient import Gradient
from lrphooks.baselines.question import Question
from lrphooks.composite import Composite
from lrphooks.engine import containers
from lrphooks.forward import Inputs, explained
from lrphooks.rules.base import number


@final
@dataclass(frozen=True, eq=False, repr=False)
class SmoothGrad(Baseline):
    """The mean of a method's attributions for noisy copies of the input.

    Formula: ``A = 1/n sum_k M(x + e_k)``, e_k normal with standard deviation ``noise * (max x - min x)``, where the
    extremes are those of each row of each input.

    Parameters
    ----------
    method
        What is averaged: a baseline, or a composite for LRP.
    samples
        How many noisy copies there are.
    noise
        The standard deviation as a share of the range of values.
    seed
        The noise is drawn from a generator of its own with this seed: equal calls give equal results.

    Raises
    ------
    TypeError, ValueError
        If the method is neither a baseline nor a composite, or a number is out of its range.

    References
    ----------
    Smilkov et al., "SmoothGrad: removing noise by adding noise", 2017.
    """

    method: Baseline | Composite = field(default_factory=Gradient)
    samples: int = 50
    noise: float = 0.15
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.method, Baseline | Composite):
            hint = f" Did you mean {self.method.__name__}()?" if isinstance(self.method, type) else ""
            raise TypeError(
                f"SmoothGrad: method must be one of lrphooks.baselines or a composite, got {self.method!r} of type "
                f"{type(self.method).__module__}.{type(self.method).__qualname__}.{hint}"
            )
        count("SmoothGrad", "samples", self.samples)
        number("SmoothGrad", "noise", self.noise, minimum=0.0)
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise TypeError(f"SmoothGrad: seed must be an integer, got {self.seed!r}.")

    def attributions(self, question: Question) -> list[Tensor]:
        """Return the attribution of each input of a question, with its shape."""
        generator = torch.Generator().manual_seed(self.seed)
        means = [torch.zeros_like(x) for x in question.inputs]
        for _ in range(self.samples):
            noisy = [x + self._noise(x, generator) for x in question.inputs]
            for mean, found in zip(means, self._of(question, noisy), strict=True):
                mean.add_(found, alpha=1 / self.samples)
        return means

    def _noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        dims = tuple(range(1, x.dim()))
        spread = x.amax(dims, keepdim=True) - x.amin(dims, keepdim=True) if dims else torch.zeros_like(x)
        # Drawn on the CPU, so that every device sees the same.
        return self.noise * spread * torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device)

    def _of(self, question: Question, inputs: list[Tensor]) -> list[Tensor]:
        if isinstance(self.method, Baseline):
            return self.method.attributions(question.at(inputs))
        x, target, kwargs = question.arguments(inputs)
        entered = Inputs(x, kwargs, question.who)
        with explained(question.model, entered, [target], self.method) as values:
            (grads,) = backward.each(values, entered.leaves, 1)
        return list(containers.tensors(entered.arranged(grads)))
