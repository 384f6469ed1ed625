"""The context: hooks on a model's modules while a ``with`` block lasts, and nothing left of them after."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import sys
import threading
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

from torch import nn

from lrphooks.engine import containers
from lrphooks.engine.cache import WeightCache, WeightStore
from lrphooks.engine.checks import check_gradients_enabled, check_model, refuse_transformed
from lrphooks.engine.eager import EAGER
from lrphooks.engine.errors import LRPError
from lrphooks.engine.interception import THREAD, Interception
from lrphooks.engine.leaving import leave_outputs
from lrphooks.engine.plan import Plan
from lrphooks.engine.run import Frame, Run

if TYPE_CHECKING:
    from lrphooks.composite import Composite
    from lrphooks.engine.observer import Observer


class Session(AbstractContextManager["Composite"]):
    """One use of a composite on a model: ``with composite.context(model): ...``.

    ``once`` tells that there will be one forward pass, so that nothing needs to be kept ready for the next;
    ``parameters`` that parameters receive gradients in relevance passes too.
    """

    def __init__(
        self,
        composite: Composite,
        model: nn.Module,
        observer: Observer | None = None,
        *,
        once: bool = False,
        parameters: bool = False,
    ) -> None:
        self._composite = composite
        self._observer = observer
        self._once = once
        self._parameters = parameters
        self._model = model
        self.hooks = Hooks(self, model)
        self._entered = False
        # Contexts belong to the thread that entered them, so this needs no lock.
        self._running: list[Interception | _Swap] = []
        self._plan: Plan | None = None
        self._weights = WeightStore(nn.Module())

    def __enter__(self) -> Composite:
        if self._entered:
            raise LRPError("This context was entered before; call composite.context(model) anew for each with block.")
        check_model(self._model)
        self._plan = Plan(self._composite, self._model)
        self._weights = WeightStore(self._model, once=self._once)
        self._entered = True
        self.hooks.__enter__()
        THREAD.sessions.append(self)
        return self._composite

    def __exit__(self, *exception: object) -> None:
        self._abandon()
        THREAD.sessions.remove(self)
        self._weights.clear()
        self.hooks.__exit__()

    def __reduce__(self) -> tuple[Any, ...]:
        # A model copied or saved inside the block takes its hooks along, but is not the model of this context.
        return _of_a_copy, ()

    # --- hooks; a thread may run one in the moment it is removed, hence arguments that may be missing ---

    def enter_model(self, module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        """Begin a run, or change the rules where the model is a part of one."""
        if self._explains():
            if _calls_of(module) > 1:
                # A model that calls itself: the inner call is a part like any other.
                return self.enter_module(module, args, kwargs)
            self._abandon()
        mine = [session for session in THREAD.sessions if session._model is module]
        if not mine or mine[-1] is not self:
            return None
        assert self._plan is not None
        check_gradients_enabled()
        refuse_transformed(containers.tensors((args, kwargs)))
        if THREAD.runs:
            # Part of a model that is being explained: only the rules change, and the outer run goes on.
            self._running.append(_Swap(self, THREAD.runs[-1][1], self._plan, WeightCache(self._weights), module))
            return None
        run = Run(self, self._plan, WeightCache(self._weights), self._observer, parameters=self._parameters)
        # Contexts on parts of the model may need what the layers above do not.
        run.delivers = any(session._plan is not None and session._plan.delivers for session in THREAD.sessions)
        args, kwargs = run.enter_inputs(args, kwargs or {})
        mode = run.mode()
        mode.__enter__()
        self._running.append(mode)
        return run.enter(module, args, kwargs)

    def leave_model(self, module: nn.Module, args: Any, kwargs: Any = None, output: Any = None) -> Any:
        """End the run, also where the model raised."""
        if not self._explains():
            return None
        run = THREAD.runs[-1][1]
        mode = self._running[-1]
        if any(frame.module is module for frame in run.frames[mode.depth + 1 :]):
            return self.leave_module(module, args, kwargs, output)
        if isinstance(mode, Interception):
            output = run.leave(module, output)
        self._running.pop().__exit__(None, None, None)
        if output is None or isinstance(mode, _Swap):
            return None
        return leave_outputs(run, output)

    def enter_module(self, module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        """Note which module runs."""
        if THREAD.runs and THREAD.runs[-1][0] is self:
            return THREAD.runs[-1][1].enter(module, args, kwargs or {})
        return None

    def leave_module(self, module: nn.Module, args: Any, kwargs: Any = None, output: Any = None) -> Any:
        """Note that the module ended, also where it raised."""
        if THREAD.runs and THREAD.runs[-1][0] is self:
            return THREAD.runs[-1][1].leave(module, output)
        return None

    def _explains(self) -> bool:
        """Whether a forward pass of the model runs in this thread under this session."""
        return bool(self._running) and bool(THREAD.runs) and THREAD.runs[-1][0] is self

    def _abandon(self) -> None:
        """Close the forward passes left open: torch runs no hooks after KeyboardInterrupt and its like."""
        while self._running:
            self._running.pop().__exit__(None, None, None)


class Hooks(AbstractContextManager[None]):
    """The hooks of a session on its model, there while anything needs them: the with block, or a checkpoint after it.

    Hooks tell the threads apart, so a model may be explained in one while it serves another.
    """

    def __init__(self, session: Session, model: nn.Module) -> None:
        self._session, self._model = session, model
        self._lock = threading.Lock()
        self._users = 0
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            with ExitStack() as stack:
                stack.enter_context(EAGER)
                for module in self._model.modules():
                    root, session = module is self._model, self._session
                    enter = session.enter_model if root else session.enter_module
                    leave = session.leave_model if root else session.leave_module
                    # First, so that the user's own hooks count as part of the model.
                    before = module.register_forward_pre_hook(enter, with_kwargs=True, prepend=root)
                    stack.callback(before.remove)
                    after = module.register_forward_hook(leave, with_kwargs=True, always_call=True)
                    stack.callback(after.remove)
                self._stack = stack.pop_all()

    def __exit__(self, *exception: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._stack.close()


class _Swap:
    """Other rules for the part of a run that is inside one module; undone on exit."""

    def __init__(self, session: Session, run: Run, plan: Plan, cache: WeightCache, module: nn.Module) -> None:
        self._run = run
        self._before = (run.plan, run.cache)
        # The outer context's hook on this module may have come first, and its counterpart will not see the end.
        frames = run.frames
        self.depth = len(frames) - (bool(frames) and frames[-1].module is module)
        run.plan, run.cache = plan, cache
        frames.append(Frame(module, hooked=bool(frames) and frames[-1].hooked))
        THREAD.runs.append((session, run))

    def __exit__(self, *exception: object) -> None:
        THREAD.runs.pop()
        self._run.plan, self._run.cache = self._before
        del self._run.frames[self.depth :]


def _calls_of(module: nn.Module) -> int:
    """Return how many calls of a module the current thread is in."""
    count, frame = 0, sys._getframe(1)
    while frame is not None:
        # Of the two frames of a call, the one that is always there.
        count += frame.f_code is nn.Module._wrapped_call_impl.__code__ and frame.f_locals.get("self") is module
        frame = frame.f_back  # type: ignore[assignment]
    return count


def _of_a_copy() -> Session:
    from lrphooks.composite import Composite  # noqa: PLC0415  # composites import this module

    return Session(Composite(), nn.Module())
