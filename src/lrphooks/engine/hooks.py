"""What sees the calls of a model's modules while a block needs them, and how it is taken off again.

torch asks each module, before its hooks, whether another function is to run in place of its call, as one that
``module.compile()`` makes. That is where a block is asked. Unlike a hook it adds no frame to Python's stack, so that
models may be nested as deeply as without it; it is one entry of one dict, there or not there at any instant; and torch
leaves it out where a module is copied or saved.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

from torch import nn

from lrphooks.engine import boundary, contexts
from lrphooks.engine.contexts import Context
from lrphooks.engine.interception import THREAD
from lrphooks.torch_private import (
    CALL_SLOT,
    any_backward_hooks,
    call_of_module,
    call_with_hooks,
    current_backward_pass,
    forward_hooks,
    has_backward_hooks,
    is_call_of_forward,
    modules_of,
)

#: Held while anything is attached or detached; its thread may take it again, since a context may end at any instant.
_LOCK = threading.RLock()


class Hooks:
    """The calls of a block's model, which come before it as long as anything needs them.

    That is the with block, or a checkpoint after it. Contexts tell the threads apart, so a model may be explained in
    one while it serves another. Both ways may be interrupted anywhere and done again.
    """

    def __init__(self, block: Context, model: nn.Module) -> None:
        # Not held: the block holds this, and the model would wait for the garbage collector.
        self._block, self._model = weakref.ref(block), model
        self._modules: list[nn.Module] = []
        self._users: list[tuple[int, object]] = []

    def attach(self, user: object) -> None:
        """Have the modules' calls come before the block, for one user more."""
        block = self._block()
        assert block is not None
        with _LOCK:
            self._users.append((threading.get_ident(), user))
            self._modules = list(dict.fromkeys([*self._modules, *(module for _, module in modules_of(self._model))]))
            for module in self._modules:
                calls = calls_of(module) or Calls(module)
                calls.blocks[block] = module is self._model
                vars(module)[CALL_SLOT] = calls.call

    def detach(self, user: object) -> None:
        """Let the modules go, unless there is another user."""
        with _LOCK:
            self._users[:] = [entry for entry in self._users if entry[1] is not user]
            if not self._users:
                self._detach()

    def heal(self) -> bool:
        """Let the modules go where users that an interrupt left are all there is; return whether that was so."""
        with _LOCK:
            block = self._block()
            if (block is None or not block.open) and current_backward_pass() == -1:
                # Checkpoints run in backward passes, and none is running in this thread.
                here = threading.get_ident()
                self._users[:] = [entry for entry in self._users if entry[0] != here]
            if not self._users:
                self._detach()
            return not self._users

    def _detach(self) -> None:
        for module in self._modules:
            calls = calls_of(module)
            if calls is not None:
                calls.remove(self._block())
        self._modules = []


class Calls:
    """The calls of one module, for all blocks that see them.

    blocks: those blocks, in the order in which they came, and whether the module is the whole model of each.
    """

    __slots__ = ("blocks", "module")

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.blocks: dict[Context, bool] = {}

    def remove(self, block: Context | None) -> None:
        """Forget a block, and leave the module with the last one."""
        if block is not None:
            self.blocks.pop(block, None)
        if self.blocks:
            return
        for key in [key for key, hook in forward_hooks(self.module).items() if isinstance(hook, _Leave)]:
            forward_hooks(self.module).pop(key, None)
        if calls_of(self.module) is self:
            vars(self.module).pop(CALL_SLOT, None)

    def call(self, /, *args: Any, **kwargs: Any) -> Any:
        """Run the module, as a part of a forward pass that is explained if it is one."""
        module, runs = self.module, THREAD.runs
        if True in self.blocks.values():
            block = chosen(self)
            if block is not None:
                return block.explain(module, args, kwargs)
        if not runs or runs[-1][0] not in self.blocks:
            return self._outside(args, kwargs)(*args, **kwargs)
        run = runs[-1][1]
        frames, depth = run.frames, len(run.frames)
        try:
            args, kwargs = boundary.enter(run, module, args, kwargs)
            output = forward_of(module)(*args, **kwargs)
            return boundary.leave(run, module, output) if len(frames) > depth else output
        finally:
            del frames[depth:]

    def _outside(self, args: Any, kwargs: Any) -> Callable[..., Any]:
        """Return the plain call of the module, which is no part of a forward pass that is explained."""
        if not self.blocks:
            self.remove(None)
        for block in tuple(self.blocks):
            if not block.open:
                block.hooks.heal()
            elif not THREAD.runs:
                block.check_outside(self.module, args, kwargs)
        caller = sys._getframe(2)
        if caller.f_code is call_of_module.__code__ and caller.f_locals["self"] is not self.module:
            # Its attributes were copied one by one to another module, as nn.DataParallel does.
            return call_with_hooks(caller.f_locals["self"])
        return forward_of(self.module)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy that took it along, by a way of its own, is no model of any block, and rid of it when it is called.
        return Calls, (self.module,)


class _Leave:
    """A forward hook that ends a module's part where torch puts a node of its own behind it, for backward hooks."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        if calls_of(module) is None:
            # A copy of a module took it along.
            for key in [key for key, hook in forward_hooks(module).items() if hook is self]:
                forward_hooks(module).pop(key, None)
            return None
        run = THREAD.runs[-1][1] if THREAD.runs else None
        if run is None or not run.frames or run.frames[-1].module is not module:
            return None
        whole = len(run.frames) == 1 and THREAD.runs[-1][0].model is module
        return run.end(output) if whole and run.end is not None else boundary.leave(run, module, output)


def calls_of(module: nn.Module) -> Calls | None:
    """Return what sees the calls of a module, if anything does."""
    found = getattr(vars(module).get(CALL_SLOT), "__self__", None)
    return found if isinstance(found, Calls) and found.module is module else None


def forward_of(module: nn.Module) -> Callable[..., Any]:
    """Return what a module's call comes to: its forward itself where there are no hooks, which saves a frame or two."""
    backward = has_backward_hooks(module) or any_backward_hooks()
    if backward and THREAD.runs and not any(isinstance(hook, _Leave) for hook in forward_hooks(module).values()):
        module.register_forward_hook(_Leave())
    return module.forward if is_call_of_forward(module) else call_with_hooks(module)


def chosen(calls: Calls) -> Context | None:
    """Return the block under which a whole model is to run now, or None if none holds here, or it runs already."""
    module, runs, entered = calls.module, THREAD.runs, THREAD.sessions
    blocks = [block for block in entered if calls.blocks.get(block)]
    if not blocks:
        return None
    while runs and current_backward_pass() == -1:
        model = runs[-1][0].model
        if _calls_of(model) > (model is module):
            break
        # It is not running: an interrupt left it.
        runs[-1][0].abandon()
    block = contexts.innermost(blocks)
    outer = runs[-1][0] if runs else None
    if outer is block:
        # A model that calls itself: the inner call is a part like any other.
        return None
    if outer in entered[: entered.index(block)] and contexts.innermost([outer, block]) is outer:
        # The block is one of a generator that waits, while another one explains the model around this one.
        return None
    for other in blocks:
        other.asked = True
    return block


def inside_another(model: nn.Module) -> bool:
    """Whether the current thread is in a call of a module that has nothing to do with a model but layers in common."""
    return any(
        module not in model.modules() and model not in module.modules() for module in dict.fromkeys(_running_modules())
    )


def _calls_of(module: nn.Module) -> int:
    """Return how many calls of a module the current thread is in."""
    return sum(running is module for running in _running_modules())


def _running_modules() -> Iterator[nn.Module]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        # Of the two frames of a call, the one that is always there.
        if frame.f_code is call_of_module.__code__:
            yield frame.f_locals["self"]
        frame = frame.f_back
