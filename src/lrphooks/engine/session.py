"""The context: hooks on a model's modules while a ``with`` block lasts, and nothing left of them after."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import sys
from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from lrphooks.engine import containers
from lrphooks.engine.cache import WeightCache
from lrphooks.engine.errors import LRPError
from lrphooks.engine.interception import THREAD
from lrphooks.engine.plan import Plan
from lrphooks.engine.run import Frame, Run

if TYPE_CHECKING:
    from lrphooks.composite import Composite


class Session(AbstractContextManager["Composite"]):
    """One use of a composite on a model: ``with composite.context(model): ...``."""

    def __init__(self, composite: Composite, model: nn.Module) -> None:
        self._composite = composite
        self._model = model
        self._stack = ExitStack()
        self._entered = False
        # Contexts belong to the thread that entered them, so this needs no lock.
        self._running_modes: list[AbstractContextManager[Any]] = []
        self._plan: Plan | None = None

    def __enter__(self) -> Composite:
        if self._entered:
            raise LRPError("This context was entered before; call composite.context(model) anew for each with block.")
        _check_model(self._model)
        self._plan = Plan(self._composite, self._model)
        self._entered = True
        with ExitStack() as stack:
            for module in self._model.modules():
                # Hooks tell the threads apart, so a model may be explained in one while it serves another.
                pre = self._enter_model if module is self._model else self._enter_module
                post = self._leave_model if module is self._model else self._leave_module
                # First, so that the user's own hooks count as part of the model.
                before = module.register_forward_pre_hook(pre, with_kwargs=True, prepend=module is self._model)
                stack.callback(before.remove)
                after = module.register_forward_hook(post, with_kwargs=True, always_call=True)
                stack.callback(after.remove)
            THREAD.sessions.append(self)
            stack.callback(THREAD.sessions.remove, self)
            self._stack = stack.pop_all()
        return self._composite

    def __exit__(self, *exception: object) -> None:
        # torch runs no hooks after KeyboardInterrupt and its like, so a forward pass may have been left open.
        while self._running_modes:
            self._running_modes.pop().__exit__(None, None, None)
        self._stack.close()

    # --- hooks; a thread may run one in the moment it is removed, hence arguments that may be missing ---

    def _enter_model(self, module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        if not self._rules(module):
            return None
        kwargs = kwargs or {}
        assert self._plan is not None
        if not torch.is_grad_enabled():
            inference = torch.is_inference_mode_enabled()
            raise LRPError(
                f"Gradients are disabled ({'torch.inference_mode' if inference else 'torch.no_grad'}), so there is no "
                "graph for relevance to flow through. Run the model outside of that block, or inside "
                "torch.enable_grad()."
            )
        if THREAD.runs:
            # Part of a model that is being explained: only the rules change, and the outer run goes on.
            swap = _Swap(self, THREAD.runs[-1][1], self._plan, WeightCache(self._model), module)
            self._running_modes.append(swap)
            return None
        run = Run(self, self._plan, WeightCache(self._model))
        args, kwargs = _explain_inputs(run, args, kwargs)
        mode = run.mode()
        mode.__enter__()
        run.frames.append(Frame(module))
        self._running_modes.append(mode)
        return args, kwargs

    def _leave_model(self, module: nn.Module, args: Any, kwargs: Any = None, output: Any = None) -> Any:
        if not self._running_modes or not THREAD.runs or THREAD.runs[-1][0] is not self:
            return None
        run = THREAD.runs[-1][1]
        mode = self._running_modes.pop()
        mode.__exit__(None, None, None)
        if output is None or isinstance(mode, _Swap):
            return None
        return containers.map_tensors(output, run.leave_output, "output", keep=lambda t: not t.requires_grad)

    def _enter_module(self, module: nn.Module, args: Any, kwargs: Any = None) -> Any:
        run = self._running()
        if run is None:
            return None
        with torch._C.DisableTorchFunction():
            if not torch.is_grad_enabled():
                _refuse_reentrant_checkpoint()
            run.frames.append(Frame(module))
            if id(module) in run.plan.passing:
                return run.enter_passing(module, args, kwargs)
        return None

    def _leave_module(self, module: nn.Module, args: Any, kwargs: Any = None, output: Any = None) -> Any:
        run = self._running()
        if run is None or run.frames[-1].module is not module:
            return None
        with torch._C.DisableTorchFunction():
            frame = run.frames.pop()
            if output is not None and frame.passing is not None:
                return run.leave_passing(frame, output)
        return None

    def _rules(self, module: nn.Module) -> bool:
        """Whether this session is the one to explain the model: the innermost of this thread, outside of a run."""
        mine = [session for session in THREAD.sessions if session._model is module]
        if not mine or mine[-1] is not self:
            return False
        return not (THREAD.runs and THREAD.runs[-1][0] is self)

    def _running(self) -> Run | None:
        if THREAD.runs and THREAD.runs[-1][0] is self:
            return THREAD.runs[-1][1]
        return None


class _Swap(AbstractContextManager[None]):
    """Other rules for the part of a run that is inside one module; undone on exit."""

    def __init__(self, session: Session, run: Run, plan: Plan, cache: WeightCache, module: nn.Module) -> None:
        self._run = run
        self._before = (run.plan, run.cache)
        # The outer context's hook on this module may have come first, and its counterpart will not see the end.
        frames = run.frames
        self._depth = len(frames) - (bool(frames) and frames[-1].module is module)
        run.plan, run.cache = plan, cache
        frames.append(Frame(module))
        THREAD.runs.append((session, run))

    def __exit__(self, *exception: object) -> None:
        THREAD.runs.pop()
        self._run.plan, self._run.cache = self._before
        del self._run.frames[self._depth :]


def _explain_inputs(run: Run, args: Any, kwargs: Any) -> tuple[Any, Any]:
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def enter(tensor: Tensor) -> Tensor:
        # A tensor that is given twice stays one tensor.
        if id(tensor) not in found:
            found[id(tensor)] = (tensor, run.enter_input(tensor))
        return found[id(tensor)][1]

    args, kwargs = containers.map_tensors((args, kwargs), enter, "input", keep=lambda t: not t.requires_grad)
    if not found:
        tensors = list(containers.tensors((args, kwargs)))
        integers = [t for t in tensors if not t.is_floating_point()]
        if tensors and len(integers) == len(tensors):
            raise LRPError(
                f"The model's inputs are {', '.join(str(t.dtype) for t in tensors)}, through which no relevance can "
                "flow. Convert images with x.float(); for token ids, explain their embeddings (inputs_embeds)."
            )
        raise LRPError(
            "No input of the model requires a gradient, so there would be no x.grad to hold the relevance. Call "
            "x.requires_grad_() on the input before the forward pass."
        )
    return args, kwargs


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a torch.nn.Module to explain, got {model!r} of type {type(model).__name__}.")
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise LRPError(
                f"{where} is a TorchScript module, whose operations cannot be seen. Explain the Python model that it "
                "was made from."
            )
        if module.__class__.__name__ == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            raise LRPError(
                f"{where} was compiled with torch.compile, so its hooks may be ignored. Explain the original "
                "(model._orig_mod)."
            )
        for parameter in module.parameters(recurse=False):
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise LRPError(f"{where} has uninitialized parameters. Run the model once before it is explained.")


def _refuse_reentrant_checkpoint() -> None:
    frame = sys._getframe(2)
    target = CheckpointFunction.forward.__code__
    while frame is not None:
        if frame.f_code is target:
            raise LRPError(
                "The model uses reentrant checkpointing, which runs its forward without a graph, so relevance would "
                "silently be wrong. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        frame = frame.f_back  # type: ignore[assignment]
