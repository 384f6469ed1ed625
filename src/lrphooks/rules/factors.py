"""The factors of the linear rules in as few passes over the output as possible, for a constant stabilizer.

They are the values that the terms of the rules define, without autograd: what a forward pass keeps. Sums of constants
go into the bias of the extra map, where they are free, and intermediate values are overwritten: on a CPU each of these
passes costs about as much as a small convolution.

With U = |w| |a| + |b|, twice the positive part P + b^+ is U + z and twice the negative one N + b^- is z - U.
"""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from lrphooks.layers.layer import Factor, Layer, Route

#: Twice what remains of a sum of contributions and of their sizes, below which it is rounding, and truly 0.
ULPS = 16.0
_PRECISE = (torch.float32, torch.float64)
_PLAIN = (Route("plain", 1.0),)


def precise(layer: Layer) -> bool:
    """Whether the values have digits enough to tell small parts of U from rounding, biases included."""
    return layer.output.dtype in _PRECISE


def epsilon(layer: Layer, shift: float) -> tuple[Factor, ...]:
    """Return the factor z / (z + shift * sign z)."""
    sizes = layer.output.abs()
    return (share_of_sizes(sizes, shift, out=sizes),)


def share_of_sizes(sizes: Tensor, shift: float, out: Tensor | None = None) -> Factor:
    """Return the factor |z| / (|z| + shift) from the sizes |z|."""
    if sizes.dtype in _PRECISE:
        # 1 - shift / (|z| + shift), which has its rounding in units of 1.
        return Factor(torch.add(sizes, shift, out=out), _PLAIN, shift=shift)
    return Factor(torch.div(sizes, sizes + shift, out=out), _PLAIN)


def gamma(layer: Layer, gamma: float, shift: float) -> tuple[Factor, ...]:
    """Return z / z', with z' = z + gamma * (P + b^+) where z > 0 and z + gamma * (N + b^-) where z < 0."""
    z, bias = layer.output, layer.bias
    if layer.input_nonnegative and layer.relu_follows:
        raised = None if bias is None else bias + gamma * bias.clamp(min=0)
        # Where z is positive, z' is; where it is not, the ReLU lets nothing come back, and any finite number will do.
        values = layer.apply("raised", gamma, raised).abs_().add_(shift)
        torch.div(z, values, out=values)
        return (Factor(values, (Route("raised", 1.0),)),)
    # |z'| = |z| + gamma / 2 * (|z| + U), divided by 1 + gamma / 2, so that the plain route needs no scale.
    half = gamma / 2
    share = half / (1 + half)
    values = z.abs().add_(_sizes(layer, shift / half), alpha=share)
    torch.div(z, values, out=values)
    return (Factor(values, (Route("plain", 1.0), Route("absolute", share, signed=True))),)


def zplus(layer: Layer, shift: float) -> tuple[Factor, ...]:
    """Return z / (P + b^+)."""
    z, bias = layer.output, layer.bias
    if layer.input_nonnegative:
        values = layer.apply("positive", bias=layer.offset(None if bias is None else bias.clamp(min=0), shift))
        torch.div(z, values, out=values)
        return (Factor(values, (Route("positive", 1.0),)),)
    sizes = _sizes(layer, 2 * shift)
    rising = _part(sizes, z, 1.0, 2 * shift, out=sizes)
    # One pass for the quotient and its double.
    torch.addcdiv(z.new_zeros(()), z, rising, value=2, out=rising)
    return (Factor(rising, (Route("agreeing", 1.0),)),)


def alpha_beta(layer: Layer, alpha: float, beta: float, shift: float) -> tuple[Factor, ...]:
    """Return z / (P + b^+), from which the factors of both parts follow, or one factor for each form of the weight."""
    z = layer.output
    if layer.input_nonnegative:
        (whole,) = zplus(layer, shift)
        routes = Route("positive", alpha), Route("negative", beta)
        return (Factor(whole.values, routes, partial(_both_parts, routes)),)
    sizes = _sizes(layer, 2 * shift)
    rising = _part(sizes, z, 1.0, 2 * shift)
    falling = _part(sizes, z, -1.0, 2 * shift, out=sizes)
    torch.div(z, rising, out=rising)
    torch.div(z, falling, out=falling)
    if beta != 1.0:
        falling.mul_(beta)
    plain = falling.add_(rising, alpha=alpha)
    less = torch.sub(plain, rising, alpha=2 * alpha, out=rising)
    return Factor(plain, (Route("plain", 1.0),)), Factor(less, (Route("absolute", -1.0),))


def _both_parts(routes: tuple[Route, Route], rising: Tensor) -> tuple[Factor, ...]:
    """Return r = z / P and z / (P - z) = r / (1 - r), biases and stabilizer in P.

    Either part needs no care where it is 0, since so are all contributions that would return by it. Where the second
    is only rounding of the first, it counts as large as that, so that nothing is returned many times over.
    """
    falling = (1 - rising).clamp_(min=ULPS * torch.finfo(rising.dtype).eps)
    torch.div(rising, falling, out=falling)
    return Factor(rising, routes[:1]), Factor(falling, routes[1:])


def _sizes(layer: Layer, shift: float) -> Tensor:
    """Return U plus a constant."""
    return layer.apply("absolute", bias=layer.offset(None if layer.bias is None else layer.bias.abs(), shift))


def _part(sizes: Tensor, z: Tensor, sign: float, shift: float, out: Tensor | None = None) -> Tensor:
    """Return U + z or U - z, their stabilizer ``shift`` included, or infinity where that is only rounding of z.

    Where it is, z is as large as U. In place: on a CPU, memory for another tensor takes longer than all these passes.
    """
    noise = sign * ULPS * torch.finfo(z.dtype).eps
    part = torch.add(sizes, z, alpha=sign + noise, out=out)
    return F.threshold(part, shift, math.inf, inplace=True).sub_(z, alpha=noise)
