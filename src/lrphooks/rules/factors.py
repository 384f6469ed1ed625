"""The factors of the linear rules in as few passes over the output as possible, for a constant stabilizer.

They are the values that the terms of the rules define, without autograd: what a forward pass keeps. Sums of constants
go into the bias of the extra map, where they are free, and intermediate values are overwritten: on a CPU each of these
passes costs about as much as a small convolution.

With U = |w| |a| + |b|, twice the positive part P + b^+ is U + z and twice the negative one N + b^- is z - U.
"""

from __future__ import annotations

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
        # Where z is positive, z' is; where it is not, the ReLU lets nothing come back, and any number will do.
        values = layer.apply("raised", gamma, raised).abs_().add_(shift)
        torch.div(z, values, out=values)
        return (Factor(values, (Route("raised", 1.0),)),)
    # |z'| = |z| + gamma / 2 * (|z| + U), divided by gamma / 2 to save a pass.
    half = gamma / 2
    values = _sizes(layer, shift / half).add_(z.abs(), alpha=1 + 1 / half)
    torch.div(z, values, out=values)
    return (Factor(values, (Route("plain", 1 + 1 / half), Route("absolute", 1.0, signed=True))),)


def zplus(layer: Layer, shift: float) -> tuple[Factor, ...]:
    """Return z / (P + b^+)."""
    z, bias = layer.output, layer.bias
    if layer.input_nonnegative:
        values = layer.apply("positive", bias=layer.offset(None if bias is None else bias.clamp(min=0), shift))
        torch.div(z, values, out=values)
        return (Factor(values, (Route("positive", 1.0),)),)
    sizes = _sizes(layer, 2 * shift)
    values = sizes + z
    present = _present(values, sizes, 2 * shift)
    torch.div(z, values, out=values).mul_(present).mul_(2)
    return (Factor(values, (Route("agreeing", 1.0),)),)


def alpha_beta(layer: Layer, alpha: float, beta: float, shift: float) -> tuple[Factor, ...]:
    """Return z / (P + b^+), from which the factors of both parts follow, or one factor for each form of the weight."""
    z = layer.output
    if layer.input_nonnegative:
        (whole,) = zplus(layer, shift)
        routes = Route("positive", alpha), Route("negative", beta)
        return (Factor(whole.values, routes, partial(_both_parts, routes)),)
    sizes = _sizes(layer, 2 * shift)
    rising, falling = sizes + z, sizes - z
    rises, falls = _present(rising, sizes, 2 * shift), _present(falling, sizes, 2 * shift)
    _scaled(torch.div(z, rising, out=rising), alpha).mul_(rises)
    _scaled(torch.div(z, falling, out=falling), beta).mul_(falls)
    absolute = torch.sub(rising, falling, out=sizes)
    return Factor(rising.add_(falling), (Route("plain", 1.0),)), Factor(absolute, (Route("absolute", 1.0),))


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


def _present(part: Tensor, sizes: Tensor, shift: float) -> Tensor:
    """Return 0 where a part, its stabilizer ``shift`` included, is only rounding of what it is a part of, else 1.

    There it becomes large enough to divide by. On a CPU, a product takes a tenth of the time of a mask.
    """
    more = torch.sub(part, sizes, alpha=ULPS * torch.finfo(part.dtype).eps)
    part.clamp_(min=shift)
    return F.threshold(more, shift, 0.0, inplace=True).sign_()


def _scaled(values: Tensor, scale: float) -> Tensor:
    """Return the values times a number, in their own memory."""
    return values if scale == 1.0 else values.mul_(scale)
