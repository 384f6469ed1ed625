"""What every rule for linear maps is: terms of one executed layer, and what it makes of biases."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor

from lrphooks.layers.layer import Factor, Layer, Term
from lrphooks.rules.base import LayerRule, Stabilizer

#: What becomes of the relevance of biases, a merged BatchNorm's shift among them.
Bias = Literal["absorb", "ignore"]


@dataclass(frozen=True, repr=False)
class LinearRule(LayerRule):
    """A rule for linear layers that answers with terms: shares of the relevance and the weights they return by.

    Parameters
    ----------
    bias
        "absorb", as the literature has it: the bias takes part in the denominator, and its share goes nowhere.
        "ignore": it takes no part, as if the layer had none, so that all relevance of the output goes to the inputs,
        where any of them contributes. After a merged BatchNorm the layer runs once more for it.

    Raises
    ------
    ValueError
        If ``bias`` is neither.
    """

    bias: Bias = field(default="absorb", kw_only=True)

    def __post_init__(self) -> None:
        if self.bias not in ("absorb", "ignore"):
            raise ValueError(f'{type(self).__name__}: bias must be "absorb" or "ignore", got {self.bias!r}.')

    def __repr__(self) -> str:
        shown = [f.name for f in fields(self) if f.repr and f.name != "bias"]
        shown += ["bias"] if self.bias != "absorb" else []
        return f"{type(self).__qualname__}({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    @abstractmethod
    def terms(self, layer: Layer) -> tuple[Term, ...]:
        """Return the terms of this rule for one executed layer; a differentiable, pure function of its tensors."""

    def factors(self, layer: Layer) -> tuple[Factor, ...]:
        """Return what the terms come to for the modified gradient, computed without autograd.

        A rule may have a shorter way to the same values.
        """
        return tuple(factor for term in self.terms(layer) for factor in Factor.of(layer, term))

    @property
    def is_gradient(self) -> bool:
        """Whether the rule equals the plain gradient, so that nothing needs to be done."""
        return False

    def shift(self, dtype: torch.dtype) -> float | None:
        """Return s where all that the rule does is to multiply the gradient by z / (z + s sign z), else None."""
        return None

    @property
    def raise_by(self) -> float:
        """The gamma of the ``raised`` weight form."""
        return 0.0

    @property
    def separable(self) -> bool:
        """Whether what each output returns depends on that output alone, so that they may be computed apart."""
        return False


@dataclass(frozen=True, repr=False)
class Stabilized(LinearRule):
    """A linear rule whose denominators are stabilized."""

    stabilizer: float | Stabilizer = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        Stabilizer.ensure(type(self).__name__, "stabilizer", self.stabilizer)

    def stabilize(self, denominator: Tensor) -> Tensor:
        return Stabilizer.ensure(type(self).__name__, "stabilizer", self.stabilizer)(denominator)
