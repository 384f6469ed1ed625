"""What a command is, and how it fails."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

SUCCESS = 0
FAILURE = 1
USAGE_ERROR = 2


class CommandError(Exception):
    """What the user is told instead of a traceback, and the exit status that goes with it."""

    def __init__(self, message: str, status: int = FAILURE) -> None:
        super().__init__(message)
        self.status = status


class UsageError(CommandError):
    """The command was called wrongly."""

    def __init__(self, message: str) -> None:
        super().__init__(message, USAGE_ERROR)


@final
@dataclass(frozen=True)
class Command:
    """One command: its name, a line and a paragraph about it, and the arguments that it adds.

    What it does is the function ``run`` of the module of its name, which returns the exit status, or raises a
    :class:`CommandError`.
    """

    name: str
    help: str
    description: str
    arguments: Callable[[argparse.ArgumentParser], object]

    def load(self) -> Callable[[argparse.Namespace], int]:
        """Return what it does; torch is imported only now."""
        run: Callable[[argparse.Namespace], int] = importlib.import_module(f"lrphooks.cli.{self.name}").run
        return run
