"""Elementwise functions and gates."""

# ruff: noqa: PLC3002 a spelling is one expression, with a name for what it needs twice

import math

import torch
import torch.nn.functional as F

from .networks import NO_SUMS, Function

PLAIN = ((6,),)
PAIR = ((6,), (6,))
#: An image and one number a channel.
CHANNELS = ((4, 3, 3), (4,))


def wide(v):
    """One number a channel, as it broadcasts against an image."""
    return v[:, :, None, None]


def into(y, v):
    """A copy of v in memory that was there already."""
    y.copy_(v)
    return y


FUNCTIONS = [
    Function("hardswish", PLAIN, {
        "F.hardswish(x)": lambda p, x: F.hardswish(x),
        "x * relu6(x + 3) / 6": lambda p, x: x * F.relu6(x + 3) / 6,
        "x * (relu6(x + 3) / 6)": lambda p, x: x * (F.relu6(x + 3) / 6),
        "relu6(3 + x) * x * (1 / 6)": lambda p, x: F.relu6(3 + x) * x * (1 / 6),
        "x * relu6(x + 3, inplace) / 6": lambda p, x: x * F.relu6(x + 3, inplace=True) / 6,
        "x * hardtanh(x + 3, 0, 6) / 6": lambda p, x: x * F.hardtanh(x + 3, 0.0, 6.0) / 6,
        "x * (x + 3).clamp(0, 6) / 6": lambda p, x: x * (x + 3).clamp(0, 6) / 6,
        "x * (x / 6 + 0.5).clamp(0, 1)": lambda p, x: x * (x / 6 + 0.5).clamp(0, 1),
        "x * hardsigmoid(x)": lambda p, x: x * F.hardsigmoid(x),
        "x * minimum(maximum(x + 3, 0), 6) / 6": lambda p, x: x * torch.minimum(
            torch.maximum(x + 3, torch.zeros_like(x)), torch.full_like(x, 6.0)) / 6,
        "(x + 3).clip_(0, 6).div_(6).mul_(x)": lambda p, x: (x + 3).clip_(0, 6).div_(6).mul_(x),
        "x * relu(x + 3).clamp(max=6) / 6": lambda p, x: x * F.relu(x + 3).clamp(max=6) / 6,
        "x * relu6(x + 3).view_as(x) / 6": lambda p, x: x * F.relu6(x + 3).view(-1).view_as(x) / 6,
    }),
    Function("hardsigmoid gate", CHANNELS, {
        "a * hardsigmoid(u)": lambda p, a, u: a * wide(F.hardsigmoid(u)),
        "a * (relu6(u + 3) / 6)": lambda p, a, u: a * (F.relu6(wide(u) + 3) / 6),
        "a * relu6(u + 3)[..., None, None] / 6": lambda p, a, u: a * wide(F.relu6(u + 3)) / 6,
        "a * (u + 3).clamp(0, 6).div(6)": lambda p, a, u: a * wide((u + 3).clamp(0, 6).div(6)),
        "a * (u / 6 + 0.5).clamp(0, 1)": lambda p, a, u: a * wide((u / 6 + 0.5).clamp(0, 1)),
        "a * hardtanh(u + 3, 0, 6) / 6": lambda p, a, u: a * wide(F.hardtanh(u + 3, 0.0, 6.0)) / 6,
        "a * (relu6_(u + 3) / 6).expand_as(a)": lambda p, a, u: a * wide(F.relu6(u + 3, inplace=True) / 6).expand_as(a),
        "a.mul(1 / 6).mul_(relu6(u + 3))": lambda p, a, u: a.mul(1 / 6).mul_(wide(F.relu6(u + 3))),
    }),
    Function("a * (1 + s)", CHANNELS, {
        "a * (1 + s[..., None, None])": lambda p, a, s: a * (1 + wide(s)),
        "(1 + s)[..., None, None]": lambda p, a, s: a * wide(1 + s),
        "(s + 1) * a": lambda p, a, s: (wide(s) + 1) * a,
        "torch.add(s, 1)": lambda p, a, s: a * wide(torch.add(s, 1)),
        "(1 + s).view": lambda p, a, s: a * (1 + s).view(len(s), 4, 1, 1),
        "(1 + s).reshape": lambda p, a, s: a * (1 + s).reshape(len(s), 4, 1, 1),
        "(1 + s).unflatten": lambda p, a, s: a * (1 + s).unflatten(1, (4, 1, 1)),
        "(1 + s).expand_as(a)": lambda p, a, s: a * wide(1 + s).expand_as(a),
        "(1 + s).expand.contiguous": lambda p, a, s: a * wide(1 + s).expand_as(a).contiguous(),
        "(1 + s).repeat": lambda p, a, s: a * wide(1 + s).repeat(1, 1, 3, 3),
        "cat of (1 + s), chunked": lambda p, a, s: a * wide((1 + torch.cat([s, s], 1)).chunk(2, 1)[0]),
        "cat of the two halves of (1 + s)": lambda p, a, s: a * wide(torch.cat([1 + s[:, :2], 1 + s[:, 2:]], 1)),
        "stack of (1 + s)": lambda p, a, s: a * wide(torch.stack([1 + v for v in s.unbind(1)], 1)),
        "s + torch.ones(1)": lambda p, a, s: a * wide(s + torch.ones(1)),
        "s + torch.ones_like(s)": lambda p, a, s: a * wide(s + torch.ones_like(s)),
        "torch.ones_like(s) + s": lambda p, a, s: a * wide(torch.ones_like(s) + s),
        "s + torch.tensor(1.0)": lambda p, a, s: a * wide(s + torch.tensor(1.0)),
        "ones.add_(s)": lambda p, a, s: a * wide(torch.ones_like(s).add_(s)),
        "s.clone().add_(1)": lambda p, a, s: a * wide(s.clone().add_(1)),
        "s.clone() += 1": lambda p, a, s: a * wide(s.clone().__iadd__(1)),
        "1 - (-s)": lambda p, a, s: a * wide(1 - (-s)),
        "s - (-1)": lambda p, a, s: a * wide(s - (-1)),
        "torch.rsub(-s, 1)": lambda p, a, s: a * wide(torch.rsub(-s, 1)),
        "2 * (0.5 + 0.5 * s)": lambda p, a, s: a * wide(2 * (0.5 + 0.5 * s)),
        "(2 + 2 * s) / 2": lambda p, a, s: a * wide((2 + 2 * s) / 2),
        "(1 + s).clone()": lambda p, a, s: a * wide((1 + s).clone()),
        "(1 + s).t().contiguous().t()": lambda p, a, s: a * wide((1 + s).t().contiguous().t()),
        "(1 + s).flip.flip": lambda p, a, s: a * wide((1 + s).flip(1).flip(1)),
        "(1 + s).to(double)": lambda p, a, s: a * wide((1 + s).to(torch.float64)),
        "(1 + s)[:, [0, 1, 2, 3]]": lambda p, a, s: a * wide((1 + s)[:, [0, 1, 2, 3]]),
        "0.5 + s + 0.5": lambda p, a, s: a * wide(0.5 + s + 0.5),
        "-(-1 - s)": lambda p, a, s: a * wide(-(-1 - s)),
        "F.pad and narrow of (1 + s)": lambda p, a, s: a * wide(F.pad(1 + s, (1, 1), value=1.0).narrow(1, 1, 4)),
        "copied into memory": lambda p, a, s: a * wide(into(torch.empty_like(s), 1 + s)),
        "einsum": lambda p, a, s: torch.einsum("bchw,bc->bchw", a, 1 + s),
        "a.clone().mul_(1 + s)": lambda p, a, s: a.clone().mul_(wide(1 + s)),
        "torch.mul(1 + s, a)": lambda p, a, s: torch.mul(wide(1 + s), a),
    }),
    Function("a * (1 + tanh(s))", PAIR, {
        "a * (1 + s.tanh())": lambda p, a, s: a * (1 + s.tanh()),
        "a * (1 + s.tanh()).view(-1, 6)": lambda p, a, s: a * (1 + s.tanh()).view(-1).view(-1, 6),
        "a * (s.tanh() + ones)": lambda p, a, s: a * (s.tanh() + torch.ones_like(s)),
        "a * s.tanh().add_(1)": lambda p, a, s: a * s.tanh().add_(1),
        "a * 2 * sigmoid(2 s)": lambda p, a, s: a * 2 * torch.sigmoid(2 * s),
        "a * (2 - (1 - s.tanh()))": lambda p, a, s: a * (2 - (1 - s.tanh())),
    }),
    Function("sigmoid gate", PAIR, {
        "a * g.sigmoid()": lambda p, a, g: a * g.sigmoid(),
        "a / (1 + (-g).exp())": lambda p, a, g: a / (1 + (-g).exp()),
        "a * (1 / (1 + exp(-g)))": lambda p, a, g: a * (1 / (1 + torch.exp(-g))),
        "a * (1 + exp(-g)).reciprocal()": lambda p, a, g: a * (1 + torch.exp(-g)).reciprocal(),
        "a * (1 + exp(-g)) ** -1": lambda p, a, g: a * (1 + torch.exp(-g)) ** -1,
        "a * exp(-softplus(-g))": lambda p, a, g: a * torch.exp(-F.softplus(-g)),
        "a * exp(logsigmoid(g))": lambda p, a, g: a * F.logsigmoid(g).exp(),
        "a * (0.5 + 0.5 * tanh(g / 2))": lambda p, a, g: a * (0.5 + 0.5 * torch.tanh(g / 2)),
        "a * (1 + tanh(g / 2)) / 2": lambda p, a, g: a * (1 + torch.tanh(g / 2)) / 2,
        "a * (1 - sigmoid(-g))": lambda p, a, g: a * (1 - torch.sigmoid(-g)),
        "a - a * sigmoid(-g).detach(), as a * (1 - …)": lambda p, a, g: a * (1 - torch.sigmoid(-g).detach()),
        "special.expit": lambda p, a, g: a * torch.special.expit(g),
        "F.glu": lambda p, a, g: F.glu(torch.cat([a, g], 1), 1),
        "chunks of sigmoid": lambda p, a, g: a * torch.cat([v.sigmoid() for v in g.chunk(2, 1)], 1),
        "copied into memory": lambda p, a, g: a * into(torch.empty_like(g), g.sigmoid()),
        "sigmoid_ of a copy": lambda p, a, g: a * g.clone().sigmoid_(),
        "sigmoid.view.expand": lambda p, a, g: a * g.sigmoid().view(-1, 2, 3).expand(-1, 2, 3).reshape(-1, 6),
        "a.clone().mul_(sigmoid)": lambda p, a, g: a.clone().mul_(g.sigmoid()),
        "scattered": lambda p, a, g: a * torch.zeros_like(g).index_copy(1, torch.arange(6), g.sigmoid()),
    }),
    Function("silu", PLAIN, {
        "F.silu(x)": lambda p, x: F.silu(x),
        "x * sigmoid(x)": lambda p, x: x * torch.sigmoid(x),
        "sigmoid(x) * x": lambda p, x: torch.sigmoid(x) * x,
        "x / (1 + exp(-x))": lambda p, x: x / (1 + torch.exp(-x)),
        "x.clone().mul_(sigmoid(x))": lambda p, x: x.clone().mul_(torch.sigmoid(x)),
        "0.5 * x * (1 + tanh(x / 2))": lambda p, x: 0.5 * x * (1 + torch.tanh(x / 2)),
        "x * (1 - sigmoid(-x))": lambda p, x: x * (1 - torch.sigmoid(-x)),
        "F.silu(x.clone(), inplace)": lambda p, x: F.silu(x.clone(), inplace=True),
        "F.glu(cat([x, x]))": lambda p, x: F.glu(torch.cat([x, x], 1), 1),
        "x * hard copy of sigmoid": lambda p, x: x * into(torch.empty_like(x), x.sigmoid()),
    }),
    Function("gelu", PLAIN, {
        "F.gelu(x)": lambda p, x: F.gelu(x),
        "0.5 * x * (1 + erf(x / √2))": lambda p, x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        "x * 0.5 * (1 + erf(x / √2))": lambda p, x: x * 0.5 * (1.0 + torch.erf(x / math.sqrt(2))),
        "x * (0.5 * (1 + erf(x / √2)))": lambda p, x: x * (0.5 * (1.0 + torch.erf(x / math.sqrt(2)))),
        "x * (0.5 + 0.5 * erf(x / √2))": lambda p, x: x * (0.5 + 0.5 * torch.erf(x / math.sqrt(2))),
        "x * ndtr(x)": lambda p, x: x * torch.special.ndtr(x),
        "x * 0.5 * erfc(-x / √2)": lambda p, x: x * 0.5 * torch.erfc(-x / math.sqrt(2)),
        "x * erf(…).add_(1).mul_(0.5)": lambda p, x: x * torch.erf(x / math.sqrt(2)).add_(1).mul_(0.5),
        "(1 + erf(…)).view.view * x / 2": lambda p, x: (1 + torch.erf(x / math.sqrt(2))).view(-1).view_as(x) * x / 2,
    }),
    Function("gelu, tanh", PLAIN, {
        "F.gelu(x, 'tanh')": lambda p, x: F.gelu(x, approximate="tanh"),
        "0.5 * x * (1 + tanh(…))": lambda p, x: 0.5 * x * (
            1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "with x * x * x": lambda p, x: x * (0.5 * (
            1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))),
        "with x * (1 + 0.044715 * x * x)": lambda p, x: 0.5 * x * (
            1.0 + torch.tanh(math.sqrt(2 / math.pi) * x * (1.0 + 0.044715 * x * x))),
        "x * sigmoid(2 …)": lambda p, x: x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)),
    }),
    Function("mish", PLAIN, {
        "F.mish(x)": lambda p, x: F.mish(x),
        "x * tanh(softplus(x))": lambda p, x: x * torch.tanh(F.softplus(x)),
        "x * tanh(log1p(exp(x)))": lambda p, x: x * torch.tanh(torch.log1p(torch.exp(x))),
        "x * softplus(x).tanh_()": lambda p, x: x * F.softplus(x).tanh_(),
        "x * tanh(log(1 + exp(x)))": lambda p, x: x * torch.tanh(torch.log(1 + torch.exp(x))),
        "x.clone().mul_(tanh(softplus(x)))": lambda p, x: x.clone().mul_(F.softplus(x).tanh()),
    }),
    Function("swiglu", PAIR, {
        "silu(a) * b": lambda p, a, b: F.silu(a) * b,
        "a * sigmoid(a) * b": lambda p, a, b: a * torch.sigmoid(a) * b,
        "a * (sigmoid(a) * b)": lambda p, a, b: a * (torch.sigmoid(a) * b),
        "b * a * sigmoid(a)": lambda p, a, b: b * a * torch.sigmoid(a),
        "(a * b) / (1 + exp(-a))": lambda p, a, b: (a * b) / (1 + torch.exp(-a)),
        "silu of a chunk of cat": lambda p, a, b: (lambda u, v: F.silu(u) * v)(*torch.cat([a, b], 1).chunk(2, 1)),
        "silu(a).mul_(b)": lambda p, a, b: F.silu(a).clone().mul_(b),
    }),
    Function("softsign", PLAIN, {
        "F.softsign(x)": lambda p, x: F.softsign(x),
        "x / (1 + |x|)": lambda p, x: x / (1 + x.abs()),
        "x * (1 / (1 + |x|))": lambda p, x: x * (1 / (1 + x.abs())),
        "x * (1 + |x|).reciprocal()": lambda p, x: x * (1 + x.abs()).reciprocal(),
        "x.div(x.abs().add_(1))": lambda p, x: x.div(x.abs().add_(1)),
        "x * (1 + |x|) ** -1": lambda p, x: x * (1 + x.abs()).pow(-1),
    }),
    Function("relu", PLAIN, {
        "F.relu(x)": lambda p, x: F.relu(x),
        "x.clamp(min=0)": lambda p, x: x.clamp(min=0),
        "x.clone().clamp_min_(0)": lambda p, x: x.clone().clamp_min_(0),
        "torch.maximum(x, 0)": lambda p, x: torch.maximum(x, torch.zeros(1, dtype=x.dtype)),
        "torch.max(x, 0)": lambda p, x: torch.max(x, torch.zeros_like(x)),
        "torch.fmax(x, 0)": lambda p, x: torch.fmax(x, torch.zeros_like(x)),
        "torch.where(x > 0, x, 0)": lambda p, x: torch.where(x > 0, x, 0.0),
        "x * (x > 0)": lambda p, x: x * (x > 0),
        "masked_fill(x <= 0, 0)": lambda p, x: x.masked_fill(x <= 0, 0.0),
        "y[y < 0] = 0": lambda p, x: (lambda y: (y.__setitem__(y < 0, 0.0), y)[1])(x.clone()),
        "F.threshold(x, 0, 0)": lambda p, x: F.threshold(x, 0.0, 0.0),
        "F.hardtanh(x, 0, inf)": lambda p, x: F.hardtanh(x, 0.0, math.inf),
        "F.leaky_relu(x, 0)": lambda p, x: F.leaky_relu(x, 0.0),
        "-min(-x, 0)": lambda p, x: -torch.minimum(-x, torch.zeros_like(x)),
        "x.clone().relu_()": lambda p, x: x.clone().relu_(),
        "copied into memory": lambda p, x: into(torch.empty_like(x), x.relu()),
    }),
    Function("relu as a sum", PLAIN, {
        "F.relu(x)": lambda p, x: F.relu(x),
        "(x + |x|) / 2": lambda p, x: (x + x.abs()) / 2,
        "x - min(x, 0)": lambda p, x: x - x.clamp(max=0),
    }, composites=NO_SUMS),
    Function("leaky relu", PLAIN, {
        "F.leaky_relu(x, 0.1)": lambda p, x: F.leaky_relu(x, 0.1),
        "where(x > 0, x, 0.1 * x)": lambda p, x: torch.where(x > 0, x, 0.1 * x),
        "max(x, 0.1 * x)": lambda p, x: torch.maximum(x, 0.1 * x),
        "x * where(x > 0, 1, 0.1)": lambda p, x: x * torch.where(x > 0, torch.ones_like(x.detach()), x.new_tensor(0.1)),
        "F.leaky_relu(x.clone(), 0.1, inplace)": lambda p, x: F.leaky_relu(x.clone(), 0.1, inplace=True),
        "y[y < 0] *= 0.1": lambda p, x: (lambda y, m: (y.__setitem__(m, y[m] * 0.1), y)[1])(x.clone(), x < 0),
    }),
    Function("leaky relu as a sum", PLAIN, {
        "F.leaky_relu(x, 0.1)": lambda p, x: F.leaky_relu(x, 0.1),
        "relu(x) - 0.1 * relu(-x)": lambda p, x: F.relu(x) - 0.1 * F.relu(-x),
        "0.1 * x + 0.9 * relu(x)": lambda p, x: 0.1 * x + 0.9 * F.relu(x),
    }, composites=NO_SUMS),
    Function("elu", PLAIN, {
        "F.elu(x)": lambda p, x: F.elu(x),
        "where(x > 0, x, expm1(x))": lambda p, x: torch.where(x > 0, x, torch.expm1(x)),
        "F.elu(x.clone(), inplace)": lambda p, x: F.elu(x.clone(), inplace=True),
        "F.celu(x)": lambda p, x: F.celu(x),
    }),
    Function("relu6", PLAIN, {
        "F.relu6(3 x)": lambda p, x: F.relu6(3 * x),
        "hardtanh(3 x, 0, 6)": lambda p, x: F.hardtanh(3 * x, 0.0, 6.0),
        "(3 x).clamp(0, 6)": lambda p, x: (3 * x).clamp(0, 6),
        "min(relu(3 x), 6)": lambda p, x: torch.minimum(F.relu(3 * x), torch.full_like(x, 6.0)),
        "relu(3 x).clamp_max(6)": lambda p, x: F.relu(3 * x).clamp_max(6),
        "max(min(3 x, 6), 0)": lambda p, x: torch.maximum((3 * x).clamp(max=6), torch.zeros_like(x)),
    }),
    # x * x * y counts three factors and x ** 2 * y two, so these stand in no product.
    Function("square", PLAIN, {
        "x.pow(2)": lambda p, x: x.pow(2),
        "x ** 2": lambda p, x: x**2,
        "x * x": lambda p, x: x * x,
        "x.square()": lambda p, x: x.square(),
        "x.clone().mul_(x)": lambda p, x: x.clone().mul_(x),
        "x.abs() ** 2": lambda p, x: x.abs() ** 2,
        "einsum": lambda p, x: torch.einsum("bi,bi->bi", x, x),
        "float_power": lambda p, x: torch.float_power(x, 2),
    }, places=("linear", "relu")),
    Function("cube", PLAIN, {
        "x ** 3": lambda p, x: x**3,
        "x * x * x": lambda p, x: x * x * x,
        "x ** 2 * x": lambda p, x: x**2 * x,
        "x * (x * x)": lambda p, x: x * (x * x),
        "prod of a stack": lambda p, x: torch.stack([x, x, x]).prod(0),
    }, places=("linear", "relu")),
    Function("abs", PLAIN, {
        "x.abs()": lambda p, x: x.abs(),
        "x * x.sign()": lambda p, x: x * x.sign(),
        "max(x, -x)": lambda p, x: torch.maximum(x, -x),
        "where(x > 0, x, -x)": lambda p, x: torch.where(x > 0, x, -x),
        "(x ** 2).sqrt()": lambda p, x: (x**2).sqrt(),
        "relu(x) + relu(-x)": lambda p, x: F.relu(x) + F.relu(-x),
    }, composites=NO_SUMS),
    Function("a mask", PLAIN, {
        "x * mask": lambda p, x: x * torch.tensor([1.0, 0, 1, 1, 0, 1]).double(),
        "masked_fill": lambda p, x: x.masked_fill(torch.tensor([0, 1, 0, 0, 1, 0]).bool(), 0.0),
        "where": lambda p, x: torch.where(torch.tensor([1, 0, 1, 1, 0, 1]).bool(), x, torch.zeros_like(x)),
        "index_fill": lambda p, x: x.index_fill(1, torch.tensor([1, 4]), 0.0),
        "y[:, [1, 4]] = 0": lambda p, x: (lambda y: (y.__setitem__((slice(None), [1, 4]), 0.0), y)[1])(x.clone()),
        "y[:, 1].zero_()": lambda p, x: (lambda y: (y[:, 1].zero_(), y[:, 4].fill_(0.0), y)[2])(x.clone()),
        "masked_select and scatter": lambda p, x: torch.zeros_like(x).index_copy(
            1, torch.tensor([0, 2, 3, 5]), x[:, [0, 2, 3, 5]]),
    }),
]  # fmt: skip
