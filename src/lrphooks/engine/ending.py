"""With blocks that end whatever interrupts them.

A KeyboardInterrupt may come at any instant, also in the first one of an ``__exit__`` written in Python, before any of
its lines: then nothing in it runs. But a with statement looks ``__exit__`` up before it enters and holds what it found
until the block is over, and holds nothing else. So that object is made for each block, and when it dies, the block is
over, by whichever way.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Generator
from contextlib import _GeneratorContextManager
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from lrphooks.torch_private import (
    POPS_A_MODE,
    pop_saved_tensors_hooks,
    push_saved_tensors_hooks,
    set_gradients,
    top_saved_tensors_hooks,
)

P = ParamSpec("P")
T = TypeVar("T")


class Ending:
    """An ``__exit__`` that calls a function with what ``of`` returns for the manager, and the exception.

    The function must not be given the manager itself: its frame, in the traceback of an interrupt, would keep it alive.
    What was looked up last is at ``ending``, a weak reference, where there is a block to end.
    """

    def __init__(self, function: Callable[..., Any], of: Callable[[Any], Any]) -> None:
        self._function, self._of = function, of

    def __get__(self, manager: Any, owner: type) -> Callable[..., Any]:
        if manager is None:
            # As ExitStack asks for it, which binds it by itself.
            return lambda manager, *exception: self._function(self._of(manager), *exception)
        ending = functools.partial(self._function, self._of(manager))
        vars(ending)["manager"] = manager
        manager.ending = weakref.ref(ending)
        return ending


def _end(manager: weakref.ref[_Interruptible[Any]], *exception: Any) -> bool | None:
    # The manager lives as long as what called this.
    found: Any = manager()
    try:
        return _GeneratorContextManager.__exit__(found, *exception)
    except BaseException:
        found.gen.close()
        raise


class _Interruptible(_GeneratorContextManager[T]):
    """What a function with one yield makes: its ``finally`` runs at once, wherever an interrupt comes."""

    ending: weakref.ref[Any]

    def __enter__(self) -> T:
        try:
            value = super().__enter__()
        except BaseException:
            self.gen.close()
            raise
        return value

    __exit__ = Ending(_end, weakref.ref)


def interruptible(function: Callable[P, Generator[T, None, None]]) -> Callable[P, _GeneratorContextManager[T]]:
    """Make a context manager of a generator, as :func:`contextlib.contextmanager` does, that interrupts cannot break.

    There, an interrupt in the first or last instant leaves the generator waiting for as long as the traceback lives.
    """

    @functools.wraps(function)
    def manager(*args: P.args, **kwargs: P.kwargs) -> _GeneratorContextManager[T]:
        return _Interruptible(function, args, kwargs)

    return manager


@interruptible
def gradients(*, enabled: bool) -> Generator[None, None, None]:
    """Switch gradients on or off in a block, and back even where an interrupt breaks a ``torch.no_grad()`` inside."""
    before = torch.is_grad_enabled()
    try:
        set_gradients(enabled)
        yield
    finally:
        set_gradients(before)


@interruptible
def saving_tensors_themselves() -> Generator[None, None, None]:
    """Keep hooks on saved tensors, those of a checkpoint for instance, from the tensors that nodes save in a block.

    torch's own ``saved_tensors_hooks`` would stay in force for good where an interrupt comes as it begins or ends.
    """

    def itself(tensor: Tensor) -> Tensor:
        return tensor

    def end() -> None:
        hooks = top_saved_tensors_hooks(True)
        if hooks is not None and hooks[0] is itself:
            pop_saved_tensors_hooks()

    try:
        push_saved_tensors_hooks(itself, itself)
        yield
    finally:
        try:
            end()
        finally:
            # Again, in case that it was interrupted.
            end()


_MANAGED = tuple(getattr(_GeneratorContextManager, name).__code__ for name in ("__enter__", "__exit__"))


def close_interrupted(traceback: Any) -> None:
    """End the places where an interrupt left torch between taking a function mode off and putting it on again.

    It would be put on once the traceback dies, when nobody is there to take it off.
    """
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_code in _MANAGED:
            generator = frame.f_locals["self"].gen
            if getattr(generator, "gi_code", None) is POPS_A_MODE:
                generator.close()
        traceback = traceback.tb_next
