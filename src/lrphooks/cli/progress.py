"""How far a batch is, on a terminal: a bar with the time left where tqdm is installed, else a line."""

from __future__ import annotations

import importlib
import sys
import time
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Any, final

from lrphooks.cli.output import emit


class Progress(AbstractContextManager["Progress"], ABC):
    """Counts finished pictures, and prints lines of results beside that."""

    @abstractmethod
    def advance(self) -> None:
        """Count one more."""

    @abstractmethod
    def print(self, line: str, *, error: bool = False) -> None:
        """Print a line of results, or of errors, without disturbing the display."""

    def __exit__(self, *_: object) -> None:
        """End the display."""


@final
class Silent(Progress):
    """Shows nothing: standard error is no terminal, or there is but one picture."""

    def advance(self) -> None:
        pass

    def print(self, line: str, *, error: bool = False) -> None:
        _print(line, error=error)


@final
class Line(Progress):
    """Rewrites one line, such as ``12 of 300, about 4 min left``."""

    def __init__(self, total: int) -> None:
        self._total, self._done, self._began = total, 0, time.monotonic()

    def advance(self) -> None:
        self._done += 1
        self._show()

    def print(self, line: str, *, error: bool = False) -> None:
        self._clear()
        _print(line, error=error)
        self._show()

    def _show(self) -> None:
        seconds = (time.monotonic() - self._began) / max(self._done, 1) * (self._total - self._done)
        left = f", about {_duration(seconds)} left" if 0 < self._done < self._total else ""
        sys.stderr.write(f"\r\033[K{self._done} of {self._total}{left}")
        sys.stderr.flush()

    @staticmethod
    def _clear() -> None:
        sys.stderr.write("\r\033[K")
        sys.stderr.flush()

    def __exit__(self, *_: object) -> None:
        self._clear()


@final
class Bar(Progress):
    """The bar of tqdm."""

    def __init__(self, tqdm: Any, total: int) -> None:
        self._bar = tqdm(total=total, unit="picture", file=sys.stderr, dynamic_ncols=True, leave=False)

    def advance(self) -> None:
        self._bar.update()

    def print(self, line: str, *, error: bool = False) -> None:
        self._bar.clear()
        _print(line, error=error)
        self._bar.refresh()

    def __exit__(self, *_: object) -> None:
        self._bar.close()


def progress(total: int) -> Progress:
    """Return the display for so many pictures."""
    if total < 2 or not sys.stderr.isatty():
        return Silent()
    try:
        return Bar(importlib.import_module("tqdm").tqdm, total)
    except ImportError:
        return Line(total)


def _print(line: str, *, error: bool) -> None:
    if error:
        print(line, file=sys.stderr, flush=True)
    else:
        emit(line)


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
