"""Signals that end the program: one line and the status that shells expect, whenever they come.

While modules are imported there is nothing to clean up, and the program ends at once. Later a signal is an exception,
so that what was begun is ended well. Either way a second one ends the program as the system does it.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

#: What may end the program from outside: Ctrl-C, ``kill``, and a terminal that is closed. Windows has no SIGHUP.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


class Stopped(KeyboardInterrupt):
    """A signal came that ends the program."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def status_of(stop: KeyboardInterrupt) -> int:
    """Return the exit status of a program that was stopped so."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def word_for(stop: KeyboardInterrupt) -> str:
    """Return what happened to the program, in a word."""
    return "interrupted" if status_of(stop) == 128 + signal.SIGINT else "terminated"


def is_program() -> bool:
    """Whether this process was started as ``lrphooks`` or ``python -m lrphooks``."""
    given = sys.argv[0] if sys.argv else ""
    if given == "-m":  # what it is while Python looks for the module
        module = [*sys.orig_argv, ""][sys.orig_argv.index("-m") + 1] if "-m" in sys.orig_argv else ""
        return module == "lrphooks" or "-mlrphooks" in sys.orig_argv
    return Path(given).stem in ("lrphooks", "lrphooks-script")


def end_at_once() -> None:
    """From now on end with a line when a signal comes."""
    _handle(_end)


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise :class:`Stopped` when a signal comes; afterwards, signals do what the system does by itself."""
    _handle(_stop)
    yield
    _handle(signal.SIG_DFL)


def _end(number: int, _: FrameType | None) -> None:
    stop = Stopped(number)
    with suppress(OSError):
        os.write(2, f"lrphooks: {word_for(stop)}\n".encode())
    # No exception: modules that are being imported would swallow it, or tell of it.
    os._exit(status_of(stop))


def _stop(number: int, _: FrameType | None) -> None:
    _handle(signal.SIG_DFL)
    raise Stopped(number)


def _handle(how: object) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _SIGNALS:
        # What was ignored from the start stays so: nohup, and & in a script, mean it.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, how)  # type: ignore[arg-type]
