"""The function mode of a run, and which runs the current thread is in."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import DeviceContext

from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.checks import refuse_reentrant_checkpoint, refuse_transformed
from lrphooks.engine.cuts import has_values
from lrphooks.engine.provenance import SEEN
from lrphooks.engine.reporting import Place
from lrphooks.operations import lookup, names

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


class Interception(DeviceContext):
    """Brings the torch calls of one run before it, and nothing else.

    It sets no device. It is a DeviceContext because checkpointing enters the innermost one of the forward pass again
    when it recomputes, which is where the rules must hold again; it offers no other place for that.
    """

    def __init__(self, session: Session, run: Run) -> None:
        TorchFunctionMode.__init__(self)
        self.session, self.run = session, run
        self.prev_mode = None
        self._depths: list[int] = []

    @property
    def depth(self) -> int:
        """How many modules of the run were running when the mode was entered."""
        return self._depths[-1]

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # it follows the default, so it is never set
        """The device that factory functions use anyway."""
        return torch.device(torch._C._get_default_device())

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
        self.session.hooks.__exit__()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operation = lookup(func)
        if operation.kind == "passive":
            if self.run.observer is not None and operation.name in names.TAKE_OUT and self.run.carries(args[0]):
                place = Place.of_running()
                where = self.run.name_of_running() + (f" ({place})" if place else "")
                self.run.observer.taken_out(f"{operation.name} in {where}")
            return func(*args, **(kwargs or {}))
        if not torch.is_grad_enabled():
            refuse_reentrant_checkpoint()
            out = func(*args, **(kwargs or {}))
            self.run.cuts.without_gradients(self.run, Call(operation, func, args, kwargs or {}), out)
            return out
        if torch._C._are_functorch_transforms_active():
            moves = operation.kind in ("shape", "split")
            refuse_transformed(tensors_in((args, kwargs or {})), self.run.carries, moves=moves)
        run = self.run
        try:
            out = run.execute(operation, func, args, kwargs or {})
        except Exception:
            # It may be the first to take what an operation without a rule made.
            run.tell(tensors_in((args, kwargs or {})))
            raise
        # Written out for the usual case, since this is for every call.
        if isinstance(out, Tensor) and not (args and out is args[0]):
            node: Any = out.grad_fn
            if node is not None:
                node.metadata[SEEN] = run.provenance.token
            elif has_values(out):
                run.cuts.without_derivative(run, Call(operation, func, args, kwargs or {}), out)
        else:
            run.provenance.see(tensors_in((args[:1], out)))
        if run.reports.new:
            run.reports.place(tensors_in((args[0] if out is None and args else out,)))
        if run.cuts.held:
            run.cuts.use(run, Call(operation, func, args, kwargs or {}), out)
        return out
