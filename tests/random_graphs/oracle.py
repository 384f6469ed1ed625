"""Relevance by definition: the modified gradient G, node by node, in plain formulas without autograd.

Nothing here is shared with the package. A graph is interpreted; R = a * G at every value. Forms, checkpoints and hooks
take no part.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from .graph import Fact, fact_of


class Open(Exception):  # noqa: N818 no error: the documentation leaves open what is right
    """What the documentation leaves open."""


@dataclass(frozen=True)
class Rules:
    """What a composite says, in numbers: of dense layers, of convolutions, of the first, of sums and softmax."""

    dense: tuple
    convolution: tuple
    first: tuple | None = None
    first_of_dense: bool = False
    sums: float | None = None
    falling: bool = False
    softmax: bool = True


E, P = 1e-6, ("zplus", 1e-6)
RULES = {
    "AttnLRP": Rules(("epsilon", 0.0), ("epsilon", 0.0)),
    "AttnLRP(1e-3)": Rules(("epsilon", 1e-3), ("epsilon", 1e-3)),
    "CPLRP": Rules(("epsilon", 0.0), ("epsilon", 0.0), softmax=False),
    "Epsilon": Rules(("epsilon", 0.25), ("epsilon", 0.25)),
    "Gamma": Rules(("gamma", 0.25, E), ("gamma", 0.25, E)),
    "ExcitationBackprop": Rules(P, P),
    "EpsilonPlus": Rules(("epsilon", E), P),
    "EpsilonPlusFlat": Rules(("epsilon", E), P, ("flat", E), first_of_dense=True),
    "EpsilonAlpha2Beta1": Rules(("epsilon", E), ("alphabeta", E)),
    "EpsilonGammaBox": Rules(("epsilon", E), ("gamma", 0.25, E), ("box", -3.0, 3.0, E)),
    "GammaDecay": Rules(("epsilon", E), ("gamma", None, E), ("box", -3.0, 3.0, E), sums=10.0, falling=True),
}


def stable(z, epsilon):
    """z, moved away from 0 along its sign."""
    return torch.where(z < 0, z - epsilon, z + epsilon)


class Map:
    """A linear map and its transpose."""

    def __init__(self, weight, bias):
        self.weight, self.bias, self.image = weight, bias, weight.dim() == 4

    def __call__(self, a, weight):
        return F.conv2d(a, weight, padding=1) if self.image else a @ weight.T

    def back(self, s, weight):
        return F.conv_transpose2d(s, weight, padding=1) if self.image else s @ weight

    def wide(self, bias):
        return bias[:, None, None] if self.image else bias


def layer(rule, at, a, G):
    """G of the input of a linear map from G of its output."""
    w, b = at.weight, at.wide(at.bias)
    up, down = w.clamp(min=0), w.clamp(max=0)
    pos, neg = a.clamp(min=0), a.clamp(max=0)
    z = at(a, w) + b
    R = z * G
    rising, falling = at(pos, up) + at(neg, down), at(pos, down) + at(neg, up)

    def of_rising(s):
        return (a > 0) * at.back(s, up) + (a < 0) * at.back(s, down)

    def of_falling(s):
        return (a > 0) * at.back(s, down) + (a < 0) * at.back(s, up)

    name, *numbers = rule
    if name == "epsilon":
        return at.back(G * z / stable(z, numbers[0]) if numbers[0] else G, w)
    if name == "zplus":
        return of_rising(R / stable(rising + b.clamp(min=0), numbers[0]))
    if name == "alphabeta":
        more = of_rising(R / stable(rising + b.clamp(min=0), numbers[0]))
        return 2 * more - of_falling(R / stable(falling + b.clamp(max=0), numbers[0]))
    if name == "gamma":
        gamma, epsilon = numbers
        above = R * (z > 0) / stable(z + gamma * (rising + b.clamp(min=0)), epsilon)
        below = R * (z < 0) / stable(z + gamma * (falling + b.clamp(max=0)), epsilon)
        return at.back(above + below, w) + gamma * (of_rising(above) + of_falling(below))
    if name == "flat":
        ones = torch.ones_like(w)
        return at.back(R / stable(at(torch.ones_like(a), ones), numbers[0]), ones) / a
    low, high, epsilon = numbers
    lowest, highest = torch.full_like(a, low), torch.full_like(a, high)
    s = R / stable(at(a, w) - at(lowest, up) - at(highest, down), epsilon)
    return (a * at.back(s, w) - lowest * at.back(s, up) - highest * at.back(s, down)) / a


def shares(rules, a, b, G, sign):
    """G of both summands of a + sign * b."""
    if rules.sums is None:
        return G, sign * G
    c = a, sign * b
    z = c[0] + c[1]
    above = G * z * (z > 0) / stable(z + rules.sums * sum(t.clamp(min=0) for t in c), 1e-6)
    below = G * z * (z < 0) / stable(z + rules.sums * sum(t.clamp(max=0) for t in c), 1e-6)
    first, second = (above * (1 + rules.sums * (t > 0)) + below * (1 + rules.sums * (t < 0)) for t in c)
    return first, sign * second


class Interpreter:
    """The values of a graph, and relevance at each of them."""

    def __init__(self, graph, model, x):
        self.graph, self.model, self.values, self.weights = graph, model, [x.detach()], {}
        with torch.no_grad():
            for k, node in enumerate(graph.nodes, 1):
                self.values.append(self.value(node, [self.values[j] for j in node.inputs], k))
            self.dims = (2, 3) if graph.image else (1,)
            self.pooled = self.values[-1].mean(self.dims)
            self.output = self.pooled @ model.head.weight.T + model.head.bias

    def value(self, node, inputs, k):
        """The value of a node."""
        a, *rest = inputs
        if node.kind in ("layer", "layer and norm"):
            at = self.weights[k] = self.map_of(node)
            return at(a, at.weight) + at.wide(at.bias)
        if node.kind == "norm":
            return (a - a.mean(-1, keepdim=True)) / self.deviation(a)
        if node.kind == "attend":
            return self.attention(a, rest[0]) @ rest[1]
        index = torch.arange(a.shape[-1])
        functions: dict[str, Any] = {
            "relu": F.relu, "silu": lambda t: t * t.sigmoid(), "tanh": torch.tanh,
            "gelu": lambda t: 0.5 * t * (1 + torch.erf(t / math.sqrt(2))),
            "sigmoid": torch.sigmoid, "softplus": F.softplus, "plus one": lambda t: t + 1, "scale": lambda t: 2 * t,
            "move": torch.clone, "flip": lambda t: t.flip(1), "mask": lambda t: t * (index != 1),
            "mean": lambda t: t.mean((2, 3) if t.dim() == 4 else 1, keepdim=True).expand_as(t),
            "softmax": lambda t: t.softmax(-1), "add": torch.add, "sub": torch.sub, "mul": torch.mul,
            "maximum": torch.maximum, "splice": lambda t, u: torch.where(index < 2, u, t),
        }  # fmt: skip
        return functions[node.kind](*inputs)

    @staticmethod
    def deviation(a):
        """The root of the variance over the last dimension."""
        return (((a - a.mean(-1, keepdim=True)) ** 2).mean(-1, keepdim=True) + 1e-5).sqrt()

    @staticmethod
    def attention(q, k):
        """The weights of attention."""
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)

    def map_of(self, node):
        """The layer of a node, with its BatchNorm merged."""
        module = getattr(self.model, f"m{node.module}")
        weight, bias = module.weight.detach(), module.bias.detach()
        if node.kind == "layer and norm":
            n = getattr(self.model, f"n{node.module}")
            scale = n.weight.detach() / (n.running_var + n.eps).sqrt()
            weight, bias = weight * scale.view(-1, 1, 1, 1), (bias - n.running_mean) * scale + n.bias.detach()
        return Map(weight, bias)

    def rule(self, rules, k):
        """The rule of the layer at node k; the first node is the first layer of all."""
        node = self.graph.node(k)
        if k == 1 and rules.first is not None and (self.graph.image or rules.first_of_dense):
            return rules.first
        if not self.graph.image:
            return rules.dense
        if not rules.falling:
            return rules.convolution
        numbers = sorted({n.module for n in self.graph.nodes if n.kind in ("layer", "layer and norm")})
        place = numbers.index(node.module) / max(1, len(numbers) - 1)
        return ("gamma", 0.05**place, 1e-6)

    @torch.no_grad()
    def relevance(self, name, target):
        """The relevance of the input for an output of each row."""
        rules, facts = RULES[name], [Fact("mixed")]
        for node in self.graph.nodes:
            facts.append(fact_of(node, facts))
        last = len(self.graph.nodes)
        chosen = torch.zeros_like(self.output)
        chosen[:, target] = 1.0
        head = Map(self.model.head.weight.detach(), self.model.head.bias.detach())
        G = [torch.zeros_like(v) for v in self.values]
        count = math.prod(self.values[-1].shape[d] for d in self.dims)
        pooled = layer(rules.dense, head, self.pooled, chosen) / count
        G[last] += pooled.view(*pooled.shape, 1, 1) if self.graph.image else pooled[:, None]
        for k in range(last, 0, -1):
            node = self.graph.node(k)
            known = [facts[j] for j in node.inputs]
            parts = self.parts(rules, k, node, known, G[k])
            for j, part in zip(node.inputs, parts, strict=True):
                G[j] += part
        self.G, self.constant = G, [False]
        for node in self.graph.nodes:
            made = node.kind in ("sigmoid", "softplus") or (node.kind == "softmax" and not rules.softmax)
            # The weights of attention are a softmax.
            operands = node.inputs[2:] if node.kind == "attend" and not rules.softmax else node.inputs
            self.constant.append(made or all(self.constant[j] for j in operands))
        return self.values[0] * G[0]

    def parts(self, rules, k, node, known, G):
        """G of each input of a node."""
        a, *rest = (self.values[j] for j in node.inputs)
        z, kind = self.values[k], node.kind
        if kind in ("layer", "layer and norm"):
            return [layer(self.rule(rules, k), self.weights[k], a, G)]
        if kind in ("relu", "silu", "gelu", "tanh"):
            slope = {"relu": 0.0, "silu": 0.5, "gelu": 0.5, "tanh": 1.0}[kind]
            return [G * torch.where(a == 0, slope, z / torch.where(a == 0, 1.0, a))]
        if kind in ("add", "sub"):
            if rules.sums is not None and any(f.kind in ("constant", "offset") for f in known):
                raise Open("whether a sum with a constant that depends on the input has the rule of sums")
            if rules.sums is not None and node.inputs[0] == node.inputs[1]:
                raise Open("whether a value plus itself has the rule of sums")
            first, second = shares(rules, a, rest[0], G, 1.0 if kind == "add" else -1.0)
            return [first * (known[0].kind != "constant"), second * (known[1].kind != "constant")]
        if kind == "mul":
            return self.factors(rules, known, a, rest[0], G)
        if kind == "attend":
            return self.attended(rules, known, a, *rest, G)
        if kind == "norm" and rules.sums is not None and node.form == "by hand":
            raise Open("a difference of two activations inside of a normalisation has the rule of sums")
        if kind == "gelu" and rules.sums is not None and node.form == "by hand":
            raise Open("a sum in a gate")
        return self.single(rules, kind, a, z, G, rest)

    def single(self, rules, kind, a, z, G, rest):  # noqa: PLR0911 a case each
        """G of the inputs of what is no layer, sum, product or activation."""
        index = torch.arange(a.shape[-1])
        if kind in ("sigmoid", "softplus"):
            return [torch.zeros_like(G)]
        if kind in ("plus one", "move"):
            return [G]
        if kind == "scale":
            return [2 * G]
        if kind == "flip":
            return [G.flip(1)]
        if kind == "mask":
            return [G * (index != 1)]
        if kind == "mean":
            dims = (2, 3) if a.dim() == 4 else (1,)
            return [G.sum(dims, keepdim=True).expand_as(a) / math.prod(a.shape[d] for d in dims)]
        if kind == "softmax":
            return [z * (G - (z * G).sum(-1, keepdim=True)) * rules.softmax]
        if kind == "norm":
            scaled = G / self.deviation(a)
            return [scaled - scaled.mean(-1, keepdim=True)]
        if kind == "maximum":
            if (a == rest[0]).any():
                raise Open("who wins where two are equal")
            return [G * (a > rest[0]), G * (a < rest[0])]
        return [G * (index >= 2), G * (index < 2)]

    @staticmethod
    def factors(rules, known, a, b, G):
        """G of both factors: a gate takes nothing, the others their part of all factors."""
        gates = [f.kind in ("constant", "offset") or (f.kind == "softmax" and not rules.softmax) for f in known]
        if any(gates):
            return [G * b * (not gates[0]), G * a * (not gates[1])]
        n = sum(f.factors for f in known)
        return [G * b * known[0].factors / n, G * a * known[1].factors / n]

    def attended(self, rules, known, q, k, v, G):
        """G of query, key and value: weights and values, and query and key, their part of all factors."""
        p = self.attention(q, k)
        if not rules.softmax:
            return [torch.zeros_like(q), torch.zeros_like(k), p.mT @ G]
        of_q, of_k, of_v = (f.factors for f in known)
        of_p = G @ v.mT / (1 + of_v)
        of_u = p * (of_p - (p * of_p).sum(-1, keepdim=True)) / q.shape[-1] ** 0.5 / (of_q + of_k)
        return [of_u @ k * of_q, of_u.mT @ q * of_k, p.mT @ G * of_v / (1 + of_v)]
