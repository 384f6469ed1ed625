"""Compiled functions run as they are written while anything is explained: what they were compiled to has no rules."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable
from typing import Any

import torch

from lrphooks.engine.ending import interruptible
from lrphooks.torch_private import compile_stance, eager_stance, set_compile_stance


class _Eager:
    """Makes torch.compile's functions run eagerly as long as there are users; it holds for the whole process.

    Users whose thread is busy with something else do not count meanwhile (see :meth:`idle`). Which stance torch is to
    have follows from two sets alone, so that whatever an interrupt leaves half done, the next change does.
    """

    def __init__(self) -> None:
        # One that its thread may take again: a context may be collected, and thereby end, at any instant.
        self._lock = threading.RLock()
        self._users: set[object] = set()
        self._idle: set[object] = set()
        #: The stance that torch had before, and the one that it was given.
        self._stances: tuple[Any, Any] | None = None

    def add(self, user: object) -> None:
        """Count one more user."""
        # The first call imports torch's compiler: before the lock, which whatever runs in an import may want as well.
        compile_stance()
        with self._lock:
            self._users.add(user)
            self._settle()

    def remove(self, user: object) -> None:
        """Count a user no longer, if it was one."""
        with self._lock:
            self._users.discard(user)
            self._idle.discard(user)
            self._settle()

    @interruptible
    def idle(self, users: Iterable[object]) -> Generator[None, None, None]:
        """Let some users not count, while their thread runs a graph that has its rules inside."""
        # In a region that is compiled the stance may not be set, and calls are inlined in any case.
        users = set() if torch.compiler.is_compiling() else set(users) - self._idle
        try:
            if users:
                with self._lock:
                    self._idle |= users
                    self._settle()
            yield
        finally:
            if users:
                with self._lock:
                    self._idle -= users
                    self._settle()

    def _settle(self) -> None:
        while bool(self._users - self._idle) is (self._stances is None):
            if self._stances is None:
                # Known before it takes hold, so that it can be undone from then on.
                self._stances = (compile_stance(), eager_stance())
                try:
                    set_compile_stance(self._stances[1])
                except BaseException:
                    # torch refuses it where it compiles.
                    if compile_stance() is not self._stances[1]:
                        self._stances = None
                    raise
            else:
                before, ours = self._stances
                if compile_stance() is ours:
                    set_compile_stance(before)
                self._stances = None


#: Contexts of several threads overlap in any order, so they share one set of users.
EAGER = _Eager()
