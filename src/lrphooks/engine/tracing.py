"""What differs while an explanation is traced to a graph: its tensors have no values yet."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Condition:
    """Something that must hold of values; ``error`` makes the error for where it does not, from ``values``."""

    holds: Tensor
    values: tuple[Tensor, ...]
    error: Callable[..., Exception]

    def check(self) -> None:
        """Raise the error unless the condition holds."""
        if not bool(self.holds):
            raise self.error(*self.values)


class _Thread(threading.local):
    """The conditions met so far by what the current thread traces, None where it traces nothing."""

    conditions: list[Condition] | None = None


_THREAD = _Thread()


@contextmanager
def tracing() -> Iterator[list[Condition]]:
    """Keep conditions on values for later, in the list that is given; nothing else may be kept from inside."""
    before, _THREAD.conditions = _THREAD.conditions, []
    try:
        yield _THREAD.conditions
    finally:
        _THREAD.conditions = before


def is_tracing() -> bool:
    """Whether the current thread traces an explanation to a graph."""
    return _THREAD.conditions is not None


def require(holds: Tensor, error: Callable[..., Exception], *values: Tensor) -> None:
    """Raise ``error(*values)`` unless a condition on values holds; in a graph, when it has run."""
    condition = Condition(holds, values, error)
    if _THREAD.conditions is None:
        condition.check()
    else:
        _THREAD.conditions.append(condition)
