"""Rules for linear maps whose relevance factors through the input: epsilon, gamma, z-plus, alpha-beta.

Notation, as in Montavon et al., "Layer-Wise Relevance Propagation: An Overview" (2019): a is the input,
z = w a + b the output, R the relevance; superscripts + and - are the positive and negative parts.

All signed rules rest on one identity. The positive contributions are P = sum (a w)^+ = (w a + |w| |a|) / 2 and the
negative ones N = w a - P, so one more map, |w| |a|, serves every rule, and each gradient is a combination of
w^T (.) and sign(a) * |w|^T (.).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache

import torch
from torch import Tensor

from lrphooks.layers.layer import Factor, Layer, Route, Term
from lrphooks.rules import factors, parts
from lrphooks.rules.base import Stabilizer, number
from lrphooks.rules.linear_rule import LinearRule, Stabilized


@dataclass(frozen=True, repr=False)
class Epsilon(LinearRule):
    """The epsilon rule; ``Epsilon(0)`` is LRP-0.

    Formula: ``R_a = a * w^T (R / (z + epsilon * sign(z)))``.

    Parameters
    ----------
    epsilon
        The stabilizer: a number, or a :class:`Stabilizer` (clipping, scaled by the norm of z).

    Raises
    ------
    TypeError, ValueError
        If ``epsilon`` is neither a finite number of at least 0 nor a :class:`Stabilizer`.

    References
    ----------
    Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
    Propagation", PLOS ONE 2015.
    """

    epsilon: float | Stabilizer = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        Stabilizer.ensure("Epsilon", "epsilon", self.epsilon)

    @property
    def _stabilizer(self) -> Stabilizer:
        return _epsilon_stabilizer(self.epsilon)

    def stabilize(self, denominator: Tensor) -> Tensor:
        """Return ``z + epsilon * sign(z)``, or what the :class:`Stabilizer` makes of z."""
        return self._stabilizer(denominator)

    @property
    def is_gradient(self) -> bool:
        return self._stabilizer.epsilon == 0.0 and self.bias == "absorb"

    @property
    def separable(self) -> bool:
        return not self._stabilizer.norm_scale

    def terms(self, layer: Layer) -> tuple[Term, ...]:
        return (Term(layer.output, (Route("plain", 1.0),), self._stabilizer, bias=layer.bias_like(layer.bias)),)

    def shift(self, dtype: torch.dtype) -> float | None:
        return self._stabilizer.shift(dtype)

    def factors(self, layer: Layer) -> tuple[Factor, ...]:
        shift = self.shift(layer.output.dtype)
        return super().factors(layer) if shift is None or layer.given is not None else factors.epsilon(layer, shift)


@lru_cache(64)
def _epsilon_stabilizer(epsilon: float | Stabilizer) -> Stabilizer:
    """Return the stabilizer, which is asked for at every layer."""
    given = Stabilizer.ensure("Epsilon", "epsilon", epsilon)
    return _OfShare(**{f.name: getattr(given, f.name) for f in fields(given)})


@dataclass(frozen=True)
class _OfShare(Stabilizer):
    """The stabilizer s of a share z / (z + s), which is at most 1, so that s may be as small as numbers are."""

    def _least(self, dtype: torch.dtype) -> float:
        info = torch.finfo(dtype)
        return max(self.epsilon, info.tiny * info.eps) if dtype == torch.float16 else self.epsilon


@dataclass(frozen=True, repr=False)
class Gamma(LinearRule):
    """The generalised gamma rule, which favours contributions of the output's own sign.

    Formula: ``R_a = a * (dz'/da)^T (R / z')`` with ``z' = z + gamma * (P + b^+)`` where z > 0 and
    ``z' = z + gamma * (N + b^-)`` where z < 0.

    P and N are the positive and the negative contributions. For inputs and outputs that are not negative this is the
    rule with weights ``w + gamma * w^+``.

    Parameters
    ----------
    gamma
        How much contributions of the output's own sign are favoured; 0 is the epsilon rule.
    stabilizer
        Keeps z' away from zero: a number, or a :class:`Stabilizer`.

    Raises
    ------
    TypeError, ValueError
        If ``gamma`` is not a finite number of at least 0.

    References
    ----------
    Montavon et al., "Layer-Wise Relevance Propagation: An Overview", in: Explainable AI, Springer 2019; the form for
    inputs of any sign: Andéol et al., "Learning Domain Invariant Representations by Joint Wasserstein Distance
    Minimization", 2021.
    """

    gamma: float = 0.25
    stabilizer: float | Stabilizer = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        number("Gamma", "gamma", self.gamma, minimum=0.0)
        Stabilizer.ensure("Gamma", "stabilizer", self.stabilizer)

    @property
    def raise_by(self) -> float:
        return float(self.gamma)

    @property
    def separable(self) -> bool:
        return not Stabilizer.ensure("Gamma", "stabilizer", self.stabilizer).norm_scale

    def terms(self, layer: Layer) -> tuple[Term, ...]:
        stabilize = Stabilizer.ensure("Gamma", "stabilizer", self.stabilizer)
        gamma = float(self.gamma)
        bias = layer.bias
        if layer.input_nonnegative and layer.relu_follows:
            raised = layer.bias_like(None if bias is None else bias + gamma * bias.clamp(min=0))
            return (Term(layer.apply("raised", gamma) + raised, (Route("raised", 1.0),), stabilize, bias=raised),)
        z = layer.output
        total = layer.apply("absolute")
        linear = z - layer.bias_like(bias)
        bias_up = layer.bias_like(None if bias is None else bias.clamp(min=0))
        bias_down = layer.bias_like(None if bias is None else bias.clamp(max=0))
        routes = (Route("plain", 1 + gamma / 2), Route("absolute", gamma / 2, signed=True))
        favoured = (linear + torch.copysign(total, z)) / 2
        bias_part: Tensor | float = 0.0
        if bias is not None:
            favoured_bias = torch.where(z < 0, bias_down, bias_up)
            favoured = favoured + favoured_bias
            bias_part = layer.bias_like(bias) + gamma * favoured_bias

        def by_norm(_: Tensor) -> Tensor:
            # The norm is that of a whole denominator, so each of the two is needed everywhere.
            rising = stabilize(z + gamma * ((linear + total) / 2 + bias_up))
            falling = stabilize(z + gamma * ((linear - total) / 2 + bias_down))
            return torch.where(z < 0, falling, rising)

        return (Term(z + gamma * favoured, routes, by_norm if stabilize.norm_scale else stabilize, bias=bias_part),)

    def factors(self, layer: Layer) -> tuple[Factor, ...]:
        shift = Stabilizer.ensure("Gamma", "stabilizer", self.stabilizer).shift(layer.output.dtype)
        if shift is None or not self.gamma or layer.given is not None:
            return super().factors(layer)
        return factors.gamma(layer, float(self.gamma), shift)


@dataclass(frozen=True, repr=False)
class ZPlus(Stabilized):
    """The z-plus rule: relevance follows the positive contributions alone.

    Formula: ``R_a = a * (dP/da)^T (R / (P + b^+))`` with P the positive contributions.

    The same as ``AlphaBeta(1, 0)``. Where nothing contributes positively, the bias absorbs what arrives.

    References
    ----------
    Montavon et al., "Explaining Nonlinear Classification Decisions with Deep Taylor Decomposition", Pattern
    Recognition 2017.
    """

    @property
    def separable(self) -> bool:
        return not Stabilizer.ensure("ZPlus", "stabilizer", self.stabilizer).norm_scale

    def terms(self, layer: Layer) -> tuple[Term, ...]:
        bias = layer.bias_like(None if layer.bias is None else layer.bias.clamp(min=0))
        if layer.input_nonnegative:
            return (Term(layer.apply("positive") + bias, (Route("positive", 1.0),), self.stabilize, bias=bias),)
        positive = parts.positive(layer.output - layer.bias_like(layer.bias), layer.apply("absolute"))
        # Half the sum of wᵀ and sign(a) |w|ᵀ is the same, but cancels where s is large; this does not.
        return (Term(positive + bias, (Route("agreeing", 1.0),), self.stabilize, bias=bias, empty=positive == 0),)

    def factors(self, layer: Layer) -> tuple[Factor, ...]:
        shift = Stabilizer.ensure("ZPlus", "stabilizer", self.stabilizer).shift(layer.output.dtype)
        if shift is None or layer.given is not None or not (layer.input_nonnegative or factors.precise(layer)):
            return super().factors(layer)
        return factors.zplus(layer, shift)


@dataclass(frozen=True, repr=False)
class AlphaBeta(LinearRule):
    """The alpha-beta rule: positive contributions times alpha, negative ones times beta, apart from each other.

    Formula: ``R_a = a * (alpha * (dP/da)^T (R / (P + b^+)) - beta * (dN/da)^T (R / (N + b^-)))`` with P the positive
    and N the negative contributions.

    Raises
    ------
    ValueError
        If alpha or beta is negative, or alpha - beta is not 1, without which relevance is not conserved.

    References
    ----------
    Bach et al., "On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise Relevance
    Propagation", PLOS ONE 2015.
    """

    alpha: float = 2.0
    beta: float = 1.0
    stabilizer: float | Stabilizer = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        alpha = number("AlphaBeta", "alpha", self.alpha, minimum=0.0)
        beta = number("AlphaBeta", "beta", self.beta, minimum=0.0)
        if not math.isclose(alpha - beta, 1.0, abs_tol=1e-9):
            raise ValueError(
                f"AlphaBeta: alpha - beta must be 1, or relevance is not conserved; got alpha={self.alpha!r}, "
                f"beta={self.beta!r}, a difference of {alpha - beta:g}. Use for example AlphaBeta(2, 1)."
            )
        Stabilizer.ensure("AlphaBeta", "stabilizer", self.stabilizer)

    @property
    def separable(self) -> bool:
        return not Stabilizer.ensure("AlphaBeta", "stabilizer", self.stabilizer).norm_scale

    def terms(self, layer: Layer) -> tuple[Term, ...]:
        stabilize = Stabilizer.ensure("AlphaBeta", "stabilizer", self.stabilizer)
        alpha, beta, bias = float(self.alpha), float(self.beta), layer.bias
        bias_up = layer.bias_like(None if bias is None else bias.clamp(min=0))
        bias_down = layer.bias_like(None if bias is None else bias.clamp(max=0))
        linear = layer.output - layer.bias_like(bias)
        if layer.input_nonnegative:
            positive = layer.apply("positive")
            negative = parts.remainder(linear, positive)
            up: tuple[Route, ...] = (Route("positive", alpha),)
            down: tuple[Route, ...] = (Route("negative", -beta),)
        else:
            total = layer.apply("absolute")
            positive, negative = parts.positive(linear, total), parts.negative(linear, total)
            up = (Route("plain", alpha / 2), Route("absolute", alpha / 2)) if beta else (Route("agreeing", alpha),)
            down = (Route("plain", -beta / 2), Route("absolute", beta / 2))
        terms = (Term(positive + bias_up, up, stabilize, bias_up, share=alpha, empty=positive == 0),)
        if beta == 0.0:
            return terms

        def stabilize_negative(total: Tensor) -> Tensor:
            # The sum is at most 0; a stabilizer takes exact zeros for positive, hence the changes of sign.
            return -stabilize(-total)

        second = Term(negative + bias_down, down, stabilize_negative, bias_down, share=-beta, empty=negative == 0)
        return (*terms, second)

    def factors(self, layer: Layer) -> tuple[Factor, ...]:
        shift = Stabilizer.ensure("AlphaBeta", "stabilizer", self.stabilizer).shift(layer.output.dtype)
        if shift is None or layer.given is not None or not factors.precise(layer):
            return super().factors(layer)
        if not self.beta:
            return factors.zplus(layer, shift)
        return factors.alpha_beta(layer, float(self.alpha), float(self.beta), shift)
