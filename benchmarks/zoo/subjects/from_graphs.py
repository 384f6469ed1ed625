"""Graph networks: written with gather, scatter and index_add, and those of PyTorch Geometric where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.zoo.case import Case, Subject

NODES, EDGES, FEATURES, HIDDEN = 9, 30, 6, 8


def subjects() -> list[Subject]:
    """Return networks on one random graph."""
    found = [
        Subject("graphs", f"message passing, {how}", partial(_plain, how))
        for how in ("index_add", "scatter_add", "scatter_reduce mean", "scatter_reduce amax", "dense", "sparse")
    ]
    found.append(Subject("graphs", "graph attention, scatter softmax", lambda: _case(Attention())))
    return found + _geometric()


def _graph() -> Tensor:
    return torch.randint(0, NODES, (2, EDGES))


def _case(model: nn.Module) -> Case:
    return Case(model, (torch.randn(NODES, FEATURES), _graph()))


def _sum_index_add(messages: Tensor, to: Tensor, nodes: int) -> Tensor:
    return messages.new_zeros(nodes, messages.shape[1]).index_add(0, to, messages)


def _sum_scatter_add(messages: Tensor, to: Tensor, nodes: int) -> Tensor:
    index = to.unsqueeze(1).expand_as(messages)
    return messages.new_zeros(nodes, messages.shape[1]).scatter_add_(0, index, messages)


def _scatter_reduce(kind: str, messages: Tensor, to: Tensor, nodes: int) -> Tensor:
    index = to.unsqueeze(1).expand_as(messages)
    return messages.new_zeros(nodes, messages.shape[1]).scatter_reduce(0, index, messages, kind, include_self=False)


_AGGREGATE: dict[str, Callable[[Tensor, Tensor, int], Tensor]] = {
    "index_add": _sum_index_add,
    "scatter_add": _sum_scatter_add,
    "scatter_reduce mean": partial(_scatter_reduce, "mean"),
    "scatter_reduce amax": partial(_scatter_reduce, "amax"),
}


class MessagePassing(nn.Module):
    """Two rounds of messages along the edges and a sum over the nodes."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.messages = nn.ModuleList([nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, HIDDEN)])
        self.selves = nn.ModuleList([nn.Linear(FEATURES, HIDDEN), nn.Linear(HIDDEN, HIDDEN)])
        self.head = nn.Linear(HIDDEN, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return scores for every node."""
        start, end = edges
        for message, own in zip(self.messages, self.selves, strict=True):
            x = F.relu(own(x) + self._gathered(message(x), start, end))
        scores: Tensor = self.head(x)
        return scores

    def _gathered(self, messages: Tensor, start: Tensor, end: Tensor) -> Tensor:
        nodes = len(messages)
        if self.how in _AGGREGATE:
            return _AGGREGATE[self.how](messages[start], end, nodes)
        places, ones = torch.stack([end, start]), messages.new_ones(len(start))
        if self.how == "sparse":
            adjacency = torch.sparse_coo_tensor(places, ones, (nodes, nodes), check_invariants=False)
            return torch.sparse.mm(adjacency, messages)
        dense = messages.new_zeros(nodes, nodes).index_put_(tuple(places), ones, accumulate=True)
        return dense @ messages


def _plain(how: str) -> Case:
    return _case(MessagePassing(how))


class Attention(nn.Module):
    """A graph attention layer whose softmax over the neighbours is written out."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(FEATURES, HIDDEN)
        self.source, self.target = nn.Linear(HIDDEN, 1), nn.Linear(HIDDEN, 1)
        self.head = nn.Linear(HIDDEN, 4)

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return scores for every node."""
        start, end = edges
        h = self.map(x)
        logits = F.leaky_relu(self.source(h)[start] + self.target(h)[end], 0.2).squeeze(1)
        highest = logits.new_full((len(x),), -torch.inf).scatter_reduce(0, end, logits, "amax")
        weights = (logits - highest[end]).exp()
        total = torch.zeros_like(highest).scatter_add(0, end, weights)
        weights = weights / (total[end] + 1e-16)
        scores: Tensor = self.head(F.elu(_sum_index_add(h[start] * weights.unsqueeze(1), end, len(x))))
        return scores


#: Convolutions of PyTorch Geometric by their arguments after the two widths.
_GEOMETRIC: dict[str, dict[str, Any]] = {
    "GCNConv": {}, "SAGEConv": {}, "GATConv": {"heads": 2, "concat": False}, "GATv2Conv": {"heads": 2, "concat": False},
    "TransformerConv": {"heads": 2, "concat": False}, "GraphConv": {}, "TAGConv": {}, "ChebConv": {"K": 2},
    "SGConv": {}, "LEConv": {}, "ClusterGCNConv": {}, "MFConv": {}, "ResGatedGraphConv": {}, "SuperGATConv": {},
    "GENConv": {}, "FiLMConv": {},
}  # fmt: skip


def _geometric() -> list[Subject]:
    try:
        import torch_geometric.nn as geometric
    except ImportError:
        return []
    found = [
        Subject("graphs", f"PyG {name}", partial(_two_layers, geometric, name))
        for name in _GEOMETRIC
        if hasattr(geometric, name)
    ]
    return [*found, Subject("graphs", "PyG GIN", lambda: _case(geometric.GIN(FEATURES, HIDDEN, 2, 4)))]


class TwoLayers(nn.Module):
    """Two convolutions of the same kind."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        """Return scores for every node."""
        scores: Tensor = self.second(F.relu(self.first(x, edges)), edges)
        return scores


def _two_layers(geometric: Any, name: str) -> Case:
    layer = getattr(geometric, name)
    return _case(TwoLayers(layer(FEATURES, HIDDEN, **_GEOMETRIC[name]), layer(HIDDEN, 4, **_GEOMETRIC[name])))
