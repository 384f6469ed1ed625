"""Facts that cross the boundary of a module or of a checkpoint: gates as arguments, layers that are written over."""

# ruff: noqa: PLC3002 a spelling is one expression, with a name for what it needs twice

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .networks import NO_SUMS, Function

PAIR, TOKENS, IMAGE = ((6,),) * 2, ((5,),), ((3, 4, 4),)


class Times(nn.Module):
    """A product as a module."""

    def forward(self, a, b):
        return a * b


class Plus(nn.Module):
    """A sum as a module."""

    def forward(self, a, b):
        return a + b


class Conv(nn.Module):
    """A convolution with its own activation, as one block."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return F.relu(self.conv(x))


def again(function, *args):
    """The function in a checkpoint."""
    return checkpoint(function, *args, use_reentrant=False)


def linear(p):
    """A dense layer as a function."""
    return lambda x: F.linear(x, p.W, p.b)


def zeroed(y):
    """y with a column of zeros, written in place."""
    y[:, 1] = 0.0
    return y


def zeroed_copy(y):
    """A copy of y with a column of zeros."""
    return y * torch.tensor([1.0, 0, 1, 1, 1, 1], dtype=y.dtype)


TIMES, WEIGHTS = {"times": Times}, {"W": (6, 5), "b": (6,)}
FUNCTIONS = [
    Function("a module that multiplies, a sigmoid", PAIR, {
        "times(a, sigmoid(g))": lambda p, a, g: p.times(a, g.sigmoid()),
        "a * sigmoid(g)": lambda p, a, g: a * g.sigmoid(),
        "times(sigmoid(g), a)": lambda p, a, g: p.times(g.sigmoid(), a),
        "times in a checkpoint": lambda p, a, g: again(p.times, a, g.sigmoid()),
        "gate from a checkpoint": lambda p, a, g: p.times(a, again(torch.sigmoid, g)),
        "gate from a checkpoint, as it is": lambda p, a, g: a * again(torch.sigmoid, g),
    }, modules=TIMES),
    Function("a module that multiplies, 1 + s", PAIR, {
        "times(a, 1 + s)": lambda p, a, s: p.times(a, 1 + s),
        "a * (1 + s)": lambda p, a, s: a * (1 + s),
        "times in a checkpoint": lambda p, a, s: again(p.times, a, 1 + s),
        "gate from a checkpoint": lambda p, a, s: p.times(a, again(lambda t: 1 + t, s)),
        "gate from a checkpoint, as it is": lambda p, a, s: a * again(lambda t: 1 + t, s),
    }, modules=TIMES),
    Function("a module that multiplies, 1 + tanh", PAIR, {
        "times(a, 1 + s.tanh())": lambda p, a, s: p.times(a, 1 + s.tanh()),
        "a * (1 + s.tanh())": lambda p, a, s: a * (1 + s.tanh()),
        "times in a checkpoint": lambda p, a, s: again(p.times, a, 1 + s.tanh()),
    }, modules=TIMES),
    Function("a module that multiplies, thrice", ((6,),) * 3, {
        "prod of a stack": lambda p, a, b, c: torch.stack([a, b, c]).prod(0),
        "times(times(a, b), c)": lambda p, a, b, c: p.times(p.times(a, b), c),
        "times(a, times(b, c))": lambda p, a, b, c: p.times(a, p.times(b, c)),
        "the first two in a checkpoint": lambda p, a, b, c: p.times(again(p.times, a, b), c),
        "the last two in a checkpoint": lambda p, a, b, c: again(p.times, p.times(a, b), c),
    }, modules=TIMES),
    Function("a module that adds", PAIR, {
        "plus(a, b)": lambda p, a, b: p.plus(a, b),
        "a + b": lambda p, a, b: a + b,
        "plus in a checkpoint": lambda p, a, b: again(p.plus, a, b),
    }, modules={"plus": Plus}),
    Function("a module that adds a constant", PAIR, {
        "plus(softplus(b), a)": lambda p, a, b: p.plus(F.softplus(b), a),
        "a + softplus(b)": lambda p, a, b: a + F.softplus(b),
        "constant from a checkpoint": lambda p, a, b: p.plus(again(F.softplus, b), a),
        "written in place, in a checkpoint": lambda p, a, b: again(lambda u, v: F.softplus(v).add_(u), a, b),
    }, modules={"plus": Plus}, composites=NO_SUMS),
    Function("a layer and silu", TOKENS, {
        "silu(layer)": lambda p, x: F.silu(linear(p)(x)),
        "in place": lambda p, x: F.silu(linear(p)(x), inplace=True),
        "layer in a checkpoint": lambda p, x: F.silu(again(linear(p), x)),
        "in place behind a checkpoint": lambda p, x: F.silu(again(linear(p), x), inplace=True),
        "in place in a checkpoint": lambda p, x: again(lambda t: F.silu(linear(p)(t), inplace=True), x),
    }, WEIGHTS),
    Function("a layer and tanh", TOKENS, {
        "tanh(layer)": lambda p, x: linear(p)(x).tanh(),
        "in place": lambda p, x: linear(p)(x).tanh_(),
        "in place behind a checkpoint": lambda p, x: again(linear(p), x).tanh_(),
    }, WEIGHTS),
    Function("a layer and relu", TOKENS, {
        "relu(layer)": lambda p, x: linear(p)(x).relu(),
        "in place": lambda p, x: linear(p)(x).relu_(),
        "in place behind a checkpoint": lambda p, x: again(linear(p), x).relu_(),
        "relu in a checkpoint": lambda p, x: again(torch.relu, linear(p)(x)),
    }, WEIGHTS),
    Function("a layer and a slice", TOKENS, {
        "times a mask": lambda p, x: zeroed_copy(linear(p)(x)),
        "written in place": lambda p, x: zeroed(linear(p)(x)),
        "behind a checkpoint": lambda p, x: zeroed(again(linear(p), x)),
        "fill_ of a view, behind a checkpoint": lambda p, x: (
            lambda y: (y[:, 1].fill_(0.0), y)[1])(again(linear(p), x)),
        "copied into memory": lambda p, x: zeroed(x.new_zeros(len(x), 6).copy_(again(linear(p), x))),
    }, WEIGHTS),
    Function("a layer and a residual", TOKENS, {
        "layer + x": lambda p, x: linear(p)(x) + x.sum(1, keepdim=True),
        "layer += x": lambda p, x: linear(p)(x).add_(x.sum(1, keepdim=True)),
        "in place behind a checkpoint": lambda p, x: again(linear(p), x).add_(x.sum(1, keepdim=True)),
    }, WEIGHTS, composites=NO_SUMS),
    Function("a block that runs twice", IMAGE, {
        "block(block(x))": lambda p, x: p.block(p.block(x)),
        "in a checkpoint": lambda p, x: again(lambda t: p.block(p.block(t)), x),
        "in two checkpoints": lambda p, x: again(p.block, again(p.block, x)),
        "the second in a checkpoint": lambda p, x: again(p.block, p.block(x)),
        "in a checkpoint in a checkpoint": lambda p, x: again(lambda t: again(p.block, again(p.block, t)), x),
    }, modules={"block": Conv}, places=("first", "linear")),
    Function("two blocks", IMAGE, {
        "b(a(x))": lambda p, x: p.b(p.a(x)),
        "in a checkpoint": lambda p, x: again(lambda t: p.b(p.a(t)), x),
        "in two checkpoints": lambda p, x: again(p.b, again(p.a, x)),
        "in a checkpoint in a checkpoint": lambda p, x: again(lambda t: p.b(again(p.a, t)), x),
    }, modules={"a": Conv, "b": Conv}, places=("first", "linear")),
    Function("convolution, checkpoint, BatchNorm", IMAGE, {
        "norm(conv(x))": lambda p, x: p.norm(p.conv(x)),
        "in a checkpoint": lambda p, x: again(lambda t: p.norm(p.conv(t)), x),
        "the layer in a checkpoint": lambda p, x: p.norm(again(p.conv, x)),
        "the norm in a checkpoint": lambda p, x: again(p.norm, p.conv(x)),
    }, modules={"conv": lambda: nn.Conv2d(3, 4, 3, padding=1), "norm": lambda: nn.BatchNorm2d(4)},
        places=("first", "linear", "relu")),
    Function("two dense layers", TOKENS, {
        "two layers": lambda p, x: F.linear(F.gelu(linear(p)(x)), p.V),
        "the activation in a checkpoint": lambda p, x: F.linear(again(F.gelu, linear(p)(x)), p.V),
        "what follows in a checkpoint": lambda p, x: again(lambda t: F.linear(F.gelu(t), p.V), linear(p)(x)),
        "both in a checkpoint each": lambda p, x: again(lambda t: F.linear(F.gelu(t), p.V), again(linear(p), x)),
    }, {**WEIGHTS, "V": (4, 6)}, places=("first", "linear", "factor")),
]  # fmt: skip
