"""What is to be said of the operations of one forward pass, until it is sure that it matters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from weakref import ReferenceType

from torch import Tensor

from lrphooks.engine.errors import UnmatchedError, UnmatchedWarning
from lrphooks.engine.reporting import Place, warn
from lrphooks.torch_private import base_of

if TYPE_CHECKING:
    from lrphooks.engine.passes import Passes


class Unmatched:
    """What is to be said of one operation; nodes of the graph hold it, so it holds neither them nor the run."""

    __slots__ = ("_message", "_passes", "_place", "_policy", "_told")

    def __init__(
        self, message: str, policy: Literal["error", "warn"], passes: Passes, place: Place | None = None
    ) -> None:
        self._message, self._policy, self._passes, self._place = message, policy, passes, place
        self._told = False

    def arrived(self, gradients: Sequence[Tensor | None]) -> None:
        """Tell of the operation where a gradient of a relevance pass arrives at a node that made its results."""
        if self._passes.relevance and any(gradient is not None for gradient in gradients):
            self.tell()

    def tell(self) -> None:
        """Raise an error; or warn, once."""
        if self._policy == "error":
            raise UnmatchedError(self._message)
        if not self._told:
            self._told = True
            if self._place is None:
                warn(self._message, UnmatchedWarning)
            else:
                self._place.warn(self._message, UnmatchedWarning)


class Reports:
    """The operations of one forward pass that are to be told of.

    new: those whose results are not known yet.
    """

    __slots__ = ("_placed", "new")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all, nodes of the graph among it."""
        self.new: list[Unmatched] = []
        self._placed: list[tuple[Unmatched, list[Any]]] = []

    def place(self, results: Iterable[Tensor]) -> None:
        """Let what is new wait behind the results of the operation."""
        # What is written through a view has its place in the graph at what it is a view of.
        made = [t for result in results for t in (result, base_of(result)) if t is not None]
        nodes = [tensor.grad_fn for tensor in made if tensor.grad_fn is not None]
        new, self.new = self.new, []
        for unmatched in new:
            self.wait(unmatched, nodes)

    def wait(self, unmatched: Unmatched, nodes: list[Any]) -> None:
        """Let one wait at nodes of the graph."""
        for node in nodes:
            node.register_prehook(unmatched.arrived)
        self._placed.append((unmatched, nodes))

    def end(self, outputs: Iterable[Tensor], leads: Callable[[Any], bool]) -> None:
        """Tell of those that every output of the model comes from, by nodes that lead to the explained input."""
        placed, self._placed = self._placed, []
        reached = [nodes_behind(output.grad_fn, leads) for output in outputs] if placed else []
        for unmatched, nodes in placed:
            if reached and all(any(node in each for node in nodes) for each in reached):
                unmatched.tell()


def nodes_behind(start: Any, leads: Callable[[Any], bool]) -> set[Any]:
    """Return the nodes behind one, itself among them, that lead to the explained input."""
    waiting, found = [start], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found and leads(node):
            found.add(node)
            waiting.extend(behind for behind, _ in node.next_functions)
    return found


@dataclass(eq=False)
class Cut:
    """One operation whose results lost the graph.

    message: what is to be said of it. tell: says it, once. where: the module and the line. node: the place in the graph
    where relevance ends. how: what disabled gradients, if anything did.
    """

    message: str
    tell: Callable[[], None]
    where: str
    node: Any
    how: str = ""
    told: bool = False


class Cuts:
    """The operations of one forward pass whose results lost the graph, and the tensors that came of them."""

    __slots__ = ("held", "made")

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all, nodes of the graph among it."""
        self.made: dict[tuple[str, str], Cut] = {}
        self.held: dict[int, tuple[ReferenceType[Tensor], Any, Cut]] = {}
