"""Products and attention."""

# ruff: noqa: PLC3002 a spelling is one expression, with a name for what it needs twice

import math

import torch
import torch.nn.functional as F

from .networks import LRP_0, NO_SUMS, SOFTMAX, Function

PAIR, THREE, FOUR = ((6,),) * 2, ((6,),) * 3, ((6,),) * 4
#: Query, key and value.
QKV = ((5, 4),) * 3
CAUSAL = torch.ones(5, 5).tril().bool()


def linear_attention(size):
    """Causal linear attention in chunks: what came before is a state, what is in the chunk a masked product."""

    def function(p, q, k, v):
        state, out = None, []
        for a, b, c in zip(q.split(size, 1), k.split(size, 1), v.split(size, 1), strict=True):
            mask = torch.ones(a.shape[1], a.shape[1], dtype=a.dtype).tril()
            inside = (a @ b.mT * mask) @ c
            out.append(inside if state is None else inside + a @ state)
            state = b.mT @ c if state is None else state + b.mT @ c
        return torch.cat(out, 1)

    return function


def with_zeros(p, q, k, v):
    """Causal linear attention step by step, from a state of zeros."""
    state, out = q.new_zeros(len(q), 4, 4), []
    for a, b, c in zip(q.unbind(1), k.unbind(1), v.unbind(1), strict=True):
        state = state + b[:, :, None] * c[:, None, :]
        out.append((a[:, None, :] @ state)[:, 0])
    return torch.stack(out, 1)


def scores(q, k):
    """The logits of attention."""
    return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])


def attend(weights, v):
    """Weights and values, multiplied and summed."""
    return (weights[..., None] * v[:, None]).sum(2)


FUNCTIONS = [
    Function("product of two", PAIR, {
        "a * b": lambda p, a, b: a * b,
        "b * a": lambda p, a, b: b * a,
        "a.clone().mul_(b)": lambda p, a, b: a.clone().mul_(b),
        "einsum": lambda p, a, b: torch.einsum("bi,bi->bi", a, b),
        "prod of a stack": lambda p, a, b: torch.stack([a, b]).prod(0),
        "a * 2 * (b / 2)": lambda p, a, b: a * 2 * (b / 2),
        "-(-a * b)": lambda p, a, b: -(-a * b),
        "addcmul": lambda p, a, b: torch.addcmul(torch.zeros_like(a), a, b),
        "a * (0 + b)": lambda p, a, b: a * (0 + b),
        "a * (b + zeros)": lambda p, a, b: a * (b + torch.zeros_like(b)),
        "a * zeros.add_(b)": lambda p, a, b: a * torch.zeros_like(b).add_(b),
        "a * (b + 0.0).view": lambda p, a, b: a * (b + 0.0).view(-1, 6),
        "views": lambda p, a, b: (a.view(-1, 2, 3) * b.view(-1, 2, 3)).flatten(1),
        "halves": lambda p, a, b: torch.cat([u * v for u, v in zip(a.chunk(2, 1), b.chunk(2, 1), strict=True)], 1),
        "diagonal of the outer product": lambda p, a, b: torch.diagonal(a[:, :, None] * b[:, None], dim1=1, dim2=2),
        "bmm of 1 by 1": lambda p, a, b: torch.bmm(a.reshape(-1, 1, 1), b.reshape(-1, 1, 1)).view(-1, 6),
    }),
    Function("product of three", THREE, {
        "prod of a stack": lambda p, a, b, c: torch.stack([a, b, c]).prod(0),
        "(a * b) * c": lambda p, a, b, c: (a * b) * c,
        "a * (b * c)": lambda p, a, b, c: a * (b * c),
        "(c * a) * b": lambda p, a, b, c: (c * a) * b,
        "einsum": lambda p, a, b, c: torch.einsum("bi,bi,bi->bi", a, b, c),
        "einsum, twice": lambda p, a, b, c: torch.einsum("bi,bi->bi", torch.einsum("bi,bi->bi", a, b), c),
        "(a * b).view.view * c": lambda p, a, b, c: (a * b).view(-1).view(-1, 6) * c,
        "(a * b) * 2 * c / 2": lambda p, a, b, c: (a * b) * 2 * c / 2,
        "-(a * b) * -c": lambda p, a, b, c: -(a * b) * -c,
        "(a * b).clone().mul_(c)": lambda p, a, b, c: (a * b).clone().mul_(c),
        "(a * b).contiguous().t().t() * c": lambda p, a, b, c: (a * b).contiguous().t().t() * c,
        "cat, chunked": lambda p, a, b, c: torch.cat([a * b, a], 1).chunk(2, 1)[0] * c,
        "addcmul": lambda p, a, b, c: torch.addcmul(torch.zeros_like(a), a * b, c),
        "mask between": lambda p, a, b, c: (a * b * (torch.ones(6) > 0)) * c,
        "parameter between": lambda p, a, b, c: a * b / p.w * (c * p.w),
        "halves of a sum": lambda p, a, b, c: (a * b / 2 + a * b / 2) * c,
    }, {"w": (6,)}, composites=NO_SUMS),
    Function("product of four", FOUR, {
        "prod of a stack": lambda p, a, b, c, d: torch.stack([a, b, c, d]).prod(0),
        "a * b * c * d": lambda p, a, b, c, d: a * b * c * d,
        "(a * b) * (c * d)": lambda p, a, b, c, d: (a * b) * (c * d),
        "a * (b * (c * d))": lambda p, a, b, c, d: a * (b * (c * d)),
        "(d * b) * (a * c)": lambda p, a, b, c, d: (d * b) * (a * c),
        "a * (b * c) * d": lambda p, a, b, c, d: a * (b * c) * d,
        "einsum of three and a product": lambda p, a, b, c, d: torch.einsum("bi,bi,bi->bi", a * b, c, d),
    }),
    Function("product of two and a gate", THREE, {
        "a * b * sigmoid(g)": lambda p, a, b, g: a * b * g.sigmoid(),
        "a * (b * sigmoid(g))": lambda p, a, b, g: a * (b * g.sigmoid()),
        "sigmoid(g) * (a * b)": lambda p, a, b, g: g.sigmoid() * (a * b),
        "(sigmoid(g) * a) * b": lambda p, a, b, g: (g.sigmoid() * a) * b,
        "a * b / (1 + exp(-g))": lambda p, a, b, g: a * b / (1 + (-g).exp()),
        "a / (1 + exp(-g)) * b": lambda p, a, b, g: a / (1 + (-g).exp()) * b,
        "einsum": lambda p, a, b, g: torch.einsum("bi,bi,bi->bi", a, b, g.sigmoid()),
    }),
    Function("chain of matrices", ((2, 3), (3, 4), (4, 2)), {
        "einsum": lambda p, a, b, c: torch.einsum("bij,bjk,bkl->bil", a, b, c),
        "(a @ b) @ c": lambda p, a, b, c: (a @ b) @ c,
        "a @ (b @ c)": lambda p, a, b, c: a @ (b @ c),
        "bmm": lambda p, a, b, c: torch.bmm(torch.bmm(a, b), c),
        "(cᵀ @ (a @ b)ᵀ)ᵀ": lambda p, a, b, c: (c.mT @ (a @ b).mT).mT,
        "rows one by one": lambda p, a, b, c: torch.stack(
            [torch.linalg.multi_dot(m) for m in zip(a, b, c, strict=True)]),
    }),
    Function("scalar product", PAIR, {
        "(a * b).sum(-1)": lambda p, a, b: (a * b).sum(-1, keepdim=True),
        "einsum": lambda p, a, b: torch.einsum("bi,bi->b", a, b)[:, None],
        "bmm": lambda p, a, b: torch.bmm(a[:, None], b[:, :, None])[:, 0],
        "matmul": lambda p, a, b: (a[:, None] @ b[:, :, None]).squeeze(-1),
        "vecdot": lambda p, a, b: torch.linalg.vecdot(a, b)[:, None],
        "diagonal of a @ bᵀ": lambda p, a, b: torch.diagonal(a @ b.T)[:, None],
        "dot": lambda p, a, b: torch.stack([torch.dot(u, v) for u, v in zip(a, b, strict=True)])[:, None],
        "halves": lambda p, a, b: (a[:, :3] * b[:, :3]).sum(-1, keepdim=True) + (a[:, 3:] * b[:, 3:]).sum(-1, True),
    }, composites=NO_SUMS),
    Function("bilinear form", PAIR, {
        "einsum": lambda p, a, b: torch.einsum("bi,oij,bj->bo", a, p.W, b),
        "F.bilinear": lambda p, a, b: F.bilinear(a, b, p.W),
        "(a @ W) * b": lambda p, a, b: ((a[:, None, None] @ p.W)[:, :, 0] * b[:, None]).sum(-1),
        "a * (W @ b)": lambda p, a, b: ((p.W @ b[:, None, :, None])[..., 0] * a[:, None]).sum(-1),
    }, {"W": (4, 6, 6)}, composites=LRP_0),
    Function("linear attention", QKV, {
        "one chunk": linear_attention(5),
        "chunks of 1": linear_attention(1),
        "chunks of 2": linear_attention(2),
        "chunks of 3": linear_attention(3),
        "chunks of 4": linear_attention(4),
        "a state of zeros": with_zeros,
        "einsum": lambda p, q, k, v: torch.einsum("btd,bsd,bse,ts->bte", q, k, v, CAUSAL.double()),
        "cumsum of outer products": lambda p, q, k, v: (
            q[:, :, None] @ (k[..., None] * v[:, :, None]).cumsum(1))[:, :, 0],
        "masked_fill": lambda p, q, k, v: (q @ k.mT).masked_fill(~CAUSAL, 0.0) @ v,
        "tril": lambda p, q, k, v: (q @ k.mT).tril() @ v,
    }, composites=NO_SUMS, places=("linear", "relu")),
    Function("linear attention, normalised", QKV, {
        "(q kᵀ) v / sum": lambda p, q, k, v: (lambda w: w @ v / w.sum(-1, keepdim=True))(q.exp() @ k.exp().mT),
        "q (kᵀ v) / q sum k": lambda p, q, k, v: (q.exp() @ (k.exp().mT @ v)) / (
            q.exp() @ k.exp().sum(1)[:, :, None]),
        "weights first": lambda p, q, k, v: (lambda w: (w / w.sum(-1, keepdim=True)) @ v)(q.exp() @ k.exp().mT),
    }),
    Function("attention", QKV, {
        "F.scaled_dot_product_attention": lambda p, q, k, v: F.scaled_dot_product_attention(q, k, v),
        "softmax(q kᵀ / √d) v": lambda p, q, k, v: scores(q, k).softmax(-1) @ v,
        "scaled before": lambda p, q, k, v: torch.softmax((q / 2.0) @ k.mT, -1) @ v,
        "scaled twice": lambda p, q, k, v: F.softmax((q * 0.5**0.5) @ (k * 0.5**0.5).mT, dim=-1) @ v,
        "scaled after": lambda p, q, k, v: torch.bmm((torch.bmm(q, k.mT) * 0.5).softmax(2), v),
        "baddbmm": lambda p, q, k, v: torch.baddbmm(q.new_zeros(1, 5, 5), q, k.mT, alpha=0.5).softmax(-1) @ v,
        "einsum": lambda p, q, k, v: torch.einsum(
            "bqk,bkd->bqd", (torch.einsum("bqd,bkd->bqk", q, k) / 2).softmax(-1), v),
        "of heads": lambda p, q, k, v: F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0],
        "a mask that hides nothing": lambda p, q, k, v: F.scaled_dot_product_attention(
            q, k, v, attn_mask=torch.ones(5, 5).bool()),
        "columns": lambda p, q, k, v: (v.mT @ (k @ q.mT / 2).softmax(-2)).mT,
        "multiply and sum": lambda p, q, k, v: attend(scores(q, k).softmax(-1), v),
        "query by query": lambda p, q, k, v: torch.cat(
            [F.scaled_dot_product_attention(t, k, v) for t in q.split(2, 1)], 1),
        "dropout": lambda p, q, k, v: F.dropout(scores(q, k).softmax(-1), 0.5, training=False) @ v,
        "softmin": lambda p, q, k, v: F.softmin(-scores(q, k), -1) @ v,
        "a copy": lambda p, q, k, v: scores(q, k).softmax(-1).contiguous().clone() @ v.contiguous(),
    }, places=("linear", "relu")),
    Function("attention, softmax written out", QKV, {
        "softmax(q kᵀ / √d) v": lambda p, q, k, v: scores(q, k).softmax(-1) @ v,
        "exp / sum": lambda p, q, k, v: (lambda e: e / e.sum(-1, keepdim=True) @ v)(scores(q, k).exp()),
        "exp(u - max) / sum": lambda p, q, k, v: (lambda e: (e / e.sum(-1, keepdim=True)) @ v)(
            (lambda u: (u - u.amax(-1, keepdim=True)).exp())(scores(q, k))),
        "exp(log_softmax)": lambda p, q, k, v: scores(q, k).log_softmax(-1).exp() @ v,
        "exp(u - logsumexp)": lambda p, q, k, v: (lambda u: (u - u.logsumexp(-1, keepdim=True)).exp())(
            scores(q, k)) @ v,
        "base 2": lambda p, q, k, v: (lambda e: e / e.sum(-1, keepdim=True) @ v)(
            torch.exp2(scores(q, k) * math.log2(math.e))),
        "exp * (1 / sum)": lambda p, q, k, v: (lambda e: (e * (1 / e.sum(-1, keepdim=True))) @ v)(scores(q, k).exp()),
    }, composites=SOFTMAX, places=("linear", "relu")),
    Function("attention of attention, gated", QKV, {
        "softmax(q kᵀ / √d) v": lambda p, q, k, v: (
            lambda w: (w @ (w @ v)) * v)(scores(q, k).softmax(-1)),
        "F.scaled_dot_product_attention": lambda p, q, k, v: (
            F.scaled_dot_product_attention(q, k, F.scaled_dot_product_attention(q, k, v)) * v),
        "the inner one fused": lambda p, q, k, v: (
            scores(q, k).softmax(-1) @ F.scaled_dot_product_attention(q, k, v) * v),
        "the outer one fused": lambda p, q, k, v: (
            F.scaled_dot_product_attention(q, k, scores(q, k).softmax(-1) @ v) * v),
        "of a sum": lambda p, q, k, v: (
            F.scaled_dot_product_attention(q, k, F.scaled_dot_product_attention(q, k, v / 2) * 2) * v),
    }, places=("linear", "relu")),
    Function("causal attention", QKV, {
        "is_causal": lambda p, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "a mask of booleans": lambda p, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=CAUSAL),
        "a mask that is added": lambda p, q, k, v: F.scaled_dot_product_attention(
            q, k, v, attn_mask=torch.zeros(5, 5).double().masked_fill(~CAUSAL, -math.inf)),
        "masked_fill": lambda p, q, k, v: scores(q, k).masked_fill(~CAUSAL, -math.inf).softmax(-1) @ v,
        "masked_fill, a large number": lambda p, q, k, v: scores(q, k).masked_fill(~CAUSAL, -1e9).softmax(-1) @ v,
        "where": lambda p, q, k, v: torch.where(CAUSAL, scores(q, k), -math.inf).softmax(-1) @ v,
        "added": lambda p, q, k, v: (scores(q, k) + torch.zeros(5, 5).double().masked_fill(
            ~CAUSAL, -math.inf)).softmax(-1) @ v,
        "position by position": lambda p, q, k, v: torch.cat([F.scaled_dot_product_attention(
            q[:, t : t + 1], k[:, : t + 1], v[:, : t + 1]) for t in range(5)], 1),
        "s[mask] = -inf": lambda p, q, k, v: (lambda s: (s.__setitem__((..., ~CAUSAL), -math.inf), s.softmax(-1))[1])(
            scores(q, k)) @ v,
    }, places=("linear", "relu")),
    Function("attention pooling", ((5,), (5, 4)), {
        "(w[..., None] * v).sum(1)": lambda p, s, v: (s.softmax(-1)[..., None] * v).sum(1),
        "einsum": lambda p, s, v: torch.einsum("bn,bnd->bd", s.softmax(-1), v),
        "bmm": lambda p, s, v: torch.bmm(s.softmax(-1)[:, None], v)[:, 0],
        "softmax of a column": lambda p, s, v: (s[..., None].softmax(1) * v).sum(1),
        "vᵀ @ w": lambda p, s, v: (v.mT @ s.softmax(-1)[..., None])[..., 0],
        "mean": lambda p, s, v: (s.softmax(-1)[..., None] * v).mean(1) * 5,
    }),
]  # fmt: skip
