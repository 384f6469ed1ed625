"""Which contexts hold for the code that runs now, and which of several."""

from __future__ import annotations

import math
import sys
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from torch import nn

if TYPE_CHECKING:
    from lrphooks.engine.plan import Plan

Call = tuple[int, int]


class Attached(Protocol):
    """What sees the calls of a model's modules while anything needs them."""

    def attach(self, user: object) -> None:
        """Have the modules' calls seen, for one user more."""

    def detach(self, user: object) -> None:
        """Let the modules go, unless there is another user."""

    def heal(self) -> bool:
        """Let the modules go where users that an interrupt left are all there is; return whether that was so."""


class Context(ABC):
    """A with block on a model, as what sees the model's calls knows it.

    plan: the composite applied to the model. open: it was entered, and did not end yet. asked: a forward pass of the
    model was asked for. calls: those that it was entered in (see :func:`innermost`). hooks: see the calls of the
    model's modules.
    """

    model: nn.Module
    plan: Plan | None
    open: bool
    asked: bool
    calls: frozenset[Call]
    hooks: Attached

    @abstractmethod
    def explain(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run the whole model, as a forward pass that is explained."""

    @abstractmethod
    def check_outside(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Raise an error if a layer of the model runs past the call of the model, where it would have no rule."""

    @abstractmethod
    def abandon(self) -> None:
        """Take off what an interrupt left of forward passes in this thread."""


#: As of other context variables, each thread and each task of asyncio has contexts of its own. A context that ended
#: elsewhere may still be in it, hence the weak references, and a look at whether it is open.
_ENTERED: ContextVar[tuple[weakref.ref[Context], ...]] = ContextVar("lrphooks.contexts", default=())


def entered() -> list[Context]:
    """Return the open contexts that hold here, in the order in which they were entered."""
    return [block for ref in _ENTERED.get() if (block := ref()) is not None and block.open]


def enter(block: Context) -> None:
    """Let a context hold here."""
    _ENTERED.set((*map(weakref.ref, entered()), weakref.ref(block)))


def leave(block: Context) -> None:
    """Forget a context."""
    _ENTERED.set(tuple(weakref.ref(other) for other in entered() if other is not block))


def calls(above: int) -> frozenset[Call]:
    """Return what stands for the calls that the current thread is in, without so many of the innermost."""
    return frozenset(_depths(sys._getframe(above + 1)))


def _depths(frame: FrameType | None) -> dict[Call, int]:
    found: dict[Call, int] = {}
    while frame is not None:
        # Frames that ended leave their place to others, so it does not stand for them alone.
        found[id(frame), id(frame.f_code)] = -len(found)
        frame = frame.f_back
    return found


def innermost(blocks: Sequence[Context]) -> Context:
    """Return the context that the current call is in most closely, of several in the order in which they were entered.

    That is the last, unless generators take turns: one of them goes on while another waits inside its own with block,
    which was entered later. So it is the one that was entered from the innermost of the calls that still run.
    """
    if all(block.calls <= blocks[-1].calls for block in blocks):
        return blocks[-1]
    depths = _depths(sys._getframe(1))

    def depth(block: Context) -> float:
        return max((depths[call] for call in block.calls if call in depths), default=-math.inf)

    return max(reversed(blocks), key=depth)
