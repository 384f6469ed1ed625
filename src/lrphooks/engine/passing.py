"""Relevance that goes straight from the output of a module or an operation to its input: the rule Pass."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from lrphooks.engine import containers, facts
from lrphooks.engine.call import replace_tensors
from lrphooks.engine.errors import LRPError
from lrphooks.engine.frame import Source
from lrphooks.engine.function_nodes import PassNode
from lrphooks.engine.nodes import ScaleNode
from lrphooks.engine.passes import Passes
from lrphooks.engine.settling import settled
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Pass

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


_PASS = Pass()

#: Sets a node that hands relevance from an output to a source, and returns the output and its link.
Node = Callable[[Passes, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]


def source(run: Run, tensor: Tensor, values: Tensor | None = None) -> Source:
    """Return a tensor as a source, with values of another time if they may have changed since."""
    note = facts.read(tensor, run)
    return Source(tensor, tensor if values is None else values, None if note is None else note.link)


def enter(run: Run, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any, Source]:
    """Return a module's arguments as it is to see them, and the one input that relevance will pass to."""
    carriers = [t for t in containers.tensors((args, kwargs)) if run.carries(t)]
    if len(carriers) != 1:
        raise LRPError(
            f"Pass() on {run.plan.name_of(module)} needs one input to pass relevance to, but {len(carriers)} of its "
            "inputs depend on the explained input. Give its operations rules instead."
        )
    # Its relevance comes past whatever consumes it, so the layer that made it gets its rule now.
    carrier = settled(run, carriers[0])
    note = facts.read(carrier, run)
    # What runs inside may overwrite it, so its place in the graph and its values are kept apart.
    held: Tensor = ScaleNode.apply(run.passes, 1.0, carrier)
    if note is not None:
        facts.hand_on(carrier, held, run, link=note.link, maker=note.maker)
    args, kwargs = replace_tensors((args, kwargs), {id(carriers[0]): carrier})
    return args, kwargs, source(run, held, carrier.clone())


def passed(run: Run, to: Source, output: Any, where: str, rule: Rule = _PASS, node: Node = PassNode.apply) -> Tensor:
    """Return a value whose relevance goes to a source, of the same shape, as it is."""
    a = to.tensor
    if not isinstance(output, Tensor) or output.shape != a.shape:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise LRPError(
            f"{rule!r} on {where} needs an output of the input's shape {tuple(a.shape)}, got {found}. Give its "
            "operations rules instead."
        )
    link_in = None if to.link is None else to.link()
    if run.observer is not None and run.watched:
        a = run.observer.probe(run, a)
        link_in = None if link_in is None else run.observer.probe(run, link_in, as_relevance=True)
    out, link = node(run.passes, a, to.values, output, link_in)
    facts.write(out, run, link=lambda: link)
    if run.observer is not None and run.watched:
        run.observer.passed(run, rule, to.values, out, link, linked=link_in is not None)
    return out


def through(run: Run, a: Tensor, output: Any) -> Tensor:
    """Return the output of an operation whose relevance goes to its operand ``a`` as it is."""
    return passed(run, source(run, a), output, run.name_of_running())
