"""Making a failing graph small: nodes are left out, forms made plain and checkpoints dropped while it still fails."""

from dataclasses import replace

from .checks import failures, runs
from .graph import facts_of, features_of
from .kinds import KINDS


def without(graph, k):
    """The graph without node k; what took its value takes that of its first input."""
    instead = graph.node(k).inputs[0]

    def moved(j):
        j = instead if j == k else j
        return j - (j > k)

    nodes = tuple(
        replace(node, inputs=tuple(map(moved, node.inputs))) for i, node in enumerate(graph.nodes, 1) if i != k
    )
    blocks = tuple((a - (a > k), b - (b >= k)) for a, b in graph.blocks)
    return replace(graph, nodes=nodes, blocks=tuple(dict.fromkeys(b for b in blocks if b[0] <= b[1])))


def smaller(graph):
    """Graphs that are a little simpler."""
    for k in range(len(graph.nodes), 1, -1):
        yield without(graph, k)
    for block in graph.blocks:
        yield replace(graph, blocks=tuple(b for b in graph.blocks if b != block))
    for k, node in enumerate(graph.nodes):
        plain = replace(node, form=next(iter(KINDS[node.kind].forms)))
        if plain != node:
            yield replace(graph, nodes=(*graph.nodes[:k], plain, *graph.nodes[k + 1 :]))


def shrunk(graph, found, names, allowed):
    """The smallest graph that fails in the way of the first line, and its lines."""
    name, way = found[0].split(":")[0].split(", ")
    raises = "off by" not in found[0]

    def fails(candidate):
        facts = facts_of(candidate)
        if facts is None or not features_of(candidate) <= allowed or not runs(candidate):
            return []
        lines = failures(candidate, (name,) if name in names else names, allowed, second=way == "second derivative")
        return [line for line in lines if f", {way}:" in line and ("off by" not in line) == raises]

    lines = found
    while True:
        for candidate in smaller(graph):
            if less := fails(candidate):
                graph, lines = candidate, less
                break
        else:
            return graph, lines
