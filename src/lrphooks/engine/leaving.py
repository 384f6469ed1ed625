"""What the model returned, on its way to the user."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrphooks.engine import containers, facts, functions, settling
from lrphooks.engine.nodes import OutputNode

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


def leave_outputs(run: Run, output: Any) -> Any:
    """Return what the model returned as the user is to see it."""
    run.cuts.end(run, output)
    output = containers.map_tensors(output, partial(_leave, run), "output", keep=lambda t: not t.requires_grad)
    run.tell(output)
    return output


def _leave(run: Run, output: Tensor) -> Tensor:
    node: Any = output.grad_fn
    unseen = node is not None and not run.provenance.in_sight(node)
    if unseen and facts.read(output, run) is None and run.provenance.leads(output):
        functions.serve(run, output)
    note = facts.read(output, run)
    stopped = note is not None and note.constant == "stopped"
    settled = settling.settled(run, output)
    out: Tensor = OutputNode.apply(run.passes, stopped, settled)
    if run.observer is not None:
        run.observer.output(run, settled, out)
    return out
