"""Rules for operations other than linear layers: activations, products, softmax, normalisations."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from lrphooks.rules.base import Rule, number


@dataclass(frozen=True)
class Gradient(Rule):
    """The plain gradient: right for every operation that is linear or selects values.

    Formula: ``G_a = (dz/da)^T G``. For a linear operation this is LRP-0; on softmax it is the first-order expansion of
    AttnLRP.

    References
    ----------
    Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
    PLOS ONE 2015; for softmax: Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for
    Transformers", ICML 2024.
    """


@dataclass(frozen=True)
class Identity(Rule):
    """An elementwise operation hands each output's relevance to its own input.

    Formula: ``G_a = G * f(a) / a``, so that ``R_a = R_z``; where a is 0, ``G_a = G * f'(0)``.

    For f with f(0) = 0, such as GELU or tanh; of any other, what arrives where a is 0 is lost (the audit counts it as
    "zeros"). The output must have the shape of the input.

    References
    ----------
    Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", ICML 2024.
    """


@dataclass(frozen=True)
class Pass(Rule):
    """Relevance passes a layer of unchanged shape as it is.

    Formula: ``R_a = R_z``, element by element, also where a is 0.

    For activations the same as :class:`Identity`; a whole module may have it too, whatever it computes, as long as
    one of its inputs depends on what is explained. Where that input is 0 and the layers behind it carry gradients
    alone, what arrives is lost (the audit counts it as "zeros").

    Raises
    ------
    LRPError
        In the forward pass, if the module changes the shape or several of its inputs depend on what is explained.

    References
    ----------
    Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance Propagation",
    PLOS ONE 2015 (relevance passes activations unchanged).
    """


@dataclass(frozen=True)
class Constant(Rule):
    """The operation's result counts as a constant: it scales or gates relevance but receives none.

    Formula: ``G_a = 0``. As a factor of a product it takes no share either: the other factors receive all. With
    softmax this is CP-LRP.

    Where it is added to something, the sum absorbs its part (the audit counts it as "constants"). A model whose output
    itself is constant cannot be explained: an LRPError says so.

    References
    ----------
    Ali et al., "XAI for Transformers: Better Explanations through Conservative Propagation", ICML 2022.
    """


@dataclass(frozen=True)
class Uniform(Rule):
    """A product of n activations hands each an equal part.

    Formula: ``G_a = (dz/da)^T G / n``, so that each factor of ``z = a_1 a_2 ... a_n`` receives ``R_z / n``.

    Only factors that depend on what is explained count; one that is a product itself counts as what it is a product of.
    One that is a number plus an activation, as ``1 + tanh(u)``, is a gate and receives nothing beside factors that are
    not.

    References
    ----------
    Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", ICML 2024 (uniform
    rule).
    """


@dataclass(frozen=True)
class Proportional(Rule):
    """An elementwise product hands each activation a part in proportion to its absolute value.

    Formula: ``G_a = (dz/da)^T G * |a_k| / (|a_1| + ... + |a_n|)`` for factor k of ``z = a_1 a_2 ... a_n``.

    For ``torch.mul`` with two or more activations; any other product of activations raises an LRPError.

    References
    ----------
    Arras et al., "Explaining and Interpreting LSTMs", in: Explainable AI, Springer 2019 (LRP-abs).
    """


@dataclass(frozen=True)
class TakesAll(Rule):
    """A product of activations hands all relevance to one of them, and the others count as constant gates.

    Formula: ``R_k = R_z`` for the chosen factor k of ``z = a_1 a_2 ... a_n``, and 0 for the others.

    Parameters
    ----------
    operand
        Which of the activations that depend on the explained input receives relevance, counted from 0; the last one
        where there are fewer.

    Raises
    ------
    TypeError, ValueError
        If ``operand`` is not a finite number of at least 0.

    References
    ----------
    Arras et al., "Explaining Recurrent Neural Network Predictions in Sentiment Analysis", WASSA 2017 (LRP-all).
    """

    operand: int = 0

    def __post_init__(self) -> None:
        number("TakesAll", "operand", self.operand, minimum=0)


@dataclass(frozen=True)
class Normalize(Rule):
    """A normalisation is linear in its input: the mean is subtracted, the standard deviation counts as constant.

    Formula: ``G_a = C (G * w / sigma)`` with C the projection that subtracts the mean (absent in RMSNorm), w the gain
    and sigma the standard deviation (in RMSNorm the root mean square) of a.

    The shift that is added afterwards absorbs its part (the audit counts it as "bias").

    References
    ----------
    Ali et al., "XAI for Transformers: Better Explanations through Conservative Propagation", ICML 2022 (LN rule).
    """


@dataclass(frozen=True)
class GuidedReLU(Rule):
    """The ReLU of guided backpropagation: only positive gradients pass, where the input was positive.

    Formula: ``G_a = G^+ * 1[a > 0]``.

    References
    ----------
    Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR 2015 (workshop).
    """


@dataclass(frozen=True)
class DeconvReLU(Rule):
    """The ReLU of the deconvolutional network: only positive gradients pass, whatever the input was.

    Formula: ``G_a = G^+``.

    References
    ----------
    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
    """


@dataclass(frozen=True)
class OperationRule(Rule, ABC):
    """A rule of your own for any operation, also for one that lrphooks does not know: a subclass with one method.

    Formula: ``R_a = a * G_a`` for each operand a, with the ``G_a`` that :meth:`modified_gradients` returns.

    Subclasses are frozen dataclasses, so that they print, compare and hash as other rules do.

    Examples
    --------
    >>> @dataclass(frozen=True)
    ... class Halves(OperationRule):
    ...     def modified_gradients(self, gradient, output, operands):
    ...         return [gradient * output / (2 * a) for a in operands]
    >>> composite = Composite([(torch.atan2, Halves()), (AnyLinear, Epsilon())])
    """

    @abstractmethod
    def modified_gradients(
        self, gradient: Tensor, output: Tensor, operands: tuple[Tensor, ...]
    ) -> Sequence[Tensor | None]:
        """Return the modified gradient of each operand, of its shape, or None for one that receives nothing.

        gradient: the modified gradient G that arrives at the output, of its shape. output: the value z of the
        operation. operands: those that depend on the explained input, in the order of the call.
        Relevance that is differentiated needs it to be a differentiable function of all three, as what is written in
        operations of torch is.
        """
