"""Compiled functions run as they are written while anything is explained: what they were compiled to has no rules."""

from __future__ import annotations

import threading
from contextlib import AbstractContextManager
from typing import Any

import torch


class _Eager(AbstractContextManager[None]):
    """Makes torch.compile's functions run eagerly as long as one context lasts; it holds for the whole process."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._stance: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                # It takes hold when it is made, and goes when it is left.
                self._stance = torch.compiler.set_stance("force_eager")

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._stance.__exit__(None, None, None)


#: Contexts of several threads overlap in any order, so they share one count.
EAGER = _Eager()
