"""Operations that no rule serves, from where they ran to where relevance arrives at them.

Whether an operation matters is known only with the explained value: a loss that a model computes beside its logits has
no part in them. So what is to be said of it waits at its place in the graph, and is told as soon as it is sure that
relevance will arrive there: when the model ends, if all that it returns comes from there, or in the relevance pass.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lrphooks.engine.call import Call
from lrphooks.engine.reporting import Place
from lrphooks.engine.reports import Unmatched
from lrphooks.operations import Operation, expression
from lrphooks.torch_private import current_backward_pass

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


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


def report_operation(run: Run, call: Call, reason: str) -> None:
    """Report an operation without a rule as the composite asks for: an error, a warning, or nothing."""
    name = call.operation.name
    report(run, f"operation {name}", reason, entry(expression(name)), [tuple(t.shape) for t in call.dependent])
