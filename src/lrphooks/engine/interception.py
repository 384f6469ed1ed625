"""The function mode of a run, and which runs the current thread is in."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lrphooks.engine import notes
from lrphooks.engine.call import tensors_in
from lrphooks.engine.checks import refuse_reentrant_checkpoint, refuse_transformed
from lrphooks.engine.tensor_hooks import never_empty
from lrphooks.operations import lookup
from lrphooks.torch_private import running_checkpoint, top_saved_tensors_hooks, transforms_active

if TYPE_CHECKING:
    from typing_extensions import Self

    from lrphooks.engine.run import Run
    from lrphooks.engine.session import Session


class Thread(threading.local):
    """What the current thread is explaining: entered contexts and running forward passes, innermost last."""

    def __init__(self) -> None:
        self.sessions: list[Session] = []
        self.runs: list[tuple[Session, Run]] = []


THREAD = Thread()


class Interception(TorchFunctionMode):
    """Brings the torch calls of one run before it, and nothing else."""

    def __init__(self, session: Session, run: Run) -> None:
        super().__init__()
        self.session, self.run = session, run
        self._depths: list[int] = []

    @property
    def depth(self) -> int:
        """How many modules of the run were running when the mode was entered."""
        return self._depths[-1]

    def __enter__(self) -> Self:
        # Again, where a checkpoint runs its part after the with block.
        self.session.hooks.__enter__()
        THREAD.runs.append((self.session, self.run))
        self._depths.append(len(self.run.frames))
        TorchFunctionMode.__enter__(self)
        return self

    def __exit__(self, *exception: object) -> None:
        TorchFunctionMode.__exit__(self, *exception)
        del self.run.frames[self._depths.pop() :]
        THREAD.runs.pop()
        if all(run is not self.run for _, run in THREAD.runs):
            self.run.rest()
        self.session.hooks.__exit__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = lookup(func)
        if operation.kind == "passive":
            if operation.name == "register_hook":
                return never_empty(func, args, kwargs or {})
            return func(*args, **(kwargs or {}))
        if not torch.is_grad_enabled():
            refuse_reentrant_checkpoint()
            return func(*args, **(kwargs or {}))
        if transforms_active():
            moves = operation.kind in ("shape", "split")
            refuse_transformed(tensors_in((args, kwargs or {})), self.run.carries, moves=moves)
        if top_saved_tensors_hooks(True) is not None:
            notice_checkpoint(self.run)
            keep_facts(self.run, tensors_in((args, kwargs or {})))
        return self.run.execute(operation, func, args, kwargs or {})


class Again:
    """What a checkpoint runs again, under the rules and inside of the modules that it ran in at first.

    A checkpoint does so in a backward pass: maybe after the with block, in another thread, and more than once.
    """

    def __init__(self, function: Callable[..., None], session: Session, run: Run) -> None:
        self._function, self._session, self._run = function, session, run
        self._state: tuple[Any, ...] = (tuple(run.frames), run.plan, run.cache, run.unrolled)

    def __call__(self, *args: Any) -> None:
        run = self._run
        for tensor in tensors_in(args):
            if notes.read(tensor, run) is None and (facts := run.provenance.facts(tensor)):
                notes.write(tensor, run, **facts)
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
        with ExitStack() as stack:
            for session in self._sessions:
                if session not in THREAD.sessions:
                    stack.enter_context(session.hooks)
                    THREAD.sessions.append(session)
                    stack.callback(THREAD.sessions.remove, session)
            self._function(*args)


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
        note = notes.read(tensor, run) if tensor.grad_fn is not None else None
        if note is not None and (note.nonnegative or note.offset or note.constant):
            facts = {"nonnegative": note.nonnegative, "offset": note.offset, "constant": note.constant}
            run.provenance.keep_facts(tensor, facts)
