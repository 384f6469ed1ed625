"""Rules for operations other than linear layers: activations, products, softmax, normalisations."""

from __future__ import annotations

from dataclasses import dataclass

from lrphooks.rules.base import Rule, number


@dataclass(frozen=True)
class Gradient(Rule):
    """The plain gradient: right for every operation that is linear or selects values.

    Formula: ``G_a = (dz/da)^T G`` with ``R = a * G``. On softmax it is the first-order expansion of AttnLRP.
    """


@dataclass(frozen=True)
class Identity(Rule):
    """An elementwise operation hands each output's relevance to its own input.

    Formula: ``G_a = G * f(a) / a`` (f'(0) where a is 0), so that ``R_a = R_z``. For f with f(0) = 0.

    References
    ----------
    Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", 2024.
    """


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes a layer of unchanged shape as it is, R_a = R_z.

    For activations the same as :class:`Identity`; a whole module may have it too, whatever it computes.

    Raises
    ------
    ValueError
        If the module changes the shape.
    """


@dataclass(frozen=True)
class Constant(Rule):
    """The operation's result counts as a constant: it scales or gates relevance but receives none.

    Formula: ``G_a = 0``. With softmax this is CP-LRP.

    References
    ----------
    Ali et al., "XAI for Transformers: Better Explanations through Conservative Propagation", 2022.
    """


@dataclass(frozen=True)
class Uniform(Rule):
    """A product of n activations hands each an equal part.

    Formula: ``G_a = (dz/da)^T G / n``, so that each factor of ``z = a_1 a_2 ... a_n`` receives R_z / n.

    References
    ----------
    Achtibat et al., 2024 (uniform rule).
    """


@dataclass(frozen=True)
class Proportional(Rule):
    """An elementwise product hands each activation a part in proportion to its absolute value.

    Formula: ``G_a = (dz/da)^T G * |a_k| / (|a_1| + ... + |a_n|)`` for each factor of ``z = a_1 a_2 ... a_n``.

    References
    ----------
    Arras et al., "Explaining and Interpreting LSTMs", 2019 (LRP-abs).
    """


@dataclass(frozen=True)
class TakesAll(Rule):
    """A product of activations hands all relevance to one of them, and the others count as constant gates.

    Parameters
    ----------
    operand
        Which of the activations that depend on the explained input receives relevance, counted from 0.

    References
    ----------
    Arras et al., "Explaining Recurrent Neural Network Predictions in Sentiment Analysis", 2017 (LRP-all).
    """

    operand: int = 0

    def __post_init__(self) -> None:
        number("TakesAll", "operand", self.operand, minimum=0)


@dataclass(frozen=True)
class Normalize(Rule):
    """A normalisation is linear in its input: the mean is subtracted, the standard deviation counts as constant.

    Formula: ``G_a = C (G * w / sigma)`` with C the projection that subtracts the mean (absent in RMSNorm).

    References
    ----------
    Ali et al., 2022 (LN rule).
    """


@dataclass(frozen=True)
class GuidedReLU(Rule):
    """The ReLU of guided backpropagation: only positive gradients pass, where the input was positive.

    Formula: ``G_a = G^+ * 1[a > 0]``.

    References
    ----------
    Springenberg et al., "Striving for Simplicity: The All Convolutional Net", 2015.
    """


@dataclass(frozen=True)
class DeconvReLU(Rule):
    """The ReLU of the deconvolutional network: only positive gradients pass, whatever the input was.

    Formula: ``G_a = G^+``.

    References
    ----------
    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", 2014.
    """
