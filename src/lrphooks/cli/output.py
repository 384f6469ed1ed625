"""What the program writes: results to standard output and nothing else there, all the rest to standard error."""

from __future__ import annotations

import os
import sys
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO

from lrphooks.cli.command import CommandError

#: Where results go while a command runs.
_results: list[TextIO | None] = []
#: Characters of these categories would break the line, or could not be written: control characters, lone surrogates.
_BREAKING = ("Cc", "Cs", "Zl", "Zp")


def emit(text: str = "") -> None:
    """Print results, at once.

    Raises
    ------
    BrokenPipeError
        If nobody reads them any more.
    CommandError
        If they cannot be written for another reason.
    """
    stream = _results[-1] if _results else sys.stdout
    if stream is None:  # it was closed before the program began
        return
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise CommandError(f"standard output could not be written: {error.strerror or error}.") from error


def complain(message: str) -> None:
    """Print an error on standard error, as one line."""
    print(error_line(message), file=sys.stderr, flush=True)


def error_line(message: str) -> str:
    """Return an error as it is printed."""
    return f"lrphooks: error: {printable(message)}"


def reason(error: BaseException) -> str:
    """Return what an error says, as one line, with its type: people's own code raises anything."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def printable(text: str) -> str:
    """Return a text, such as the name of a file, as one line that a terminal can show."""
    if text.isprintable():
        return text
    return "".join(
        each.encode("unicode_escape").decode("ascii") if unicodedata.category(each) in _BREAKING else each
        for each in text
    )


@contextmanager
def results_alone(*, program: bool) -> Iterator[None]:
    """Keep standard output for results: what anything else prints goes to standard error.

    Models, and the modules that they come from, print. ``program`` says that the process is the command's own: then
    that holds for what is not Python, too, until the process ends.
    """
    stream = _private() if program else None
    _results.append(stream or sys.stdout)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        _results.pop()
        if stream is not None:
            with suppress(OSError):  # it was flushed after each result
                stream.close()


def _private() -> TextIO | None:
    """Return standard output as a stream that nothing else knows, or None where that does not go."""
    if sys.stdout is None:
        return None
    try:
        sys.stdout.flush()
        shared = sys.stdout.fileno()
        private = os.dup(shared)
        os.dup2(2, shared)
    # Closed, or no file of the system.
    except (OSError, ValueError):
        return None
    return os.fdopen(private, "w", encoding=sys.stdout.encoding, errors="replace")


def settle() -> None:
    """Write what standard output still holds, or forget it: Python would complain when it ends."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
