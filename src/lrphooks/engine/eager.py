"""Compiled functions run as they are written while anything is explained: what they were compiled to has no rules."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch


class _Eager(AbstractContextManager[None]):
    """Makes torch.compile's functions run eagerly as long as one context lasts; it holds for the whole process.

    Contexts whose thread is busy with something else do not count meanwhile (see :meth:`idle`).
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._idle = 0
        self._stance: Any = None

    def __enter__(self) -> None:
        self._change(users=1)

    def __exit__(self, *exception: object) -> None:
        self._change(users=-1)

    @contextmanager
    def idle(self, users: int) -> Iterator[None]:
        """Let so many contexts of the current thread not count, while it runs a graph that has its rules inside."""
        # In a region that is compiled the stance may not be set, and calls are inlined in any case.
        users = 0 if torch.compiler.is_compiling() else users
        if users:
            self._change(idle=users)
        try:
            yield
        finally:
            if users:
                self._change(idle=-users)

    def _change(self, users: int = 0, idle: int = 0) -> None:
        with self._lock:
            users, idle = self._users + users, self._idle + idle
            eager = users > idle
            if eager and self._stance is None:
                # It takes hold when it is made, and goes when it is left.
                self._stance = torch.compiler.set_stance("force_eager")
            elif not eager and self._stance is not None:
                self._stance.__exit__(None, None, None)
                self._stance = None
            # Last, since torch refuses another stance where it compiles.
            self._users, self._idle = users, idle


#: Contexts of several threads overlap in any order, so they share one count.
EAGER = _Eager()
