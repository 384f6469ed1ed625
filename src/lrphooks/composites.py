"""Presets: composites that the literature names, and those that any model can use."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrphooks.composite import Composite, Entry
from lrphooks.matching import AnyLinear, Convolution, First, Linear, ReLU, Softmax
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

_Number = float | Stabilizer


def EpsilonPlus(epsilon: _Number = 1e-6, stabilizer: _Number = 1e-6, *, layers: Sequence[Entry] = ()) -> Composite:
    """ZPlus on convolutions, epsilon on dense layers (Kohlbrenner et al., "Towards Best Practice", 2020).

    ``layers`` are entries that come first.
    """
    return Composite((*layers, (Convolution, ZPlus(stabilizer)), (Linear, Epsilon(epsilon))))


def EpsilonPlusFlat(epsilon: _Number = 1e-6, stabilizer: _Number = 1e-6, *, layers: Sequence[Entry] = ()) -> Composite:
    """:func:`EpsilonPlus` with the flat rule on the first executed linear layer."""
    return EpsilonPlus(epsilon, stabilizer, layers=[*layers, (First(AnyLinear), Flat(stabilizer))])


def EpsilonAlpha2Beta1(
    epsilon: _Number = 1e-6, stabilizer: _Number = 1e-6, *, layers: Sequence[Entry] = ()
) -> Composite:
    """AlphaBeta(2, 1) on convolutions, epsilon on dense layers (Kohlbrenner et al., 2020)."""
    return Composite((*layers, (Convolution, AlphaBeta(2.0, 1.0, stabilizer)), (Linear, Epsilon(epsilon))))


def EpsilonAlpha2Beta1Flat(
    epsilon: _Number = 1e-6, stabilizer: _Number = 1e-6, *, layers: Sequence[Entry] = ()
) -> Composite:
    """:func:`EpsilonAlpha2Beta1` with the flat rule on the first executed linear layer."""
    return EpsilonAlpha2Beta1(epsilon, stabilizer, layers=[*layers, (First(AnyLinear), Flat(stabilizer))])


def EpsilonGammaBox(
    low: float | Tensor,
    high: float | Tensor,
    epsilon: _Number = 1e-6,
    gamma: float = 0.25,
    stabilizer: _Number = 1e-6,
    *,
    layers: Sequence[Entry] = (),
) -> Composite:
    """ZBox on the first executed convolution, gamma on the others, epsilon on dense layers (Montavon et al., 2019).

    ``low`` and ``high`` bound the inputs of the first convolution: pixel values after normalisation.
    """
    return Composite(
        (
            *layers,
            (First(Convolution), ZBox(low, high, stabilizer)),
            (Convolution, Gamma(gamma, stabilizer)),
            (Linear, Epsilon(epsilon)),
        )
    )


def ExcitationBackprop(stabilizer: _Number = 1e-6, *, layers: Sequence[Entry] = ()) -> Composite:
    """ZPlus on every linear layer (Zhang et al., "Top-Down Neural Attention by Excitation Backprop", 2016)."""
    return Composite((*layers, (AnyLinear, ZPlus(stabilizer))))


def GuidedBackprop(*, layers: Sequence[Entry] = ()) -> Composite:
    """The gradient with guided ReLUs (Springenberg et al., 2015); ``x.grad`` is the modified gradient itself."""
    return Composite((*layers, (ReLU, GuidedReLU()), (AnyLinear, Gradient())), attribution="gradient")


def DeconvNet(*, layers: Sequence[Entry] = ()) -> Composite:
    """The gradient with deconvolution ReLUs (Zeiler and Fergus, 2014); ``x.grad`` is the modified gradient itself."""
    return Composite((*layers, (ReLU, DeconvReLU()), (AnyLinear, Gradient())), attribution="gradient")


def AttnLRP(epsilon: _Number = 1e-6, *, layers: Sequence[Entry] = ()) -> Composite:
    """Epsilon on linear layers, products half each, softmax by its gradient (Achtibat et al., 2024). For any model."""
    return Composite((*layers, (torch.softmax, Gradient()), (AnyLinear, Epsilon(epsilon))))


def CPLRP(epsilon: _Number = 1e-6, *, layers: Sequence[Entry] = ()) -> Composite:
    """Epsilon on linear layers, attention weights constant (Ali et al., 2022). For any model."""
    return Composite((*layers, (Softmax, Constant()), (AnyLinear, Epsilon(epsilon))))
