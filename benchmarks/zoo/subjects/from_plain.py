"""Networks of torch alone: its own Transformer layers, attention, and architectures that people write down."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.case import Case, Subject


def subjects() -> list[Subject]:
    """Return small networks."""
    found = []
    for first in (False, True):
        for activation in ("relu", "gelu"):
            name = f"TransformerEncoder, {activation}, {'norm first' if first else 'norm last'}"
            found.append(Subject("plain", name, partial(_encoder, activation, norm_first=first)))
    found += [
        Subject("plain", "Transformer, encoder and decoder", _transformer),
        Subject("plain", "MultiheadAttention", partial(_attention, need_weights=True)),
        Subject("plain", "MultiheadAttention, no weights", partial(_attention, need_weights=False)),
        Subject("plain", "mixture of experts, top 2", lambda: Case(Mixture(), (torch.randn(5, 8),))),
        Subject("plain", "attention written out, causal", lambda: Case(Written(), (torch.randn(2, 6, 16),))),
        Subject("plain", "linear attention", lambda: Case(LinearAttention(), (torch.randn(2, 6, 16),))),
        Subject("plain", "SwiGLU and RMSNorm written out", lambda: Case(Gated(), (torch.randn(2, 6, 16),))),
        Subject("plain", "selective state space, sequential scan", lambda: Case(Scan(), (torch.randn(2, 6, 8),))),
        Subject("plain", "bilinear and factorization machine", lambda: Case(Factorization(), (torch.randn(3, 10),))),
        Subject("plain", "hypernetwork", lambda: Case(Hyper(), (torch.randn(3, 6),))),
        Subject("plain", "multilayer perceptron, in-place", _in_place),
    ]
    return found


def _encoder(activation: str, *, norm_first: bool) -> Case:
    layer = nn.TransformerEncoderLayer(16, 2, 32, activation=activation, batch_first=True, norm_first=norm_first)
    return Case(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), (torch.randn(2, 5, 16),))


def _transformer() -> Case:
    model = nn.Transformer(16, 2, 2, 2, 32, batch_first=True)
    return Case(model, (torch.randn(2, 5, 16), torch.randn(2, 4, 16)), explained=(0, 1))


class SelfAttention(nn.Module):
    """torch's MultiheadAttention of a sequence with itself."""

    def __init__(self, *, need_weights: bool) -> None:
        super().__init__()
        self.need_weights = need_weights
        self.attention = nn.MultiheadAttention(16, 4, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the attended sequence."""
        attended: Tensor = self.attention(x, x, x, need_weights=self.need_weights)[0]
        return attended


def _attention(*, need_weights: bool) -> Case:
    return Case(SelfAttention(need_weights=need_weights), (torch.randn(2, 5, 16),))


class Mixture(nn.Module):
    """Each row goes through two of four experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(8, 4)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Return the weighted sum of the experts, written back by index_add."""
        weights, chosen = self.router(x).softmax(-1).topk(2, -1)
        weights = weights / weights.sum(-1, keepdim=True)
        total = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows, slot = torch.where(chosen == i)
            total.index_add_(0, rows, expert(x[rows]) * weights[rows, slot, None])
        return total


class Written(nn.Module):
    """Causal attention by matmul, masked_fill and softmax, with tanh GELU after it."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Linear(16, 48), nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream."""
        rows, steps, width = x.shape
        q, k, v = (t.view(rows, steps, 4, -1).transpose(1, 2) for t in self.inputs(self.norm(x)).split(width, -1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        later = torch.ones(steps, steps, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(later, -torch.inf).softmax(-1) @ v
        x = x + self.outputs(mixed.transpose(1, 2).reshape(rows, steps, width))
        h = self.up(x)
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        return x + self.down(h)


class LinearAttention(nn.Module):
    """Attention with the kernel elu(x) + 1 in place of softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs, self.outputs = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream."""
        q, k, v = self.inputs(x).chunk(3, -1)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        memory = torch.einsum("nsd,nse->nde", k, v)
        scale = torch.einsum("nsd,nd->ns", q, k.sum(1)).reciprocal()
        return x + self.outputs(torch.einsum("nsd,nde,ns->nse", q, memory, scale))


class Gated(nn.Module):
    """The feed-forward part of Llama, its RMSNorm and rotary positions written out."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(16))
        self.gate, self.up, self.down = (nn.Linear(16, 16, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream."""
        h = self.scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        first, second = h.chunk(2, -1)
        angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
        h = h * angle.cos() + torch.cat((-second, first), -1) * angle.sin()
        return x + self.down(F.silu(self.gate(h)) * self.up(h))


class Scan(nn.Module):
    """A selective state-space layer, step by step."""

    def __init__(self) -> None:
        super().__init__()
        self.log_decay = nn.Parameter(torch.arange(1.0, 5.0).log().repeat(8, 1))
        self.skip = nn.Parameter(torch.ones(8))
        self.step, self.inputs = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs of all steps."""
        delta = F.softplus(self.step(x))
        b, c = self.inputs(x).chunk(2, -1)
        state = x.new_zeros(len(x), 8, 4)
        outputs = []
        for i in range(x.shape[1]):
            decay = torch.exp(delta[:, i, :, None] * -torch.exp(self.log_decay))
            state = decay * state + delta[:, i, :, None] * b[:, i, None, :] * x[:, i, :, None]
            outputs.append((state * c[:, i, None, :]).sum(-1))
        return torch.stack(outputs, 1) + x * self.skip


class Factorization(nn.Module):
    """A factorization machine and a bilinear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bilinear = nn.Linear(10, 1), nn.Bilinear(10, 10, 1)
        self.factors = nn.Parameter(torch.randn(10, 4))

    def forward(self, x: Tensor) -> Tensor:
        """Return one score a row."""
        pairs = 0.5 * ((x @ self.factors) ** 2 - (x**2) @ (self.factors**2)).sum(1, keepdim=True)
        scores: Tensor = self.linear(x) + self.bilinear(x, x) + pairs
        return scores


class Hyper(nn.Module):
    """A layer whose weights another layer computes from the same input."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Linear(6, 24)

    def forward(self, x: Tensor) -> Tensor:
        """Return four scores a row."""
        return torch.bmm(self.weights(x).view(-1, 4, 6), x.unsqueeze(2)).squeeze(2)


class InPlace(nn.Module):
    """In-place activations, sums, slices and products."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return four scores a row."""
        h = self.first(x).relu_()
        skip, h = h, self.second(h)
        h += skip
        h[:, :8] *= 2.0
        h[:, 8:].add_(h[:, :8])
        h = F.silu(h, inplace=True)
        scores: Tensor = self.head(h.mul_(0.5))
        return scores


def _in_place() -> Case:
    return Case(InPlace(), (torch.randn(3, 6),))
