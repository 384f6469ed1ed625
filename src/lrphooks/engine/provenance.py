"""Which tensors of a model depend on the explained input, read off the autograd graph itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction, Function

from lrphooks.engine.errors import LRPError
from lrphooks.torch_private import base_of, of_function

#: The name under which a node holds what one run knows of it.
_KEY = "lrphooks"


class Mark(NamedTuple):
    """What one run knows of a node: whether it leads to the explained input, and whether a call in sight made it."""

    # Nodes may outlive the run, and must not hold it.
    token: object
    leads: bool | None = None
    seen: bool = False


class Provenance:
    """Tells, for one run, whether the graph behind a tensor leads to the explained input.

    What was found is remembered on the nodes, so a graph is walked once. Numbers that autograd gives its nodes would
    not do: each thread counts by itself, and a checkpoint may run again in another thread.
    """

    __slots__ = ("_leading", "_nothing", "token")

    def __init__(self) -> None:
        self.token = object()
        self._nothing = Mark(self.token)
        self._leading = Mark(self.token, leads=True, seen=True)

    def begin(self, tensor: Tensor) -> None:
        """Declare a tensor to be the explained input."""
        self.see((tensor,))
        self._settle(tensor.grad_fn, leads=True)

    def end(self, tensor: Tensor) -> None:
        """Declare a tensor not to lead to the explained input: it counts as a constant."""
        if tensor.grad_fn is not None:
            self._settle(tensor.grad_fn, leads=False)

    def keep_facts(self, tensor: Tensor, facts: dict[str, Any]) -> None:
        """Keep what is known of a tensor where one that a checkpoint makes anew in its place is found too."""
        node: Any = tensor.grad_fn
        node.metadata[_KEY, tensor.output_nr] = (self.token, facts)

    def facts(self, tensor: Tensor) -> dict[str, Any]:
        """Return what was kept of a tensor, or of the one that it was made in place of."""
        node: Any = tensor.grad_fn
        entry = None if node is None else node.metadata.get((_KEY, tensor.output_nr))
        return entry[1] if entry is not None and entry[0] is self.token else {}

    def leads(self, tensor: Tensor) -> bool:
        """Whether a tensor was computed from the explained input, by operations seen or not."""
        return tensor.grad_fn is not None and self.reaches(tensor.grad_fn)

    def reaches(self, node: Any) -> bool:
        """Whether the graph behind a node leads to the explained input."""
        found = self._known(node)
        if found is None:
            refuse_earlier(node)
            return self._walk(node)
        return found

    def is_plain(self, node: Any) -> bool:
        """Whether calls in sight made the node and it is known to lead to the explained input, at one look."""
        return node.metadata.get(_KEY) is self._leading

    def see(self, tensors: Iterable[Tensor]) -> None:
        """Note that calls in sight made some tensors, or wrote to them through a view."""
        for tensor in tensors:
            nodes: tuple[Any, ...] = tensor.grad_fn, None if (base := base_of(tensor)) is None else base.grad_fn
            for node in nodes:
                if node is not None:
                    self.see_node(node)

    def see_node(self, node: Any) -> None:
        """Note that a call in sight made the node."""
        mark = self._mark(node)
        if not mark.seen:
            node.metadata[_KEY] = mark._replace(seen=True)

    def made(self, node: Any) -> None:
        """Note that a call in sight made the node, of operands that lead to the explained input."""
        found = node.metadata.get(_KEY)
        if found is self._leading:
            return
        mark = self._mark(node)
        node.metadata[_KEY] = mark._replace(seen=True) if mark.leads is False else self._leading

    def in_sight(self, node: Any) -> bool:
        """Whether a call in sight made the node."""
        return self._mark(node).seen

    def look(self, node: Any) -> Mark:
        """Return what is known of a node, whether it leads to the explained input among it."""
        mark = self._mark(node)
        if mark.leads is None:
            refuse_earlier(node)
            return mark._replace(leads=self._walk(node))
        return mark

    def unseen(self, start: Any) -> Iterator[Any]:
        """Yield the nodes from one back to those that calls in sight made, as far as they lead to the input."""
        waiting, met = [start], set()
        while waiting:
            node = waiting.pop()
            if node is None or node in met or self.in_sight(node) or not self.reaches(node):
                continue
            met.add(node)
            yield node
            waiting.extend(behind for behind, _ in node.next_functions)

    def _mark(self, node: Any) -> Mark:
        mark = node.metadata.get(_KEY)
        return mark if mark is not None and mark.token is self.token else self._nothing

    def _known(self, node: Any) -> bool | None:
        return self._mark(node).leads

    def _settle(self, node: Any, *, leads: bool) -> None:
        node.metadata[_KEY] = self._mark(node)._replace(leads=leads)

    def _walk(self, start: Any) -> bool:
        # Depth first without recursion: a node is answered once all behind it are, or one of them leads there.
        path = [(start, iter(start.next_functions))]
        while True:
            node, rest = path[-1]
            found: bool | None = False
            for behind, _ in rest:
                if behind is None:
                    continue
                found = self._known(behind)
                if found is None:
                    refuse_earlier(behind)
                    path.append((behind, iter(behind.next_functions)))
                if found is not False:
                    break
                found = False
            if found is None:
                continue
            if found:
                # Every node on the path leads there too.
                for passed, _ in path:
                    self._settle(passed, leads=True)
                return True
            self._settle(node, leads=False)
            path.pop()
            if not path:
                return False


class Given(Provenance):
    """Tells whether a tensor was computed from one that somebody wants a gradient of: a leaf that is no parameter."""

    __slots__ = ()

    def leads(self, tensor: Tensor) -> bool:
        """Whether the tensor is such a leaf, was computed from one, or is itself to have a gradient."""
        if not tensor.requires_grad or isinstance(tensor, nn.Parameter):
            return False
        return tensor.is_leaf or tensor.retains_grad or super().leads(tensor)

    def _known(self, node: Any) -> bool | None:
        leaf = leaf_of(node)
        return super()._known(node) if leaf is None else not isinstance(leaf, nn.Parameter)


def leaf_of(node: Any) -> Tensor | None:
    """Return the leaf whose gradient a node of the graph accumulates, or None for any other node."""
    return node.variable if type(node).__name__ == "AccumulateGrad" else None


#: Functions that hand values through for torch's own ends.
_TRANSPARENT = ("lrphooks.", "torch.nn.modules._functions", "torch.nn.parallel.", "torch.distributed.", "torch.utils.")


def made_by_function(tensor: Tensor) -> type[Function] | None:
    """Return the autograd function of the model's own that made a tensor, out of sight of the function mode."""
    return function_of(made_at(tensor)[0])


def function_of(node: Any) -> type[Function] | None:
    """Return the autograd function of the model's own whose node this is, or None."""
    if not isinstance(node, BackwardCFunction):
        return None
    made: type[Function] | None = of_function(node)
    return None if made is None or made.__module__.startswith(_TRANSPARENT) else made


def made_at(tensor: Tensor) -> tuple[Any, int]:
    """Return the place in the graph where a tensor was made, before the backward hooks of modules wrapped it."""
    return past_hooks(tensor.grad_fn, tensor.output_nr)


def past_hooks(node: Any, number: int) -> tuple[Any, int]:
    """Return the place in the graph before the nodes that torch puts where a module has backward hooks."""
    while type(node).__name__ == "BackwardHookFunctionBackward":
        node, number = node.next_functions[number]
    return node, number


def refuse_earlier(node: Any) -> None:
    """Raise an error if a node is where another forward pass, that is explained too, began."""
    if type(node).__name__ == "InputNodeBackward":
        raise LRPError(
            "A value that an earlier forward pass of an explained model computed came into this one past its inputs, "
            "such as a cache of keys and values or a hidden state that the model kept. No relevance could go back "
            "there. Put both passes, or the loop, into one torch.nn.Module and explain that; detach the value if it "
            "is to count as a constant."
        )


def nodes_behind(tensor: Tensor) -> Iterator[Any]:
    """Yield all nodes of the graph behind a tensor."""
    waiting: list[Any] = [tensor.grad_fn]
    seen: set[Any] = set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        yield node
        seen.add(node)
        waiting.extend(source for source, _ in node.next_functions)
