"""Operations that no rule serves, from where they ran to where relevance arrives at them.

Whether an operation matters is known only with the explained value: a loss that a model computes beside its logits has
no part in them. So what is to be said of it waits at its place in the graph, and is told as soon as it is sure that
relevance will arrive there: when the model ends, if all that it returns comes from there, or in the relevance pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from lrphooks.engine.errors import UnmatchedError, UnmatchedWarning
from lrphooks.engine.reporting import Place, warn
from lrphooks.operations import Operation, expression
from lrphooks.torch_private import base_of, current_backward_pass

if TYPE_CHECKING:
    from torch import Tensor

    from lrphooks.engine.passes import Passes
    from lrphooks.engine.run import Run


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


def report(
    run: Run,
    what: str,
    reason: str,
    way: str,
    shapes: Iterable[Any] = (),
    nodes: list[Any] | None = None,
    *,
    always: bool = False,
) -> None:
    """Have an operation told of as the composite says: by an error, a warning, or not at all.

    It waits at the nodes that made its results, or where they are not given, at those of the call that now runs; where
    there are none, it is told at once.
    ``way`` says what to do about it; ``always`` makes it an error whatever the composite says.
    """
    if current_backward_pass() != -1:
        # What a checkpoint runs again was told of before.
        return
    policy = "error" if always else run.plan.composite.unmatched
    if run.observer is not None and policy != "error":
        run.observer.fell_back(what.removeprefix("operation "))
    if policy == "gradient":
        return
    place = Place.of_running()
    listed = ", ".join(map(str, shapes))
    message = (
        f"{what} in {run.name_of_running()}{f' ({place})' if place else ''}{f' on shape {listed}' if listed else ''}: "
        f"{reason}. {way}."
    )
    unmatched = Unmatched(message, policy, run.passes, place)
    if nodes is None:
        run.reports.new.append(unmatched)
    elif not nodes:
        unmatched.tell()
    else:
        run.reports.wait(unmatched, nodes)


#: The way out where the plain gradient may be kept.
KEEP = 'choose unmatched="warn" or "gradient" to keep its plain gradient'


def entry(matcher: str) -> str:
    """Return the way out where an entry of the composite may say that the gradient is right."""
    return f"Add an entry for it to the composite, such as ({matcher}, lrphooks.rules.Gradient()), or {KEEP}"


#: Why an operation without a derivative cannot be kept.
NO_DERIVATIVE = "it has no derivative, so no relevance can come back through it"


def way_without_derivative(operation: Operation) -> str:
    """Return the way out where an operation has no derivative."""
    return (
        "Register one (torch.library.register_autograd), write it in operations of torch, or declare its value a "
        f"constant: ({expression(operation.name)}, lrphooks.rules.Constant())"
    )


def nodes_behind(start: Any, leads: Callable[[Any], bool]) -> set[Any]:
    """Return the nodes behind one, itself among them, that lead to the explained input."""
    waiting, found = [start], set()
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found and leads(node):
            found.add(node)
            waiting.extend(behind for behind, _ in node.next_functions)
    return found
