"""Presets: composites that the literature names, and those that any model can use.

Arguments shared by all: ``epsilon`` stabilizes the epsilon rule and ``stabilizer`` the others, each a number or a
:class:`lrphooks.rules.Stabilizer`. ``layers`` are entries, pairs of a matcher and a rule, that come before the
preset's own, so that they win. ``bias`` is that of the linear rules (:class:`lrphooks.rules.LinearRule`): with "ignore"
the layers hand all relevance on to their inputs, and biases and merged BatchNorms absorb none.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lrphooks.composite import Composite
from lrphooks.entries import Entry
from lrphooks.matching import AnyLinear, Convolution, First, Linear, ReLU, Softmax, Sum
from lrphooks.rules import (
    AlphaBeta,
    Constant,
    DeconvReLU,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    GuidedReLU,
    Stabilizer,
    ZBox,
    ZPlus,
)
from lrphooks.rules.base import number
from lrphooks.rules.linear_rule import Bias

_Number = float | Stabilizer


def EpsilonPlus(
    epsilon: _Number = 1e-6, stabilizer: _Number = 1e-6, *, bias: Bias = "absorb", layers: Sequence[Entry] = ()
) -> Composite:
    """ZPlus on convolutions, epsilon on dense layers.

    References
    ----------
    Kohlbrenner et al., "Towards Best Practice in Explaining Neural Network Decisions with LRP", IJCNN 2020.
    """
    return Composite((*layers, (Convolution, ZPlus(stabilizer, bias=bias)), (Linear, Epsilon(epsilon, bias=bias))))


def EpsilonPlusFlat(
    epsilon: _Number = 1e-6, stabilizer: _Number = 1e-6, *, bias: Bias = "absorb", layers: Sequence[Entry] = ()
) -> Composite:
    """:func:`EpsilonPlus` with the flat rule on the first executed linear layer.

    References
    ----------
    Kohlbrenner et al., "Towards Best Practice in Explaining Neural Network Decisions with LRP", IJCNN 2020.
    """
    return EpsilonPlus(epsilon, stabilizer, bias=bias, layers=[*layers, (First(AnyLinear), Flat(stabilizer))])


def EpsilonAlpha2Beta1(
    epsilon: _Number = 1e-6, stabilizer: _Number = 1e-6, *, bias: Bias = "absorb", layers: Sequence[Entry] = ()
) -> Composite:
    """AlphaBeta(2, 1) on convolutions, epsilon on dense layers.

    References
    ----------
    Kohlbrenner et al., "Towards Best Practice in Explaining Neural Network Decisions with LRP", IJCNN 2020.
    """
    return Composite(
        (*layers, (Convolution, AlphaBeta(2.0, 1.0, stabilizer, bias=bias)), (Linear, Epsilon(epsilon, bias=bias)))
    )


def EpsilonAlpha2Beta1Flat(
    epsilon: _Number = 1e-6, stabilizer: _Number = 1e-6, *, bias: Bias = "absorb", layers: Sequence[Entry] = ()
) -> Composite:
    """:func:`EpsilonAlpha2Beta1` with the flat rule on the first executed linear layer.

    References
    ----------
    Kohlbrenner et al., "Towards Best Practice in Explaining Neural Network Decisions with LRP", IJCNN 2020.
    """
    return EpsilonAlpha2Beta1(epsilon, stabilizer, bias=bias, layers=[*layers, (First(AnyLinear), Flat(stabilizer))])


def EpsilonGammaBox(
    low: float | Tensor,
    high: float | Tensor,
    epsilon: _Number = 1e-6,
    gamma: float = 0.25,
    stabilizer: _Number = 1e-6,
    *,
    bias: Bias = "absorb",
    layers: Sequence[Entry] = (),
) -> Composite:
    """ZBox on the first executed convolution, gamma on the others, epsilon on dense layers.

    Parameters
    ----------
    low, high
        The least and the greatest value that an input of the first convolution can have: what black and white pixels
        become after normalisation. Numbers, or tensors that broadcast against the input or hold one value a channel.
    gamma
        How much the gamma rule favours contributions of the output's own sign.

    Raises
    ------
    TypeError, ValueError
        If ``low`` is above ``high``, or a number is not finite or negative where it must not be.

    References
    ----------
    Montavon et al., "Layer-Wise Relevance Propagation: An Overview", in: Explainable AI, Springer 2019.
    """
    return Composite(
        (
            *layers,
            (First(Convolution), ZBox(low, high, stabilizer)),
            (Convolution, Gamma(gamma, stabilizer, bias=bias)),
            (Linear, Epsilon(epsilon, bias=bias)),
        )
    )


def GammaDecay(
    model: nn.Module,
    low: float | Tensor,
    high: float | Tensor,
    first: float = 1.0,
    last: float = 0.05,
    sums: float | None = 10.0,
    epsilon: _Number = 1e-6,
    stabilizer: _Number = 1e-6,
    *,
    bias: Bias = "absorb",
    layers: Sequence[Entry] = (),
) -> Composite:
    """:func:`EpsilonGammaBox` with a gamma that falls with the depth of the convolution, and one for residual sums.

    Formula: the i-th of the n convolutions of ``model``, in the order in which it registers them, has ``gamma = first *
    (last / first) ** ((i - 1) / (n - 1))``. Those that are no modules have the geometric mean of the two.

    Near the input single contributions are noisy, and a large gamma averages over them; near the output a small one
    keeps what speaks against the explained class, which few features tell apart from its neighbours. In a sum the
    branch and what skips it may cancel, so that their shares are many times the sum; gamma holds them down.

    Parameters
    ----------
    model
        The model that it is for.
    low, high
        As for :func:`EpsilonGammaBox`.
    first, last
        The gamma of the first and of the last convolution.
    sums
        The gamma of sums of two activations. None hands each summand its plain share.

    Raises
    ------
    TypeError, ValueError
        If ``low`` is above ``high``, ``first`` or ``last`` is not above 0, ``sums`` is negative, or a number is not
        finite.

    References
    ----------
    Rules by depth: Montavon et al., "Layer-Wise Relevance Propagation: An Overview", in: Explainable AI, Springer 2019.
    The defaults were chosen on ResNet-50, MobileNetV2 and EfficientNet-Lite0, on pictures held apart from those that
    ``docs/faithfulness.md`` reports.
    """
    for name, value in (("first", first), ("last", last)):
        if number("GammaDecay", name, value) <= 0.0:
            raise ValueError(f"GammaDecay: {name} must be above 0, got {value!r}. Gamma falls by equal factors.")
    if not isinstance(model, nn.Module):
        raise TypeError(f"GammaDecay: model must be the torch.nn.Module that it is for, got {model!r}.")
    # In a name pattern, a bracket would begin a set of characters.
    names = [n.replace("[", "[[]") for n, m in model.named_modules() if n and isinstance(m, Convolution.types)]
    steps = max(1, len(names) - 1)
    summed = [] if sums is None else [(Sum, Gamma(number("GammaDecay", "sums", sums, minimum=0.0), stabilizer))]
    falling = [
        (name, Gamma(first * (last / first) ** (i / steps), stabilizer, bias=bias)) for i, name in enumerate(names)
    ]
    return Composite(
        (
            *layers,
            (First(Convolution), ZBox(low, high, stabilizer)),
            *summed,
            *falling,
            (Convolution, Gamma((first * last) ** 0.5, stabilizer, bias=bias)),
            (Linear, Epsilon(epsilon, bias=bias)),
        )
    )


def ExcitationBackprop(stabilizer: _Number = 1e-6, *, bias: Bias = "absorb", layers: Sequence[Entry] = ()) -> Composite:
    """ZPlus on every linear layer.

    References
    ----------
    Zhang et al., "Top-Down Neural Attention by Excitation Backprop", ECCV 2016.
    """
    return Composite((*layers, (AnyLinear, ZPlus(stabilizer, bias=bias))))


def GuidedBackprop(*, layers: Sequence[Entry] = ()) -> Composite:
    """The gradient with guided ReLUs; ``x.grad`` is the modified gradient itself, which need not sum to f(x).

    References
    ----------
    Springenberg et al., "Striving for Simplicity: The All Convolutional Net", ICLR 2015 (workshop).
    """
    return Composite((*layers, (ReLU, GuidedReLU()), (AnyLinear, Gradient())), attribution="gradient")


def DeconvNet(*, layers: Sequence[Entry] = ()) -> Composite:
    """The gradient with deconvolution ReLUs; ``x.grad`` is the modified gradient itself, which need not sum to f(x).

    References
    ----------
    Zeiler and Fergus, "Visualizing and Understanding Convolutional Networks", ECCV 2014.
    """
    return Composite((*layers, (ReLU, DeconvReLU()), (AnyLinear, Gradient())), attribution="gradient")


def AttnLRP(epsilon: _Number = 0.0, *, bias: Bias = "absorb", layers: Sequence[Entry] = ()) -> Composite:
    """LRP-0 on linear layers, products half each, softmax by its gradient. For any model, transformers above all.

    No stabilizer is needed, since the modified gradient divides by no activation. With one, ``epsilon`` above 0, the
    linear layers have the epsilon rule, which keeps a copy of each layer's output.

    The softmax expansion has an offset that absorbs relevance of its own; :func:`CPLRP` has none.

    References
    ----------
    Achtibat et al., "AttnLRP: Attention-Aware Layer-Wise Relevance Propagation for Transformers", ICML 2024.
    """
    return Composite((*layers, (torch.softmax, Gradient()), (AnyLinear, Epsilon(epsilon, bias=bias))))


def CPLRP(epsilon: _Number = 0.0, *, bias: Bias = "absorb", layers: Sequence[Entry] = ()) -> Composite:
    """LRP-0 on linear layers, attention weights constant, so the values take all. For any model.

    As for :func:`AttnLRP`, no stabilizer is needed.

    References
    ----------
    Ali et al., "XAI for Transformers: Better Explanations through Conservative Propagation", ICML 2022.
    """
    return Composite((*layers, (Softmax, Constant()), (AnyLinear, Epsilon(epsilon, bias=bias))))
