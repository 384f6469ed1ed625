"""The function mode of a run, and which runs the current thread is in."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack
from torch.utils._device import DeviceContext

from lrphooks.engine import contexts
from lrphooks.engine.call import tensors_in
from lrphooks.engine.checks import refuse_reentrant_checkpoint, refuse_transformed
from lrphooks.engine.ending import Ending
from lrphooks.operations import lookup

if TYPE_CHECKING:
    from typing_extensions import Self

    from lrphooks.engine.run import Run
    from lrphooks.engine.session import Block


class Thread(threading.local):
    """What is explained here: the running forward passes of the current thread, innermost last."""

    def __init__(self) -> None:
        self.runs: list[tuple[Block, Run]] = []

    @property
    def sessions(self) -> list[Block]:
        """The open contexts that hold here, in the order in which they were entered."""
        return contexts.entered()


THREAD = Thread()


def take_off(unwanted: Callable[[Interception], bool]) -> None:
    """Take modes off the stack of the current thread, wherever they are on it."""
    modes = _get_current_function_mode_stack()
    off = [isinstance(mode, Interception) and unwanted(mode) for mode in modes]
    if True not in off:
        return
    first = off.index(True)
    try:
        _pop_to(first)
    finally:
        # Again, in case that it was interrupted.
        _pop_to(first)
        for mode, unwelcome in zip(modes[first:], off[first:], strict=True):
            if not unwelcome:
                TorchFunctionMode.__enter__(mode)


def _pop_to(depth: int) -> None:
    while len(modes := _get_current_function_mode_stack()) > depth:
        TorchFunctionMode.__exit__(modes[-1], None, None, None)


class Interception(DeviceContext):
    """Brings the torch calls of one run before it, and nothing else.

    It sets no device. It is a DeviceContext because checkpointing enters the innermost one of the forward pass again
    when it recomputes, which is where the rules must hold again; it offers no other place for that.
    """

    def __init__(self, session: Block, run: Run) -> None:
        TorchFunctionMode.__init__(self)
        self.session, self.run = session, run
        self.prev_mode = None
        #: How many modules of the run were running each time that the mode was entered and not left yet.
        self._depths: list[int] = []
        #: What a with statement holds until its block is over, where there is one.
        self.ending: weakref.ref[Any] | None = None
        self._life: weakref.ref[Any] | None = None

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # it follows the default, so it is never set
        """The device that factory functions use anyway."""
        return torch.device(torch._C._get_default_device())

    @property
    def entered(self) -> bool:
        """Whether the mode was entered and not left yet."""
        return bool(self._depths)

    def __enter__(self) -> Self:
        life = None if self.ending is None else self.ending()
        try:
            self._depths.append(len(self.run.frames))
            THREAD.runs.append((self.session, self.run))
            if not self.session.open:
                # A checkpoint runs its part after the with block.
                self.session.hooks.attach(self)
            if life is not None:
                self._life = weakref.ref(life, lambda _: self.leave())
            TorchFunctionMode.__enter__(self)
        except BaseException:
            self.leave()
            raise
        return self

    def leave(self, *_: object) -> None:
        """Take the mode off, if it is on; whatever was interrupted, it can be done again."""
        take_off(lambda mode: mode is self)
        if self._depths:
            del self.run.frames[self._depths[-1] :]
            places = [place for place, (_, run) in enumerate(THREAD.runs) if run is self.run][-1:]
            for place in places:
                del THREAD.runs[place]
            self._depths.pop()
        self.session.hooks.detach(self)
        self._life = None

    __exit__ = Ending(leave, lambda mode: mode)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = lookup(func)
        # Without a block that it belongs to, it was left by an interrupt.
        if operation.kind == "passive" or not self._depths:
            return func(*args, **(kwargs or {}))
        if not torch.is_grad_enabled():
            refuse_reentrant_checkpoint()
            return func(*args, **(kwargs or {}))
        if torch._C._are_functorch_transforms_active():
            moves = operation.kind in ("shape", "split")
            refuse_transformed(tensors_in((args, kwargs or {})), self.run.carries, moves=moves)
        return self.run.execute(operation, func, args, kwargs or {})
