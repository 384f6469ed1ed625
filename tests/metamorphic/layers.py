"""Linear layers in many spellings, and what may stand between a layer and its BatchNorm."""

# ruff: noqa: PLC3002 a spelling is one expression, with a name for what it needs twice

import torch
import torch.nn.functional as F
from torch import nn

from .networks import ALIKE, FIRST, LRP_0, Function

TOKENS = ((7, 5),)
ROW = ((5,),)
IMAGE = ((3, 4, 4),)
#: Which of three experts serves each row.
EXPERTS = torch.tensor([0, 2, 1, 0])


def rows(x):
    """The tokens of all rows, one below the other."""
    return x.reshape(-1, x.shape[-1])


def between(move):
    """A layer, a move that changes no value, its BatchNorm."""
    return lambda p, x: p.norm(move(p.conv(x)))


def into(y, v):
    """A copy of v in memory that was there already."""
    y.copy_(v)
    return y


def observed(z):
    """z, of which something else was computed too, which is thrown away."""
    z.sum()
    z.mean((2, 3)).tanh()
    return z


def by_hand(p, z):
    """BatchNorm, written out."""
    n = p.norm
    shape = (1, -1) + (1,) * (z.dim() - 2)
    return (z - n.running_mean.view(shape)) / (n.running_var.view(shape) + n.eps).sqrt() * n.weight.view(
        shape
    ) + n.bias.view(shape)


def conv_bn():
    """A convolution and its BatchNorm, with weights of their own for every network."""
    return {"conv": lambda: nn.Conv2d(3, 4, 3, padding=1), "norm": lambda: nn.BatchNorm2d(4)}


LAST = torch.channels_last
NO_BIAS = {
    "F.linear": lambda p, x: F.linear(x, p.W),
    "x @ W.T": lambda p, x: x @ p.W.T,
    "torch.matmul(x, W.t())": lambda p, x: torch.matmul(x, p.W.t()),
    "(W @ x.T).T": lambda p, x: (p.W @ x.transpose(1, 2)).transpose(1, 2),
    "matmul(W, x.mT).mT": lambda p, x: torch.matmul(p.W, x.mT).mT.contiguous(),
    "x @ W[None].mT": lambda p, x: x @ p.W[None].mT,
    "x @ W.T.expand": lambda p, x: x @ p.W.T.expand(len(x), 5, 6),
    "mm": lambda p, x: torch.mm(rows(x), p.W.T).view(-1, 7, 6),
    "mm, weight first": lambda p, x: torch.mm(p.W, rows(x).T).T.reshape(-1, 7, 6),
    "addmm with zeros": lambda p, x: torch.addmm(x.new_zeros(6), rows(x), p.W.T).view(-1, 7, 6),
    "bmm, expanded": lambda p, x: torch.bmm(x, p.W.T.expand(len(x), 5, 6)),
    "bmm, repeated": lambda p, x: torch.bmm(x, p.W.T.repeat(len(x), 1, 1)),
    "bmm, weight first": lambda p, x: torch.bmm(p.W.expand(len(x), 6, 5), x.mT).mT,
    "baddbmm with zeros": lambda p, x: torch.baddbmm(x.new_zeros(1, 1, 6), x, p.W.T.expand(len(x), 5, 6)),
    "einsum bnc,oc->bno": lambda p, x: torch.einsum("bnc,oc->bno", x, p.W),
    "einsum oc,bnc->bno": lambda p, x: torch.einsum("oc,bnc->bno", p.W, x),
    "einsum bnc,co->bno": lambda p, x: torch.einsum("bnc,co->bno", x, p.W.T),
    "einsum oc,bnc->obn": lambda p, x: torch.einsum("oc,bnc->obn", p.W, x).permute(1, 2, 0),
    "einsum ...c,oc": lambda p, x: torch.einsum("...c,oc->...o", x, p.W),
    "einsum with heads": lambda p, x: torch.einsum("bpd,hde->bphe", x, p.W.view(3, 2, 5).transpose(1, 2)).flatten(2),
    "einsum into two axes": lambda p, x: torch.einsum("bpd,hed->bhpe", x, p.W.view(3, 2, 5)).transpose(1, 2).flatten(2),
    "tensordot": lambda p, x: torch.tensordot(x, p.W, dims=([2], [1])),
    "tensordot, weight first": lambda p, x: torch.tensordot(p.W, x, dims=([1], [2])).permute(1, 2, 0),
    "inner": lambda p, x: torch.inner(x, p.W),
    "inner, weight first": lambda p, x: torch.inner(p.W, x).permute(1, 2, 0),
    "multi_dot": lambda p, x: torch.linalg.multi_dot([rows(x), p.W.T]).view(-1, 7, 6),
    "mv": lambda p, x: torch.stack([torch.mv(p.W, t) for t in rows(x)]).view(-1, 7, 6),
    "W @ row": lambda p, x: torch.stack([p.W @ t for t in rows(x)]).view(-1, 7, 6),
    "row @ W.T": lambda p, x: torch.stack([t @ p.W.T for t in rows(x)]).view(-1, 7, 6),
    "two layers of half the outputs": lambda p, x: torch.cat([F.linear(x, p.W[:2]), F.linear(x, p.W[2:])], -1),
    "one layer an output": lambda p, x: torch.stack([x @ w for w in p.W], -1),
    "outputs in another order": lambda p, x: F.linear(x, p.W[[3, 1, 0, 5, 4, 2]])[..., [2, 1, 5, 0, 4, 3]],
    "inputs in another order": lambda p, x: F.linear(x[..., [4, 0, 1, 3, 2]], p.W[:, [4, 0, 1, 3, 2]]),
    "token by token": lambda p, x: torch.stack([F.linear(t, p.W) for t in x.unbind(1)], 1),
    "a padded input": lambda p, x: F.linear(F.pad(x, (0, 1)), F.pad(p.W, (0, 1), value=3.0)),
}

FUNCTIONS = [
    Function("dense layer without bias", TOKENS, NO_BIAS, {"W": (6, 5)}, places=("linear", "relu", "factor")),
    Function("dense layer first", TOKENS, {
        k: f for k, f in NO_BIAS.items() if "padded" not in k  # The flat rule counts the padding as inputs.
    }, {"W": (6, 5)}, places=("first",)),
    Function("dense layer", TOKENS, {
        "F.linear": lambda p, x: F.linear(x, p.W, p.b),
        "x @ W.T + b": lambda p, x: x @ p.W.T + p.b,
        "b + x @ W.T": lambda p, x: p.b + x @ p.W.T,
        "F.linear(x, W) + b": lambda p, x: F.linear(x, p.W) + p.b,
        "(x @ W.T).add_(b)": lambda p, x: (x @ p.W.T).add_(p.b),
        "(W @ x.T).T + b": lambda p, x: (p.W @ x.mT).mT + p.b,
        "(W @ x.T + b[:, None]).T": lambda p, x: (p.W @ x.mT + p.b[:, None]).mT,
        "addmm": lambda p, x: torch.addmm(p.b, rows(x), p.W.T).view(-1, 7, 6),
        "addmm, b of all rows": lambda p, x: torch.addmm(p.b.expand(7 * len(x), 6), rows(x), p.W.T).view(-1, 7, 6),
        "addmm, weight first": lambda p, x: torch.addmm(p.b[:, None], p.W, rows(x).T).T.reshape(-1, 7, 6),
        "addmv": lambda p, x: torch.stack([torch.addmv(p.b, p.W, t) for t in rows(x)]).view(-1, 7, 6),
        "baddbmm": lambda p, x: torch.baddbmm(p.b, x, p.W.T.expand(len(x), 5, 6)),
        "bmm + b": lambda p, x: torch.bmm(x, p.W.T.expand(len(x), 5, 6)) + p.b,
        "einsum + b": lambda p, x: torch.einsum("bnc,oc->bno", x, p.W) + p.b,
        "tensordot + b": lambda p, x: torch.tensordot(x, p.W, dims=([2], [1])) + p.b,
        "flattened": lambda p, x: F.linear(rows(x), p.W, p.b).view(-1, 7, 6),
        "outputs in two parts": lambda p, x: torch.cat(
            [F.linear(x, p.W[:4], p.b[:4]), F.linear(x, p.W[4:], p.b[4:])], -1),
    }, {"W": (6, 5), "b": (6,)}),
    Function("dense layer of one row", ROW, {
        "F.linear": lambda p, x: F.linear(x, p.W, p.b),
        "addmm": lambda p, x: torch.addmm(p.b, x, p.W.T),
        "mm + b": lambda p, x: torch.mm(x, p.W.t()) + p.b,
        "mv": lambda p, x: torch.stack([torch.mv(p.W, row) + p.b for row in x]),
        "addmv": lambda p, x: torch.stack([torch.addmv(p.b, p.W, row) for row in x]),
        "bmm of columns": lambda p, x: torch.bmm(p.W.expand(len(x), 6, 5), x[..., None])[..., 0] + p.b,
        "W @ columns": lambda p, x: (p.W @ x[..., None]).squeeze(-1) + p.b,
        "einsum": lambda p, x: torch.einsum("oi,bi->bo", p.W, x) + p.b,
        "F.linear of [row]": lambda p, x: F.linear(x[:, None], p.W, p.b)[:, 0],
    }, {"W": (6, 5), "b": (6,)}, places=FIRST),
    Function("dense layer as a convolution", TOKENS, {
        "F.linear": lambda p, x: F.linear(x, p.W, p.b),
        "conv1d": lambda p, x: F.conv1d(x.mT, p.W[..., None], p.b).mT,
        "conv2d": lambda p, x: F.conv2d(x.mT[..., None], p.W[..., None, None], p.b)[..., 0].mT,
        "conv1d over all": lambda p, x: F.conv1d(rows(x)[..., None], p.W[..., None], p.b).view(-1, 7, 6),
        "conv_transpose1d": lambda p, x: F.conv_transpose1d(x.mT, p.W.T[..., None], p.b).mT,
    }, {"W": (6, 5), "b": (6,)}, composites=ALIKE, places=FIRST),
    Function("dense layer as sums", TOKENS, {
        "F.linear": lambda p, x: F.linear(x, p.W, p.b),
        "inputs in two parts": lambda p, x: F.linear(x[..., :2], p.W[:, :2]) + F.linear(x[..., 2:], p.W[:, 2:], p.b),
        "cat of what was split": lambda p, x: F.linear(torch.cat(x.split([2, 3], -1), -1), p.W, p.b),
        "(x[..., None, :] * W).sum(-1) + b": lambda p, x: (x[..., None, :] * p.W).sum(-1) + p.b,
        "W / 2 twice": lambda p, x: F.linear(x, p.W / 2) + F.linear(x, p.W / 2) + p.b,
        "weighted columns": lambda p, x: sum(x[..., i : i + 1] * p.W[:, i] for i in range(5)) + p.b,
    }, {"W": (6, 5), "b": (6,)}, composites=LRP_0, places=FIRST),
    Function("experts", TOKENS, {
        "F.linear of each row": lambda p, x: torch.stack(
            [F.linear(t, p.W[i]) for t, i in zip(x, EXPERTS.tolist(), strict=True)]),
        "bmm, gathered": lambda p, x: torch.bmm(x, p.W[EXPERTS].mT),
        "matmul, gathered": lambda p, x: x @ p.W[EXPERTS].transpose(1, 2),
        "matmul, gathered, first": lambda p, x: (p.W[EXPERTS] @ x.mT).mT,
        "einsum, gathered": lambda p, x: torch.einsum("bnc,boc->bno", x, p.W[EXPERTS]),
        "index_select": lambda p, x: torch.bmm(x, p.W.index_select(0, EXPERTS).transpose(1, 2)),
        "experts one by one": lambda p, x: x.new_zeros(4, 7, 6).index_add(0, torch.tensor([0, 3, 2, 1]), torch.cat(
            [F.linear(x[i == EXPERTS], p.W[i]) for i in range(3)])),
    }, {"W": (3, 6, 5)}, rows=4),
    Function("heads", TOKENS, {
        "F.linear of each head": lambda p, x: torch.stack([F.linear(x, w) for w in p.W], 1),
        "x[:, None] @ W.mT": lambda p, x: x[:, None] @ p.W.mT,
        "einsum": lambda p, x: torch.einsum("bnc,hdc->bhnd", x, p.W),
        "matmul with three axes": lambda p, x: torch.matmul(x.unsqueeze(1), p.W.transpose(1, 2)),
        "one layer, split": lambda p, x: F.linear(x, p.W.reshape(6, 5)).view(-1, 7, 3, 2).transpose(1, 2),
        "one layer, flattened": lambda p, x: F.linear(x, p.W.flatten(0, 1)).unflatten(-1, (3, 2)).transpose(1, 2),
    }, {"W": (3, 2, 5)}),
    Function("convolution", IMAGE, {
        "F.conv2d": lambda p, x: F.conv2d(x, p.W, p.b, padding=1),
        "padding='same'": lambda p, x: F.conv2d(x, p.W, p.b, padding="same"),
        "channels last": lambda p, x: F.conv2d(x.contiguous(memory_format=LAST), p.W, p.b, padding=1),
        "weight channels last": lambda p, x: F.conv2d(x, p.W.contiguous(memory_format=LAST), p.b, padding=1),
        "+ b": lambda p, x: F.conv2d(x, p.W, padding=1) + p.b[:, None, None],
        "outputs in two parts": lambda p, x: torch.cat(
            [F.conv2d(x, p.W[:1], p.b[:1], padding=1), F.conv2d(x, p.W[1:], p.b[1:], padding=1)], 1),
        "torch.convolution": lambda p, x: torch.convolution(
            x, p.W, p.b, [1, 1], [1, 1], [1, 1], False, [0, 0], 1),
        "conv3d": lambda p, x: F.conv3d(x[:, :, None], p.W[:, :, None], p.b, padding=(0, 1, 1))[:, :, 0],
        "rows one by one": lambda p, x: torch.cat([F.conv2d(t, p.W, p.b, padding=1) for t in x.split(1)]),
        "flipped": lambda p, x: F.conv2d(x.flip(-1), p.W.flip(-1), p.b, padding=1).flip(-1),
        "transposed": lambda p, x: F.conv2d(x.mT, p.W.mT, p.b, padding=1).mT,
    }, {"W": (4, 3, 3, 3), "b": (4,)}, places=FIRST),
    Function("convolution, padded before", IMAGE, {
        "F.conv2d": lambda p, x: F.conv2d(x, p.W, p.b, padding=1),
        "F.pad": lambda p, x: F.conv2d(F.pad(x, (1, 1, 1, 1)), p.W, p.b),
        "cat of zeros": lambda p, x: F.conv2d(F.pad(torch.cat(
            [x.new_zeros(len(x), 3, 1, 4), x, x.new_zeros(len(x), 3, 1, 4)], 2), (1, 1)), p.W, p.b),
        "written into zeros": lambda p, x: F.conv2d((lambda y: (
            y.__setitem__((..., slice(1, -1), slice(1, -1)), x), y)[1])(x.new_zeros(len(x), 3, 6, 6)), p.W, p.b),
    }, {"W": (4, 3, 3, 3), "b": (4,)}),
    Function("convolution as a dense layer", IMAGE, {
        "F.conv2d": lambda p, x: F.conv2d(x, p.W, p.b, stride=2),
        "patches": lambda p, x: F.linear(
            x.view(-1, 3, 2, 2, 2, 2).permute(0, 2, 4, 1, 3, 5).flatten(3), p.W.flatten(1), p.b).permute(0, 3, 1, 2),
        "F.unfold": lambda p, x: (p.W.flatten(1) @ F.unfold(x, 2, stride=2) + p.b[:, None]).view(-1, 4, 2, 2),
        "F.unfold, F.linear": lambda p, x: F.linear(
            F.unfold(x, 2, stride=2).mT, p.W.flatten(1), p.b).mT.view(-1, 4, 2, 2),
        "tensor.unfold, einsum": lambda p, x: torch.einsum(
            "bchwij,ocij->bohw", x.unfold(2, 2, 2).unfold(3, 2, 2), p.W) + p.b[:, None, None],
        "conv_transpose2d of what was stuffed": lambda p, x: F.conv_transpose2d(
            x, p.W.flip(2, 3).transpose(0, 1), p.b)[:, :, 1:-1:2, 1:-1:2],
    }, {"W": (4, 3, 2, 2), "b": (4,)}, composites=ALIKE),
    Function("grouped convolution", ((4, 4, 4),), {
        "groups=2": lambda p, x: F.conv2d(x, p.W, p.b, padding=1, groups=2),
        "two convolutions": lambda p, x: torch.cat([F.conv2d(t, w, b, padding=1) for t, w, b in zip(
            x.chunk(2, 1), p.W.chunk(2), p.b.chunk(2), strict=True)], 1),
        "groups as rows of one": lambda p, x: torch.cat(
            [F.conv2d(x[:, :2], p.W[:3], p.b[:3], padding=1), F.conv2d(x[:, 2:], p.W[3:], p.b[3:], padding=1)], 1),
    }, {"W": (6, 2, 3, 3), "b": (6,)}, places=FIRST),
    Function("transposed convolution", ((3, 3, 3),), {
        "F.conv_transpose2d": lambda p, x: F.conv_transpose2d(x, p.W, p.b),
        "convolution of what was padded": lambda p, x: F.conv2d(
            F.pad(x, (1, 1, 1, 1)), p.W.flip(2, 3).transpose(0, 1), p.b),
    }, {"W": (3, 4, 2, 2), "b": (4,)}),
    Function("shared encoder", ((2, 3, 4, 4),), {
        "frames as rows": lambda p, x: F.relu(p.conv(x.flatten(0, 1))).view(-1, 2, 4, 4, 4).sum(1),
        "a loop": lambda p, x: torch.stack([F.relu(p.conv(t)) for t in x.unbind(1)]).sum(0),
        "a loop backwards": lambda p, x: torch.stack([F.relu(p.conv(x[:, t])) for t in (1, 0)]).sum(0),
        "called twice": lambda p, x: torch.stack([F.relu(p.conv(x[:, 0])), F.relu(p.conv(x[:, 1]))], 1).sum(1),
    }, modules={"conv": lambda: nn.Conv2d(3, 4, 3, padding=1)}, places=("first",)),
    Function("parallel stems", IMAGE, {
        "a, then b": lambda p, x: (lambda a, b: torch.cat([a, b], 1))(F.relu(p.a(x)), F.relu(p.b(x))),
        "b, then a": lambda p, x: (lambda b, a: torch.cat([a, b], 1))(F.relu(p.b(x)), F.relu(p.a(x))),
        "both, then relu": lambda p, x: F.relu(torch.cat([p.a(x), p.b(x)], 1)),
        "b, deeper layers, then a": lambda p, x: (lambda b, a: torch.cat([a, b], 1))(
            F.relu(p.b(x)), F.relu(p.a(x.clone()))),
    }, modules={"a": lambda: nn.Conv2d(3, 4, 3, padding=1), "b": lambda: nn.Conv2d(3, 2, 1)}, places=("first",)),
    Function("convolution and BatchNorm", IMAGE, {
        "norm(conv(x))": between(lambda z: z),
        "contiguous": between(lambda z: z.contiguous()),
        "clone": between(lambda z: z.clone()),
        "z * 1": between(lambda z: z * 1),
        "1.0 * z": between(lambda z: 1.0 * z),
        "z / 1": between(lambda z: z / 1),
        "z.neg().neg()": between(lambda z: z.neg().neg()),
        "2 * z / 2": between(lambda z: 2 * z / 2),
        "z.mul(2).mul_(0.5)": between(lambda z: z.mul(2).mul_(0.5)),
        "unsqueeze, squeeze": between(lambda z: z.unsqueeze(0).squeeze(0)),
        "transpose, transpose": between(lambda z: z.transpose(2, 3).transpose(2, 3)),
        "transpose of a copy": between(lambda z: z.transpose(2, 3).contiguous().transpose(2, 3)),
        "norm of the transpose": lambda p, x: p.norm(p.conv(x).transpose(2, 3)).transpose(2, 3),
        "norm of the permuted": lambda p, x: p.norm(p.conv(x).permute(0, 1, 3, 2).contiguous()).permute(0, 1, 3, 2),
        "channels last": between(lambda z: z.contiguous(memory_format=LAST)),
        "channels last, back": between(lambda z: z.contiguous(memory_format=LAST).contiguous()),
        "to(channels last)": between(lambda z: z.to(memory_format=LAST)),
        "input channels last": lambda p, x: p.norm(p.conv(x.contiguous(memory_format=LAST))),
        "input channels last, contiguous": lambda p, x: p.norm(p.conv(x.contiguous(memory_format=LAST)).contiguous()),
        "NHWC and back": between(lambda z: z.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)),
        "flatten, unflatten": between(lambda z: z.flatten(2).unflatten(2, (4, 4))),
        "view of the pixels": lambda p, x: p.norm(p.conv(x).view(-1, 4, 16, 1)).view(-1, 4, 4, 4),
        "flip, flip": between(lambda z: z.flip(3).flip(3)),
        "norm of the flipped": lambda p, x: p.norm(p.conv(x).flip(3)).flip(3),
        "to(double)": between(lambda z: z.to(torch.float64)),
        "z[:]": between(lambda z: z[:]),
        "z[..., [0, 1, 2, 3]]": between(lambda z: z[..., [0, 1, 2, 3]]),
        "rows, stacked": between(lambda z: torch.stack(z.unbind(0))),
        "rows, cat": between(lambda z: torch.cat(z.split(1))),
        "dropout": between(lambda z: F.dropout(z, 0.5, training=False)),
        "nn.Identity": between(nn.Identity()),
        "copied into memory": between(lambda z: into(torch.empty_like(z), z)),
        "written into memory": between(
            lambda z: (lambda y: (y.__setitem__(slice(None), z), y)[1])(torch.empty_like(z))),
        "seen by others": between(observed),
        "seen by others before": lambda p, x: (lambda z: (p.norm(z), z.mean(), p.norm(z))[2])(p.conv(x)),
        "rows one by one": lambda p, x: torch.cat([p.norm(p.conv(t)) for t in x.split(1)]),
        "rows one by one at the norm": lambda p, x: torch.cat([p.norm(t) for t in p.conv(x).split(1)]),
        "outside of the module": lambda p, x: F.batch_norm(
            p.conv(x), p.norm.running_mean, p.norm.running_var, p.norm.weight, p.norm.bias),
    }, modules=conv_bn(), places=FIRST),
    Function("convolution and BatchNorm by hand", IMAGE, {
        "norm(conv(x))": between(lambda z: z),
        "(z - mean) / sqrt(var + eps) * w + b": lambda p, x: by_hand(p, p.conv(x)),
        "scale and shift": lambda p, x: (lambda s: p.conv(x) * s.view(-1, 1, 1) + (
            p.norm.bias - p.norm.running_mean * s).view(-1, 1, 1))(
            p.norm.weight / (p.norm.running_var + p.norm.eps).sqrt()),
        "merged weight": lambda p, x: (lambda s: F.conv2d(x, p.conv.weight * s.view(-1, 1, 1, 1), (
            p.conv.bias - p.norm.running_mean) * s + p.norm.bias, padding=1))(
            p.norm.weight / (p.norm.running_var + p.norm.eps).sqrt()),
    }, modules=conv_bn(), composites=LRP_0),
    Function("dense layer and BatchNorm", TOKENS, {
        "norm of the transpose": lambda p, x: p.norm(p.fc(x).mT),
        "norm of a copy": lambda p, x: p.norm(p.fc(x).mT.contiguous()),
        "norm of the permuted": lambda p, x: p.norm(p.fc(x).permute(0, 2, 1)),
        "tokens as rows": lambda p, x: p.norm(p.fc(x).flatten(0, 1)).view(-1, 7, 4).mT,
        "tokens as rows, all the way": lambda p, x: p.norm(p.fc(x.flatten(0, 1))).view(-1, 7, 4).mT,
        "token by token": lambda p, x: torch.stack([p.norm(p.fc(t)) for t in x.unbind(1)], 2),
        "x @ W.T + b": lambda p, x: p.norm((x @ p.fc.weight.T + p.fc.bias).mT),
    }, modules={"fc": lambda: nn.Linear(5, 4), "norm": lambda: nn.BatchNorm1d(4)}, places=FIRST),
]  # fmt: skip
