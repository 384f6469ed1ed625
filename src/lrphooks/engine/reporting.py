"""Operations that no rule serves are never silent, unless the composite asks for it."""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from lrphooks.engine.errors import UnmatchedError, UnmatchedWarning

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


def report(run: Run, what: str, reason: str, matcher: str, shapes: Iterable[Any] = ()) -> None:
    """Raise or warn, as the composite says, naming the module and the line of the model that ran it.

    ``matcher`` is the code of a matcher for it, which the message proposes.
    """
    policy = run.plan.composite.unmatched
    if run.observer is not None and policy != "error":
        run.observer.fell_back(what.removeprefix("operation "))
    if policy == "gradient":
        return
    site = site_of(traceback.extract_stack(sys._getframe(1)))
    listed = ", ".join(map(str, shapes))
    message = (
        f"{what} in {run.name_of_running()}{f' ({site})' if site else ''}{f' on shape {listed}' if listed else ''}: "
        f"{reason}. Add an entry for it to the composite, such as ({matcher}, lrphooks.rules.Gradient()), or choose "
        'unmatched="warn" or "gradient" to keep its plain gradient.'
    )
    if policy == "error":
        raise UnmatchedError(message)
    warnings.warn(message, UnmatchedWarning, stacklevel=2)


def site_of(frames: traceback.StackSummary) -> str:
    """Return file and line of the innermost of some frames outside torch and this package."""
    for frame in reversed(frames):
        parts = frame.filename.replace("\\", "/")
        if "/lrphooks/" not in parts and "/torch/" not in parts:
            return f"{frame.filename}:{frame.lineno}"
    return ""
