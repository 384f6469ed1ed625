"""Operations that no rule serves are never silent, unless the composite asks for it."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import torch

from lrphooks.engine.errors import UnmatchedError, UnmatchedWarning

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

#: Where code lies that runs on behalf of the model's. A user's project may lie in a folder of any name, so these are
#: the places of the packages themselves.
_BETWEEN = (
    str(Path(__file__).parents[1]) + os.sep,
    str(Path(torch.__file__).parent) + os.sep,
    contextlib.__file__,
)


def report(run: Run, what: str, reason: str, matcher: str, shapes: Iterable[Any] = ()) -> None:
    """Raise or warn, as the composite says, naming the module and the line of the model that ran it.

    ``matcher`` is the code of a matcher for it, which the message proposes.
    """
    policy = run.plan.composite.unmatched
    if run.observer is not None and policy != "error":
        run.observer.fell_back(what.removeprefix("operation "))
    if policy == "gradient":
        return
    site = site_of(traceback.walk_stack(sys._getframe(1)))
    listed = ", ".join(map(str, shapes))
    message = (
        f"{what} in {run.name_of_running()}{f' ({site})' if site else ''}{f' on shape {listed}' if listed else ''}: "
        f"{reason}. Add an entry for it to the composite, such as ({matcher}, lrphooks.rules.Gradient()), or choose "
        'unmatched="warn" or "gradient" to keep its plain gradient.'
    )
    if policy == "error":
        raise UnmatchedError(message)
    warn(message, UnmatchedWarning)


def site_of(frames: Iterable[tuple[FrameType, int]]) -> str:
    """Return file and line of the first of some frames, innermost first, that is the model's or the user's own."""
    return next((f"{frame.f_code.co_filename}:{line}" for frame, line in frames if _is_own(frame)), "")


def warn(message: str, category: type[Warning]) -> None:
    """Issue a warning that points at the user's line, however deep in torch and this package it comes from."""
    level = 2
    for frame, _ in traceback.walk_stack(sys._getframe(1)):
        if _is_own(frame):
            break
        level += 1
    warnings.warn(message, category, stacklevel=level)


def _is_own(frame: FrameType) -> bool:
    return not frame.f_code.co_filename.startswith(_BETWEEN)
