"""Messages and warnings that name the module and the line of the model."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

#: Where code lies that runs on behalf of the model's. A user's project may lie in a folder of any name, so these are
#: the places of the packages themselves.
_BETWEEN = (
    str(Path(__file__).parents[1]) + os.sep,
    str(Path(torch.__file__).parent) + os.sep,
    contextlib.__file__,
)


@dataclass(frozen=True, slots=True)
class Place:
    """A line of the model's, and the names of its file, which keep what warnings were given there."""

    file: str
    line: int
    scope: dict[str, Any]

    @classmethod
    def of_running(cls) -> Place | None:
        """Return the line of the model that runs now."""
        frames = traceback.walk_stack(sys._getframe(1))
        return next((cls(f.f_code.co_filename, line, f.f_globals) for f, line in frames if _is_own(f)), None)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    def warn(self, message: str, category: type[Warning]) -> None:
        """Issue a warning that points here, whatever runs now."""
        registry, name = self.scope.setdefault("__warningregistry__", {}), self.scope.get("__name__")
        warnings.warn_explicit(message, category, self.file, self.line, name, registry)


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
