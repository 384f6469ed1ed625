"""The function mode of a run, and which runs the current thread is in."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lrphooks.engine import contexts, cuts, facts
from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.checks import refuse_reentrant_checkpoint, refuse_transformed
from lrphooks.engine.contexts import Context
from lrphooks.engine.cuts import has_values
from lrphooks.engine.ending import Ending, close_interrupted
from lrphooks.engine.epsilon_node import keep
from lrphooks.engine.execution import execute, runs_plainly
from lrphooks.engine.reporting import Place
from lrphooks.engine.tensor_hooks import never_empty
from lrphooks.operations import Operation, lookup, names
from lrphooks.torch_private import (
    current_backward_pass,
    function_modes,
    running_checkpoint,
    top_saved_tensors_hooks,
    transforms_active,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from lrphooks.engine.run import Run


class Thread(threading.local):
    """What is explained here: the running forward passes of the current thread, innermost last.

    again: the contexts whose forward pass a checkpoint runs again in this thread, though they ended or are of another.
    """

    def __init__(self) -> None:
        self.runs: list[tuple[Context, Run]] = []
        self.again: list[Context] = []

    @property
    def sessions(self) -> list[Context]:
        """The contexts that hold here, in the order in which they were entered."""
        return contexts.entered() + self.again


THREAD = Thread()


def take_off(unwanted: Callable[[Interception], bool]) -> None:
    """Take modes off the stack of the current thread, wherever they are on it."""
    modes = function_modes()
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
    while len(modes := function_modes()) > depth:
        TorchFunctionMode.__exit__(modes[-1], None, None, None)


class Interception(TorchFunctionMode):
    """Brings the torch calls of one run before it, and nothing else."""

    def __init__(self, session: Context, run: Run) -> None:
        super().__init__()
        self.session, self.run = session, run
        #: How many modules of the run were running each time that the mode was entered and not left yet.
        self._depths: list[int] = []
        #: What a with statement holds until its block is over, where there is one.
        self.ending: weakref.ref[Any] | None = None
        self._life: weakref.ref[Any] | None = None

    @property
    def entered(self) -> bool:
        """Whether the mode was entered and not left yet."""
        return bool(self._depths)

    def __enter__(self) -> Self:
        life = None if self.ending is None else self.ending()
        try:
            self._depths.append(len(self.run.frames))
            THREAD.runs.append((self.session, self.run))
            if not self.session.open or current_backward_pass() != -1:
                # A checkpoint runs its part again, maybe after the with block.
                self.session.hooks.attach(self)
            if life is not None:
                self._life = weakref.ref(life, lambda _: self.leave())
            TorchFunctionMode.__enter__(self)
        except BaseException:
            self.leave()
            raise
        return self

    def leave(self, kind: object = None, _: object = None, trace: TracebackType | None = None) -> None:
        """Take the mode off, if it is on; whatever was interrupted, it can be done again."""
        if kind is not None:
            close_interrupted(trace)
        take_off(lambda mode: mode is self)
        if self._depths:
            del self.run.frames[self._depths[-1] :]
            places = [place for place, (_, run) in enumerate(THREAD.runs) if run is self.run][-1:]
            for place in places:
                del THREAD.runs[place]
            if all(run is not self.run for _, run in THREAD.runs):
                self.run.rest()
            self._depths.pop()
        self.session.hooks.detach(self)
        self._life = None

    __exit__ = Ending(leave, lambda mode: mode)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation, kwargs = lookup(func), kwargs or {}
        if not self._depths:
            # Without a block that it belongs to, it was left by an interrupt.
            return func(*args, **kwargs)
        if operation.kind == "passive":
            return self._passive(operation.name, func, args, kwargs)
        if not torch.is_grad_enabled():
            return self._without_gradients(Call(operation, func, args, kwargs))
        run = self.run
        if transforms_active():
            moves = operation.kind in ("shape", "split")
            refuse_transformed(tensors_in((args, kwargs)), run.carries, moves=moves)
        if top_saved_tensors_hooks(True) is not None:
            notice_checkpoint(run)
            keep_facts(run, tensors_in((args, kwargs)))
        elif (decision := runs_plainly(run, operation, args, kwargs)) is not None:
            out = func(*args, **kwargs)
            if isinstance(out, Tensor) and out is not args[0] and out.grad_fn is not None:
                run.provenance.made(out.grad_fn)
                if decision.positive:
                    facts.write(out, run, nonnegative=True)
                return out
            return self._see(operation, func, args, kwargs, out)
        try:
            out = execute(run, operation, func, args, kwargs)
        except Exception:
            # It may be the first to take what an operation without a rule made.
            run.tell(tensors_in((args, kwargs)))
            raise
        return self._see(operation, func, args, kwargs, out)

    def _see(self, operation: Operation, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
        """Note what a call in sight made, and what is to be said of it."""
        run = self.run
        # Written out for the usual case, since this is for every call.
        if isinstance(out, Tensor) and not (args and out is args[0]):
            if out.grad_fn is not None:
                run.provenance.see_node(out.grad_fn)
            elif has_values(out):
                layer = operation.kind == "linear"
                cuts.without_derivative(run, Call(operation, func, args, kwargs), out, ruled=layer)
        else:
            run.provenance.see(tensors_in((args[:1], out)))
        if run.reports.new:
            run.reports.place(tensors_in((args[0] if out is None and args else out,)))
        if run.cuts.held:
            cuts.use(run, Call(operation, func, args, kwargs), out)
        return out

    def _without_gradients(self, call: Call) -> Any:
        """Run a call with gradients disabled."""
        refuse_reentrant_checkpoint()
        if call.operation.in_place and call.args:
            with torch.enable_grad():
                keep(self.run, call.args[0])
        out = call.invoke()
        cuts.without_gradients(self.run, call, out)
        return out

    def _passive(self, name: str, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Run a call that hands on no relevance."""
        if name == "register_hook":
            return never_empty(func, args, kwargs)
        if self.run.observer is not None and name in names.TAKE_OUT and self.run.carries(args[0]):
            place = Place.of_running()
            self.run.observer.taken_out(f"{name} in {self.run.name_of_running()}{f' ({place})' if place else ''}")
        return func(*args, **kwargs)


class Again:
    """What a checkpoint runs again, under the rules and inside of the modules that it ran in at first.

    A checkpoint does so in a backward pass: maybe after the with block, in another thread, and more than once.
    """

    def __init__(self, function: Callable[..., None], session: Context, run: Run) -> None:
        self._function, self._session, self._run = function, session, run
        self._state: tuple[Any, ...] = (tuple(run.frames), run.plan, run.cache, run.unrolled)

    def __call__(self, *args: Any) -> None:
        run = self._run
        for tensor in tensors_in(args):
            if facts.read(tensor, run) is None and (known := run.provenance.facts(tensor)):
                facts.write(tensor, run, **known)
        before = (run.frames, run.plan, run.cache, run.unrolled)
        frames, run.plan, run.cache, run.unrolled = self._state
        run.frames = list(frames)
        try:
            with Interception(self._session, run):
                self._function(*args)
        finally:
            run.frames, run.plan, run.cache, run.unrolled = before


class WholeAgain:
    """What a checkpoint around whole models runs again: its contexts may have ended, or be of another thread."""

    def __init__(self, function: Callable[..., None]) -> None:
        self._function, self._sessions = function, tuple(THREAD.sessions)

    def __call__(self, *args: Any) -> None:
        before, ended = list(THREAD.again), [block for block in self._sessions if block not in THREAD.sessions]
        try:
            THREAD.again.extend(ended)
            for block in ended:
                block.hooks.attach(self)
            self._function(*args)
        finally:
            THREAD.again[:] = before
            for block in ended:
                block.hooks.detach(self)


def checkpoint_around() -> Callable[[], Any]:
    """Return a weak reference to the checkpoint that a run begins in, if any, which begins another when it runs again.

    The values of that run are what the first one saved; the rest of it goes unused.
    """
    checkpoint = running_checkpoint()
    if checkpoint is None:
        return lambda: None
    if not isinstance(checkpoint.recompute_fn, Again | WholeAgain):
        checkpoint.recompute_fn = WholeAgain(checkpoint.recompute_fn)
    return weakref.ref(checkpoint)


def notice_checkpoint(run: Run) -> None:
    """Have the checkpoint that the model is in, if any, run again under the rules that hold now.

    torch offers no place for that to a mode: ``context_fn`` belongs to whoever calls the checkpoint. So it is done as
    soon as the first module or operation inside of the checkpoint is seen.
    """
    checkpoint = running_checkpoint()
    if checkpoint is None or isinstance(checkpoint.recompute_fn, Again) or checkpoint is run.inside_checkpoint():
        return
    checkpoint.recompute_fn = Again(checkpoint.recompute_fn, THREAD.runs[-1][0], run)


def keep_facts(run: Run, operands: Iterable[Tensor]) -> None:
    """Keep what is known of operands for when a checkpoint runs again, which may be given others in their place."""
    for tensor in operands:
        if tensor.grad_fn is not None and (known := facts.of_values(tensor, run)):
            run.provenance.keep_facts(tensor, known)
