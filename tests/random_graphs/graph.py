"""A graph as data: how a seed makes one, what is known of its values, and the code of its model."""

import random
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from .kinds import FEATURES, KINDS

CHANNELS, TOKENS, PIXELS, ROWS, CLASSES = 6, 4, 4, 2, 3


@dataclass(frozen=True)
class Node:
    """One operation: its kind, the values that it takes (0 is the input, k what node k makes), form and module."""

    kind: str
    inputs: tuple[int, ...]
    form: str
    module: int = 0


@dataclass(frozen=True)
class Graph:
    """Nodes in order; the last goes to the head. blocks: ranges (first, last) of nodes that run in a checkpoint."""

    seed: int
    image: bool
    nodes: tuple[Node, ...]
    blocks: tuple[tuple[int, int], ...] = ()

    @property
    def shape(self):
        """The shape of all values."""
        return (ROWS, CHANNELS, PIXELS, PIXELS) if self.image else (ROWS, TOKENS, CHANNELS)

    def node(self, k):
        """The node that makes value k."""
        return self.nodes[k - 1]

    def consumers(self, k):
        """The nodes that take value k, by number; one that takes it twice counts twice."""
        return [i + 1 for i, node in enumerate(self.nodes) for j in node.inputs if j == k]

    def blocks_of(self, k):
        """The checkpoints that node k runs in."""
        return [block for block in self.blocks if block[0] <= k <= block[1]]


# --- what is known of values ---

#: What a value is: an activation, a constant, a number plus an activation, softmax, what is made of softmax alone
#: (faint), or a mixture of these. The last two stand in no product, since it is left open how many factors a sum of
#: products is, and whether a layer of a constant is one.
ACTS = ("relu", "silu", "gelu", "tanh")
PLAIN = ("signal", "mixed", "softmax", "faint")
#: What is a constant under some composite.
CONSTANT = ("constant", "softmax", "faint")


@dataclass(frozen=True)
class Fact:
    """The class of a value, of how many factors it is a product, and whether it is a sum of such products."""

    kind: str
    factors: int = 1
    summed: bool = False


def fact_of(node, facts):  # noqa: C901, PLR0911, PLR0912 a case each
    """What is known of the result of a node, or None where the documentation leaves its relevance open."""
    known = [facts[k] for k in node.inputs]
    kinds, first = [f.kind for f in known], known[0]
    plain = all(kind in PLAIN for kind in kinds)
    if set(kinds) <= {"softmax", "faint"} and node.kind not in ("move", "scale", "flip", "mul", "sigmoid", "softplus"):
        return Fact("faint") if node.kind != "plus one" else None
    if node.kind in ("layer", "layer and norm"):
        return Fact("signal") if kinds[0] != "constant" else None
    if node.kind in ("move", "scale", "flip"):
        return first
    if node.kind == "mul":
        return _product(known)
    if node.kind in ("add", "sub"):
        carried = [kind for kind in kinds if kind != "constant"]
        if not carried or (node.kind == "sub" and not plain):
            return None
        signals = set(kinds) == {"signal"} and all(f.factors == 1 for f in known)
        # A further sum is of the same products, where those are sums already.
        return Fact("signal") if signals else _joined(known) if all(f.summed for f in known) else Fact("mixed")
    if not plain:
        return None
    if node.kind == "maximum" and node.inputs[0] == node.inputs[1]:
        return None
    if node.kind in ("sigmoid", "softplus"):
        return Fact("constant")
    if node.kind == "plus one":
        return Fact("offset") if first == Fact("signal") else None
    if node.kind == "softmax":
        return Fact("softmax")
    if node.kind == "attend":
        # A product of the weights and of what the values are a product of.
        return Fact("mixed", 1 + known[2].factors, summed=True)
    if all(f == Fact("signal") for f in known):
        return Fact("signal")
    if node.kind in ("mask", "mean"):
        return Fact("mixed", first.factors, summed=first.summed or (node.kind == "mean" and first.factors > 1))
    return _joined(known) if node.kind in ("splice", "maximum") else Fact("mixed")


def _joined(known):
    """What is known of values that are selected from several, or joined."""
    factors = {f.factors for f in known}
    same = len(factors) == 1 and factors != {1}
    return Fact("mixed", factors.pop(), summed=all(f.summed for f in known)) if same else Fact("mixed")


def _product(known):
    """What a product of two is, or None where it is left open."""
    kinds = sorted(f.kind for f in known)
    if "mixed" in kinds or "faint" in kinds or kinds.count("signal") == 0:
        return None
    if "constant" in kinds or "offset" in kinds:
        return next(f for f in known if f.kind == "signal")
    if kinds == ["signal", "softmax"]:
        return Fact("mixed")
    return Fact("signal", sum(f.factors for f in known))


def facts_of(graph):
    """What is known of all values, or None where the graph is none that relevance is defined for."""
    facts = [Fact("mixed")]
    for k, node in enumerate(graph.nodes, 1):
        if any(j >= k for j in node.inputs) or (node.form.startswith("in place") and not _writable(graph, k)):
            return None
        fact = fact_of(node, facts)
        if fact is None or (0 in node.inputs and k > 1):
            return None
        facts.append(fact)
    stem = graph.nodes and graph.nodes[0].kind in ("layer", "layer and norm")
    return facts if stem and facts[-1].kind in ("signal", "mixed") else None


#: What makes a result in memory of its own and keeps nothing of it for its derivative.
FRESH = {
    "layer", "layer and norm", "gelu", "plus one", "scale", "flip", "mask", "add", "sub", "mul", "splice", "softplus",
}  # fmt: skip
FRESH_MOVES = ("clone", "chunk", "unbind", "copied")
#: Forms that keep their own result, or hand on the memory that they were given.
KEEPING = {("layer and norm", "transposed"), ("softplus", "by hand"), ("silu", "by hand")}


def _writable(graph, k):
    """Whether node k may write over its first input: memory of its own that nobody else needs, in the same blocks."""
    source = graph.node(k).inputs[0]
    if source == 0 or graph.node(k).inputs.count(source) > 1 or graph.consumers(source) != [k]:
        return False
    maker = graph.node(source)
    fresh = maker.kind in FRESH or (maker.kind == "move" and maker.form in FRESH_MOVES)
    if not fresh or (maker.kind, maker.form) in KEEPING:
        return False
    return set(graph.blocks_of(k)) <= set(graph.blocks_of(source))


def features_of(graph):
    """Which of FEATURES a graph uses."""
    facts, found = facts_of(graph), set()
    for k, node in enumerate(graph.nodes, 1):
        known = [facts[j] for j in node.inputs]
        counted = node.kind == "mul" and not any(f.kind in ("constant", "offset") for f in known)
        if counted and sum(f.factors for f in known) > 2:
            found.add("product of three")
        if known[0].kind == "offset" and (node.kind in ("move", "scale", "flip") or node.form == "copied"):
            found.add("moved gate")
        if node.kind == "plus one" and node.form not in ("number", "number last"):
            found.add("moved gate")
        if node.kind == "layer and norm" and node.form != "modules":
            found.add("seen layer" if node.form == "seen" else "moved layer")
        if known[0].kind in CONSTANT and node.form == "copied into a view":
            found.add("copied constant")
        if _writes_to_constant(graph, node, known[0]):
            found.add("constant in place")
        if node.form.startswith("in place") and graph.blocks_of(node.inputs[0]) != graph.blocks_of(k):
            found.add("in place behind checkpoint")
    return found


def _writes_to_constant(graph, node, known):
    """Whether a node writes over a constant, or what a layer made of one."""
    if node.form.startswith("in place"):
        maker = graph.node(node.inputs[0])
        if maker.kind == "layer" and any(i and graph.node(i).kind == "softmax" for i in maker.inputs):
            return True
    writes = any(word in node.form for word in ("in place", "copied", "into a copy", "narrow"))
    return writes and node.kind in ("add", "sub", "mul", "splice", "mask") and known.kind in CONSTANT


# --- making ---

WEIGHTS = {
    "layer": 5, "layer and norm": 3, "relu": 3, "silu": 1, "gelu": 1, "tanh": 1, "sigmoid": 1, "softplus": 1,
    "plus one": 1, "scale": 1, "move": 3, "flip": 1, "mask": 1, "mean": 1, "softmax": 1, "norm": 1, "add": 3, "sub": 1,
    "mul": 4, "maximum": 1, "splice": 1, "attend": 1,
}  # fmt: skip


def make(seed, allowed=frozenset()):
    """The graph of a seed, with the features that are allowed. The same for the same arguments."""
    draw = random.Random(seed)
    image = draw.random() < 0.5
    kinds = [k for k in WEIGHTS if KINDS[k].image in (None, image) and not (image and k == "attend")]
    graph = Graph(seed, image, (Node("layer", (0,), "module", 0),))
    modules, length = 1, draw.randint(3, 11)
    while len(graph.nodes) < length:
        kind = draw.choices(kinds, [WEIGHTS[k] for k in kinds])[0]
        last = len(graph.nodes)
        inputs = tuple(
            last if draw.random() < (0.8 if i == 0 else 0.2) else draw.randint(1, last)
            for i in range(KINDS[kind].arity)
        )
        module = modules
        if kind == "layer" and modules > 1 and draw.random() < 0.2:
            module = draw.randint(1, modules - 1)  # a layer that runs again
        node = Node(kind, inputs, draw.choice(list(KINDS[kind].forms)), module)
        if draw.random() < 0.2 and kind in ("layer", "relu", "add", "mul"):
            node = replace(node, form=next(iter(KINDS[kind].forms)))
        grown = replace(graph, nodes=(*graph.nodes, node))
        if _open(grown, allowed):
            graph = grown
            modules += kind in ("layer", "layer and norm") and module == modules
    graph = _closed(graph)
    for _ in range(draw.choice([0, 0, 1, 1, 2])):
        first = draw.randint(1, len(graph.nodes))
        block = (first, min(len(graph.nodes), first + draw.randint(0, 3)))
        nested = all(block[1] < b[0] or block[0] > b[1] or _inside(block, b) or _inside(b, block) for b in graph.blocks)
        grown = replace(graph, blocks=(*graph.blocks, block))
        if nested and block not in graph.blocks and facts_of(grown) and features_of(grown) <= allowed:
            graph = grown
    return graph


def _inside(inner, outer):
    return outer[0] <= inner[0] and inner[1] <= outer[1]


def _open(graph, allowed):
    """Whether a graph that is being made is right so far, its last value aside."""
    closed = _closed(graph)
    return facts_of(closed) is not None and features_of(closed) <= allowed


def _closed(graph):
    """The graph, with a last sum where its last value could not be explained."""
    if facts_of(graph) is not None:
        return graph
    return replace(graph, nodes=(*graph.nodes, Node("add", (1, len(graph.nodes)), "sum")))


# --- the model ---


class Times(nn.Module):
    """A product as a module."""

    def forward(self, a, b):
        return a * b


def lines_of(graph):
    """The lines of ``forward``."""
    return [*_lines(graph, 1, len(graph.nodes), ()), f"return self.head(v{len(graph.nodes)}.mean({_dims(graph)}))"]


def _dims(graph):
    return "(2, 3)" if graph.image else "1"


def _lines(graph, first, last, within):
    """The lines of nodes, those in a checkpoint as a function of what they take from outside."""
    lines, k = [], first
    while k <= last:
        inner = [b for b in graph.blocks if b[0] == k and b not in within and b[1] <= last]
        if not inner:
            lines.append(_line(graph, k))
            k += 1
            continue
        block = max(inner, key=lambda b: b[1])
        members = range(block[0], block[1] + 1)
        taken = sorted({j for i in members for j in graph.node(i).inputs if j < block[0]})
        made = [i for i in members if i == len(graph.nodes) or any(c > block[1] for c in graph.consumers(i))] or [
            block[1]
        ]
        name = f"part{len(within)}_{block[0]}"
        body = _lines(graph, block[0], block[1], (*within, block))
        lines.append(f"def {name}({', '.join(f'v{j}' for j in taken)}):")
        lines += [f"    {line}" for line in body]
        lines.append(f"    return {', '.join(f'v{i}' for i in made)}")
        values = ", ".join(f"v{i}" for i in made)
        lines.append(f"{values} = checkpoint({name}, {', '.join(f'v{j}' for j in taken)}, use_reentrant=False)")
        k = block[1] + 1
    return lines


def _line(graph, k):
    node = graph.node(k)
    names = dict(zip("abc", (f"v{j}" for j in node.inputs), strict=False))
    return KINDS[node.kind].forms[node.form].format(
        o=f"v{k}", m=f"m{node.module}", n=f"n{node.module}", dims=_dims(graph),
        count=PIXELS**2 if graph.image else TOKENS, apply="F.conv2d" if graph.image else "F.linear",
        padding=", padding=1" if graph.image else "", **names,
    )  # fmt: skip


def code(graph):
    """The model as code that runs by itself."""
    text = ["class Model(nn.Module):", "    def __init__(self):", "        super().__init__()"]
    text.append(f"        torch.manual_seed({graph.seed})")
    kind = "nn.Conv2d(6, 6, 3, padding=1)" if graph.image else "nn.Linear(6, 6)"
    for module in sorted({n.module for n in graph.nodes if n.kind in ("layer", "layer and norm")}):
        text.append(f"        self.m{module} = {kind}")
        if any(n.kind == "layer and norm" and n.module == module for n in graph.nodes):
            text.append(f"        self.n{module} = nn.BatchNorm2d(6)")
            text.append(f"        self.n{module}.running_mean.normal_(); self.n{module}.running_var.uniform_(0.5, 2)")
            text.append(f"        nn.init.uniform_(self.n{module}.weight, -1.5, 1.5)")
    text += ["        self.times = Times()", "        self.head = nn.Linear(6, 3)", "        self.double().eval()", ""]
    text += ["    def forward(self, v0):", *(f"        {line}" for line in lines_of(graph))]
    return "\n".join(text)


def model_of(graph):
    """The model of a graph, with the weights of its seed."""
    names = {"torch": torch, "nn": nn, "F": F, "checkpoint": checkpoint, "Times": Times}
    exec(compile(code(graph), f"<graph {graph.seed}>", "exec"), names)
    return names["Model"]()


def input_of(graph):
    """The input of a graph: no value is 0, and all are inside of the box of the composites for images."""
    generator = torch.Generator().manual_seed(graph.seed)
    x = torch.randn(graph.shape, dtype=torch.float64, generator=generator).clamp(-2.9, 2.9)
    return torch.where(x.abs() < 0.05, 0.05, x)


def check_names(features):
    """The features as a set, or an error that lists those that there are."""
    unknown = set(features) - set(FEATURES)
    if unknown:
        raise ValueError(f"no such features: {sorted(unknown)}; there are {sorted(FEATURES)}")
    return frozenset(features)
