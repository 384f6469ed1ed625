"""What a graph computes of the model's weights alone, kept from one call to the next while these stay as they are."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from lrphooks.engine.cache import WeightCache, WeightStore, fingerprint

#: Smaller results are as fast computed in passing as their origins are compared.
SMALL = 1 << 14
_CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


@final
@dataclass(frozen=True, eq=False)
class Kept:
    """Modified weights: the graph that computes them, the model's tensors that they come from, and their values."""

    module: GraphModule
    origins: tuple[Tensor, ...]
    store: WeightStore

    def __call__(self) -> list[Tensor]:
        """Return the modified weights of the model as it is now."""
        made: list[Tensor] = WeightCache(self.store).get("graph", self.origins, 0.0, self.module)
        return made


def split(module: GraphModule, model: nn.Module) -> Kept | None:
    """Move modified weights out of a graph, which takes them as further inputs; None where nothing is worth it.

    It is not where seeing whether a weight changed costs more than to modify it anew, as on accelerators.
    """
    graph = module.graph
    owned = {id(t) for t in (*model.parameters(), *model.buffers())}
    fixed = _fixed(module, owned)
    wanted = [
        node
        for node in graph.nodes
        if node in fixed
        and _is_large(node)
        and all(base.op != "get_attr" for base in _bases(node))
        and any(user not in fixed for user in node.users)
    ]
    origins = {t: None for node in _behind(wanted) if node.op == "get_attr" for t in (_attribute(module, node),)}
    if not wanted or fingerprint(list(origins)) is None:
        return None
    last = [node for node in graph.nodes if node.op == "placeholder"][-1]
    other = _extracted(graph, wanted)
    for number, node in enumerate(wanted):
        with graph.inserting_after(last):
            last = graph.placeholder(f"modified{number}")
        last.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(last, delete_user_cb=lambda user: user not in fixed)
    graph.eliminate_dead_code()
    return Kept(GraphModule(module, other), tuple(origins), WeightStore(model))


def _fixed(module: GraphModule, owned: set[int]) -> set[Node]:
    """Return the operations that depend on the model's tensors alone and change none of them."""
    found: set[Node] = set()
    for node in module.graph.nodes:
        inputs = node.all_input_nodes
        if node.op == "get_attr":
            if id(_attribute(module, node)) in owned:
                found.add(node)
        elif node.op == "call_function" and inputs and all(each in found for each in inputs):
            found.add(node)
    for node in module.graph.nodes:
        for base in (base for each in _written(node) for base in _bases(each)):
            if base.op == "get_attr":
                # What is read of it may be from before or after.
                found -= _reaching(n for n in module.graph.find_nodes(op="get_attr", target=base.target))
            elif node not in found:
                found -= _reaching([base])
    return found


def _written(node: Node) -> list[Node]:
    """Return what an operation writes to."""
    schema = getattr(node.target, "_schema", None)
    if node.op != "call_function" or schema is None or not schema.is_mutable:
        return []
    named = {a.name: v for a, v in zip(schema.arguments, node.args, strict=False)} | dict(node.kwargs)
    writes = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    return [value for name, value in named.items() if name in writes and isinstance(value, Node)]


def _bases(node: Node) -> set[Node]:
    """Return the values whose memory a value may share, itself where it has its own."""
    shared = _written(node) or (node.all_input_nodes[:1] if node.op == "call_function" and _is_view(node) else [])
    return {base for each in shared for base in _bases(each)} or {node}


def _reaching(roots: Iterable[Node]) -> set[Node]:
    """Return nodes and all that is computed from them."""
    return _closed(roots, lambda node: node.users)


def _behind(nodes: Iterable[Node]) -> set[Node]:
    """Return nodes and all that they are computed from."""
    return _closed(nodes, lambda node: node.all_input_nodes)


def _closed(nodes: Iterable[Node], further: Callable[[Node], Iterable[Node]]) -> set[Node]:
    """Return nodes, those that follow from each, and so on."""
    found: set[Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += further(node)
    return found


def _extracted(graph: Graph, wanted: list[Node]) -> Graph:
    """Return a graph that computes some of another's values alone."""
    needed = _behind(wanted)
    other = Graph()
    copies: dict[Node, Node] = {}
    for node in graph.nodes:
        if node in needed:
            copies[node] = other.node_copy(node, copies.__getitem__)
    results = []
    for node in wanted:
        made = copies[node]
        if node.meta["val"].dim() == 4 and all(user in needed or user.target in _CONVOLUTIONS for user in node.users):
            # As inductor runs them; it would copy the weight in each call.
            made = other.call_method("contiguous", (made,), {"memory_format": torch.channels_last})
        results.append(made)
    other.output(results)
    return other


def _attribute(module: GraphModule, node: Node) -> Any:
    value: Any = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def _is_large(node: Node) -> bool:
    value = node.meta.get("val")
    return node.op == "call_function" and isinstance(value, Tensor) and value.numel() >= SMALL


def _is_view(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
