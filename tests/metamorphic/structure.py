"""Sums, pooling, layout, normalisation and recurrent layers."""

# ruff: noqa: PLC3002 a spelling is one expression, with a name for what it needs twice

import torch
import torch.nn.functional as F
from torch import nn

from .networks import LRP_0, NO_SUMS, Function

PAIR, THREE = ((6,),) * 2, ((6,),) * 3
IMAGE = ((3, 4, 4),)


def written(size, x):
    """Zeros of a size, into the middle of which x is written."""
    y = x.new_zeros(*x.shape[:-1], size)
    start = (size - x.shape[-1]) // 2
    y[..., start : start + x.shape[-1]] = x
    return y


def rms(x):
    """The root of the mean of the squares."""
    return (x.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt()


def lstm_cells(p, x):
    """An LSTM as cells of torch with the same weights."""
    h = c = x.new_zeros(len(x), 4)
    out = []
    for t in x.unbind(1):
        h, c = torch.lstm_cell(t, (h, c), p.rnn.weight_ih_l0, p.rnn.weight_hh_l0, p.rnn.bias_ih_l0, p.rnn.bias_hh_l0)
        out.append(h)
    return torch.stack(out, 1)


def lstm_by_hand(p, x):
    """An LSTM, operation by operation."""
    r, h, c, out = p.rnn, None, None, []
    for t in x.unbind(1):
        z = F.linear(t, r.weight_ih_l0, r.bias_ih_l0 + r.bias_hh_l0)
        z = z if h is None else z + F.linear(h, r.weight_hh_l0)
        i, f, g, o = z.chunk(4, -1)
        c = i.sigmoid() * g.tanh() if c is None else f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out, 1)


def gru_by_hand(p, x):
    """A GRU, operation by operation."""
    r, h, out = p.rnn, x.new_zeros(len(x), 4), []
    for t in x.unbind(1):
        a = F.linear(t, r.weight_ih_l0, r.bias_ih_l0).chunk(3, -1)
        b = F.linear(h, r.weight_hh_l0, r.bias_hh_l0).chunk(3, -1)
        reset, update = (a[0] + b[0]).sigmoid(), (a[1] + b[1]).sigmoid()
        h = (1 - update) * (a[2] + reset * b[2]).tanh() + update * h
        out.append(h)
    return torch.stack(out, 1)


def rnn_by_hand(p, x):
    """A simple recurrent layer, operation by operation."""
    r, h, out = p.rnn, None, []
    for t in x.unbind(1):
        z = F.linear(t, r.weight_ih_l0, r.bias_ih_l0 + r.bias_hh_l0)
        h = (z if h is None else z + F.linear(h, r.weight_hh_l0)).tanh()
        out.append(h)
    return torch.stack(out, 1)


FUNCTIONS = [
    Function("sum of two", PAIR, {
        "a + b": lambda p, a, b: a + b,
        "b + a": lambda p, a, b: b + a,
        "torch.add": lambda p, a, b: torch.add(a, b),
        "a.clone().add_(b)": lambda p, a, b: a.clone().add_(b),
        "a - (-b)": lambda p, a, b: a - (-b),
        "alpha": lambda p, a, b: torch.add(a, b, alpha=1),
        "torch.rsub": lambda p, a, b: torch.rsub(-b, a),
        "views": lambda p, a, b: (a.view(-1, 2, 3) + b.view(-1, 2, 3)).view(-1, 6),
        "halves": lambda p, a, b: torch.cat([a[:, :2] + b[:, :2], a[:, 2:] + b[:, 2:]], 1),
    }),
    Function("sum of three", THREE, {
        "a + b + c": lambda p, a, b, c: a + b + c,
        "a + (b + c)": lambda p, a, b, c: a + (b + c),
        "c + a + b": lambda p, a, b, c: c + a + b,
        "stack, sum": lambda p, a, b, c: torch.stack([a, b, c]).sum(0),
        "sum()": lambda p, a, b, c: sum([a, b, c]),
        "mean * 3": lambda p, a, b, c: torch.stack([a, b, c], -1).mean(-1) * 3,
        "in place": lambda p, a, b, c: torch.zeros_like(a).add_(a).add_(b).add_(c),
        "einsum": lambda p, a, b, c: torch.einsum("nbi->bi", torch.stack([a, b, c])),
        "index_add": lambda p, a, b, c: a.index_add(1, torch.arange(6), b).index_add(1, torch.arange(6), c),
        "scatter_add": lambda p, a, b, c: a.scatter_add(
            1, torch.arange(6).expand(len(a), 6), b).scatter_add(1, torch.arange(6).expand(len(a), 6), c),
        "lerp": lambda p, a, b, c: 2 * torch.lerp(a, b, 0.5) + c,
        "sub": lambda p, a, b, c: a - (-b - c),
        "weights": lambda p, a, b, c: 3 * (a / 3 + b / 3 + c / 3),
        "slices": lambda p, a, b, c: torch.cat([a[:, :3] + b[:, :3], b[:, 3:] + a[:, 3:]], 1) + c,
    }, composites=NO_SUMS),
    Function("a sum and a product", THREE, {
        "a + b * c": lambda p, a, b, c: a + b * c,
        "addcmul": lambda p, a, b, c: torch.addcmul(a, b, c),
        "c * b + a": lambda p, a, b, c: c * b + a,
        "(b * c).add_(a)": lambda p, a, b, c: (b * c).add_(a),
        "a.clone().addcmul_(b, c)": lambda p, a, b, c: a.clone().addcmul_(b, c),
        "baddbmm": lambda p, a, b, c: torch.baddbmm(
            a.reshape(-1, 1, 1), b.reshape(-1, 1, 1), c.reshape(-1, 1, 1)).view(-1, 6),
    }, composites=NO_SUMS, places=("linear", "relu")),
    Function("mixture by a gate", THREE, {
        "t * a + (1 - t) * b": lambda p, a, b, g: (lambda t: t * a + (1 - t) * b)(g.sigmoid()),
        "lerp": lambda p, a, b, g: torch.lerp(b, a, g.sigmoid()),
        "b + t * (a - b)": lambda p, a, b, g: b + g.sigmoid() * (a - b),
        "sigmoid(-g)": lambda p, a, b, g: a * g.sigmoid() + b * (-g).sigmoid(),
        "addcmul": lambda p, a, b, g: torch.addcmul(a * g.sigmoid(), b, 1 - g.sigmoid()),
    }, composites=NO_SUMS),
    Function("softplus plus activation", PAIR, {
        "softplus(b) + a": lambda p, a, b: F.softplus(b) + a,
        "a + softplus(b)": lambda p, a, b: a + F.softplus(b),
        "softplus(b).add_(a)": lambda p, a, b: F.softplus(b).add_(a),
        "softplus(b) += a": lambda p, a, b: F.softplus(b).__iadd__(a),
        "copied, then +=": lambda p, a, b: torch.empty_like(a).copy_(F.softplus(b)).add_(a),
        "detached": lambda p, a, b: F.softplus(b).detach() + a,
        "a in three parts": lambda p, a, b: F.softplus(b) + a.sum(0, keepdim=True) - (a.sum(0, keepdim=True) - a),
    }, composites=NO_SUMS),
    Function("mean over pixels", IMAGE, {
        "mean((2, 3))": lambda p, x: x.mean((2, 3)),
        "adaptive_avg_pool2d": lambda p, x: F.adaptive_avg_pool2d(x, 1).flatten(1),
        "avg_pool2d": lambda p, x: F.avg_pool2d(x, 4).flatten(1),
        "flatten, mean": lambda p, x: x.flatten(2).mean(-1),
        "mean, mean": lambda p, x: x.mean(-1).mean(-1),
        "sum / 16": lambda p, x: x.sum((2, 3)) / 16,
        "einsum": lambda p, x: torch.einsum("bchw->bc", x) / 16,
        "pooled twice": lambda p, x: F.avg_pool2d(F.avg_pool2d(x, 2), 2)[..., 0, 0],
        "interpolate, area": lambda p, x: F.interpolate(x, size=1, mode="area").squeeze((2, 3)),
        "einsum with ones": lambda p, x: torch.einsum("bchw,hw->bc", x, torch.full((4, 4), 1 / 16).double()),
        "channels last": lambda p, x: x.permute(0, 2, 3, 1).contiguous().mean((1, 2)),
    }),
    Function("average pooling", IMAGE, {
        "avg_pool2d(2)": lambda p, x: F.avg_pool2d(x, 2),
        "reshape, mean": lambda p, x: x.view(-1, 3, 2, 2, 2, 2).mean((3, 5)),
        "unfold, mean": lambda p, x: x.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)),
        "F.unfold, mean": lambda p, x: F.unfold(x, 2, stride=2).view(-1, 3, 4, 4).mean(2).view(-1, 3, 2, 2),
        "adaptive": lambda p, x: F.adaptive_avg_pool2d(x, 2),
        "slices": lambda p, x: torch.stack(
            [x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).mean(0),
        "bilinear": lambda p, x: F.interpolate(x, scale_factor=0.5, mode="bilinear"),
        "avg_pool3d": lambda p, x: F.avg_pool3d(x, (1, 2, 2)),
    }),
    Function("max pooling", IMAGE, {
        "max_pool2d(2)": lambda p, x: F.max_pool2d(x, 2),
        "reshape, amax": lambda p, x: x.view(-1, 3, 2, 2, 2, 2).amax((3, 5)),
        "unfold, max": lambda p, x: x.unfold(2, 2, 2).unfold(3, 2, 2).flatten(-2).max(-1).values,
        "with indices": lambda p, x: F.max_pool2d(x, 2, return_indices=True)[0],
        "adaptive": lambda p, x: F.adaptive_max_pool2d(x, 2),
        "topk": lambda p, x: F.unfold(x, 2, stride=2).view(-1, 3, 4, 4).topk(1, 2).values.view(-1, 3, 2, 2),
        "sort": lambda p, x: F.unfold(x, 2, stride=2).view(-1, 3, 4, 4).sort(2).values[:, :, -1].view(-1, 3, 2, 2),
        "-amin(-x)": lambda p, x: -(-x).view(-1, 3, 2, 2, 2, 2).amin((3, 5)),
        "maximum of slices": lambda p, x: torch.maximum(
            torch.maximum(x[..., ::2, ::2], x[..., ::2, 1::2]), torch.maximum(x[..., 1::2, ::2], x[..., 1::2, 1::2])),
        "gather": lambda p, x: (lambda u: u.gather(2, u.argmax(2, keepdim=True)).view(-1, 3, 2, 2))(
            F.unfold(x, 2, stride=2).view(-1, 3, 4, 4)),
        "max_pool3d": lambda p, x: F.max_pool3d(x, (1, 2, 2)),
    }),
    Function("upsampling", IMAGE, {
        "interpolate": lambda p, x: F.interpolate(x, scale_factor=2),
        "repeat_interleave": lambda p, x: x.repeat_interleave(2, 2).repeat_interleave(2, 3),
        "expand, reshape": lambda p, x: x[:, :, :, None, :, None].expand(-1, -1, -1, 2, -1, 2).reshape(-1, 3, 8, 8),
        "indices": lambda p, x: x[:, :, torch.arange(8) // 2][..., torch.arange(8) // 2],
        "index_select": lambda p, x: x.index_select(2, torch.arange(8) // 2).index_select(3, torch.arange(8) // 2),
        "nn.Upsample": lambda p, x: nn.Upsample(scale_factor=2)(x),
        "stack, flatten": lambda p, x: torch.stack([torch.stack([x, x], -1).flatten(-2)] * 2, 3).flatten(2, 3),
        "kron": lambda p, x: torch.kron(x, torch.ones(2, 2).double()),
        "pixel_shuffle": lambda p, x: F.pixel_shuffle(x.repeat_interleave(4, 1), 2),
        "written into memory": lambda p, x: (lambda y: (y.__setitem__((..., slice(0, None, 2)), x), y.__setitem__(
            (..., slice(1, None, 2)), x), y)[2])(x.new_empty(len(x), 3, 4, 8)).repeat_interleave(2, 2),
    }),
    Function("padding", ((6,),), {
        "F.pad": lambda p, x: F.pad(x, (1, 1)),
        "cat of zeros": lambda p, x: torch.cat([x.new_zeros(len(x), 1), x, torch.zeros_like(x[:, :1])], 1),
        "written into zeros": lambda p, x: written(8, x),
        "index_copy": lambda p, x: x.new_zeros(len(x), 8).index_copy(1, torch.arange(1, 7), x),
        "slice_scatter": lambda p, x: x.new_zeros(len(x), 8).slice_scatter(x, 1, 1, 7),
        "narrow().copy_": lambda p, x: (lambda y: (y.narrow(1, 1, 6).copy_(x), y)[1])(x.new_zeros(len(x), 8)),
        "scatter": lambda p, x: x.new_zeros(len(x), 8).scatter(1, torch.arange(1, 7).expand(len(x), 6), x),
        "constant_pad_nd": lambda p, x: torch.constant_pad_nd(x, (1, 1), 0.0),
        "y[:, 1:7] += x": lambda p, x: (lambda y: (y[:, 1:7].add_(x), y)[1])(x.new_zeros(len(x), 8)),
    }),
    Function("reflected padding", ((6,),), {
        "F.pad": lambda p, x: F.pad(x[:, None], (2, 1), mode="reflect")[:, 0],
        "indices": lambda p, x: x[:, [2, 1, 0, 1, 2, 3, 4, 5, 4]],
        "cat of flips": lambda p, x: torch.cat([x[:, 1:3].flip(1), x, x[:, 4:5]], 1),
    }),
    Function("roll", IMAGE, {
        "roll": lambda p, x: x.roll(1, 3),
        "cat": lambda p, x: torch.cat([x[..., -1:], x[..., :-1]], 3),
        "circular padding": lambda p, x: F.pad(x, (1, 0, 0, 0), mode="circular")[..., :-1],
        "indices": lambda p, x: x[..., [3, 0, 1, 2]],
    }),
    Function("pixel shuffle", ((4, 3, 3),), {
        "pixel_shuffle": lambda p, x: F.pixel_shuffle(x, 2),
        "views": lambda p, x: x.view(-1, 1, 2, 2, 3, 3).permute(0, 1, 4, 2, 5, 3).reshape(-1, 1, 6, 6),
        "F.fold": lambda p, x: F.fold(x.flatten(2), (6, 6), 2, stride=2),
    }),
    Function("cumsum", ((6,),), {
        "cumsum": lambda p, x: x.cumsum(1),
        "a loop": lambda p, x: torch.stack([x[:, : i + 1].sum(1) for i in range(6)], 1),
        "flipped": lambda p, x: x.sum(1, keepdim=True) - F.pad(x, (0, 1)).flip(1).cumsum(1).flip(1)[:, 1:],
        "masked": lambda p, x: (x[:, None] * torch.ones(6, 6).tril()).sum(-1),
    }, composites=NO_SUMS),
    Function("layer norm", ((5, 6),), {
        "F.layer_norm": lambda p, x: F.layer_norm(x, (6,), p.w, p.b),
        "(x - mean) / sqrt(var + eps) * w + b": lambda p, x: (x - x.mean(-1, keepdim=True)) / (
            x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt() * p.w + p.b,
        "rsqrt": lambda p, x: (x - x.mean(-1, True)) * (
            x.var(-1, keepdim=True, correction=0) + 1e-5).rsqrt() * p.w + p.b,
        "var_mean": lambda p, x: (lambda v, m: (x - m) * torch.rsqrt(v + 1e-5) * p.w + p.b)(
            *torch.var_mean(x, -1, correction=0, keepdim=True)),
        "mean of squares": lambda p, x: (lambda c: p.w * c / (
            c.pow(2).mean(-1, keepdim=True) + 1e-5).sqrt() + p.b)(x - x.mean(-1, keepdim=True)),
        "power -0.5": lambda p, x: (lambda c: c * ((c * c).mean(-1, True) + 1e-5).pow(-0.5) * p.w + p.b)(
            x - x.mean(-1, True)),
        "E[x²] - E[x]²": lambda p, x: (lambda m: p.b + p.w * (x - m) / torch.sqrt(
            (x**2).mean(-1, True) - m**2 + 1e-5))(x.mean(-1, True)),
        "without affine": lambda p, x: torch.addcmul(p.b, F.layer_norm(x, (6,)), p.w),
        "native_layer_norm": lambda p, x: torch.native_layer_norm(x, (6,), p.w, p.b, 1e-5)[0],
        "group_norm": lambda p, x: F.group_norm(x.flatten(0, 1), 1, p.w, p.b).view_as(x),
        "of the flattened": lambda p, x: F.layer_norm(x.view(-1, 6), (6,), p.w, p.b).view(-1, 5, 6),
        "channels first": lambda p, x: (lambda y: (y - y.mean(1, True)) / (y.var(1, keepdim=True, correction=0)
            + 1e-5).sqrt() * p.w[:, None] + p.b[:, None])(x.mT).mT,
    }, {"w": (6,), "b": (6,)}, composites=NO_SUMS),
    Function("rms norm", ((5, 6),), {
        "F.rms_norm": lambda p, x: F.rms_norm(x, (6,), p.w, 1e-5),
        "x / rms * w": lambda p, x: x / rms(x) * p.w,
        "w * (x * rsqrt(…))": lambda p, x: p.w * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)),
        "x * x": lambda p, x: x * ((x * x).mean(-1, keepdim=True) + 1e-5).rsqrt() * p.w,
        "square, sum": lambda p, x: p.w * x / (x.square().sum(-1, keepdim=True) / 6 + 1e-5).sqrt(),
        "vector_norm": lambda p, x: x * (
            torch.linalg.vector_norm(x, dim=-1, keepdim=True) ** 2 / 6 + 1e-5) ** -0.5 * p.w,
        "(x / rms).to(double) * w": lambda p, x: (x / rms(x)).to(torch.float64) * p.w,
        "detached": lambda p, x: x / rms(x).detach() * p.w,
        "x.div(…).mul_(w)": lambda p, x: x.div(rms(x)).mul_(p.w),
        "einsum": lambda p, x: x * torch.rsqrt(torch.einsum("bnc,bnc->bn", x, x)[..., None] / 6 + 1e-5) * p.w,
    }, {"w": (6,)}),
    Function("instance norm", IMAGE, {
        "F.instance_norm": lambda p, x: F.instance_norm(x),
        "group_norm": lambda p, x: F.group_norm(x, 3),
        "layer_norm": lambda p, x: F.layer_norm(x, (4, 4)),
        "by hand": lambda p, x: (x - x.mean((2, 3), keepdim=True)) / (
            x.var((2, 3), keepdim=True, correction=0) + 1e-5).sqrt(),
        "channel by channel": lambda p, x: torch.cat([F.layer_norm(c, (1, 4, 4)) for c in x.split(1, 1)], 1),
    }, composites=NO_SUMS),
    Function("log-softmax", ((6,),), {
        "log_softmax": lambda p, x: x.log_softmax(-1),
        "x - logsumexp": lambda p, x: x - x.logsumexp(-1, keepdim=True),
        "x - log(sum(exp))": lambda p, x: x - x.exp().sum(-1, keepdim=True).log(),
        "x.sub(logsumexp)": lambda p, x: torch.sub(x, x.logsumexp(-1, keepdim=True).expand(-1, 6)),
        "-logsumexp + x": lambda p, x: -x.logsumexp(-1, keepdim=True) + x,
    }, places=("linear",)),
    Function("LSTM", ((5, 3),), {
        "nn.LSTM": lambda p, x: p.rnn(x)[0],
        "lstm_cell": lstm_cells,
        "time first": lambda p, x: torch.lstm(
            x.transpose(0, 1), (x.new_zeros(1, len(x), 4),) * 2, p.rnn._flat_weights, True, 1, 0.0, False, False, False
        )[0].transpose(0, 1),
        "row by row": lambda p, x: torch.stack([p.rnn(row)[0] for row in x]),
        "in two parts": lambda p, x: (lambda a, s: torch.cat([a, p.rnn(x[:, 2:], s)[0]], 1))(*p.rnn(x[:, :2])),
    }, modules={"rnn": lambda: nn.LSTM(3, 4, batch_first=True)}),
    Function("LSTM by hand", ((5, 3),), {
        "nn.LSTM": lambda p, x: p.rnn(x)[0],
        "operation by operation": lstm_by_hand,
    }, modules={"rnn": lambda: nn.LSTM(3, 4, batch_first=True)}, composites=LRP_0),
    Function("GRU by hand", ((5, 3),), {
        "nn.GRU": lambda p, x: p.rnn(x)[0],
        "operation by operation": gru_by_hand,
    }, modules={"rnn": lambda: nn.GRU(3, 4, batch_first=True)}, composites=LRP_0),
    Function("RNN by hand", ((5, 3),), {
        "nn.RNN": lambda p, x: p.rnn(x)[0],
        "operation by operation": rnn_by_hand,
    }, modules={"rnn": lambda: nn.RNN(3, 4, batch_first=True)}, composites=LRP_0),
]  # fmt: skip
