"""The gradient, and gradient times input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lrphooks.baselines.base import Baseline
from lrphooks.baselines.question import Question


@final
@dataclass(frozen=True, eq=False, repr=False)
class Gradient(Baseline):
    """The gradient, signed: how much the explained output changes with each input value.

    Formula: ``A = df/dx``. Its size is the saliency map of the paper.

    References
    ----------
    Simonyan et al., "Deep Inside Convolutional Networks: Visualising Image Classification Models and Saliency Maps",
    ICLR 2014 (workshop).
    """

    def attributions(self, question: Question) -> list[Tensor]:
        """Return the attribution of each input of a question, with its shape."""
        return question.gradient()


@final
@dataclass(frozen=True, eq=False, repr=False)
class InputXGradient(Baseline):
    """Input times gradient: LRP-0 in a network of linear layers, ReLU and max pooling.

    Formula: ``A = x * df/dx``.

    References
    ----------
    Shrikumar et al., "Not Just a Black Box: Learning Important Features Through Propagating Activation Differences",
    2016.
    """

    def attributions(self, question: Question) -> list[Tensor]:
        """Return the attribution of each input of a question, with its shape."""
        return [x * grad for x, grad in zip(question.inputs, question.gradient(), strict=True)]
