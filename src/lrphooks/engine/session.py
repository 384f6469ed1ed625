"""The context: a model's calls come before a composite while a ``with`` block lasts, and nothing is left after."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import warnings
import weakref
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from lrphooks.engine import boundary, containers, contexts
from lrphooks.engine.cache import WeightCache, WeightStore
from lrphooks.engine.checks import check_gradients_enabled, check_model, refuse_transformed
from lrphooks.engine.eager import EAGER
from lrphooks.engine.ending import Ending, close_interrupted
from lrphooks.engine.errors import LRPError
from lrphooks.engine.frame import Frame
from lrphooks.engine.hooks import Hooks, forward_of, inside_another
from lrphooks.engine.interception import THREAD, Interception, checkpoint_around, take_off
from lrphooks.engine.plan import Plan
from lrphooks.engine.provenance import Given
from lrphooks.engine.run import Run
from lrphooks.torch_private import current_backward_pass, set_gradients

if TYPE_CHECKING:
    from lrphooks.engine.observer import Observer
    from lrphooks.entries import Entries


class Block(contexts.Context):
    """The with block of a session, and the forward passes of its model in it.

    ``once`` tells that there will be one forward pass, so that nothing needs to be kept ready for the next;
    ``parameters`` that parameters receive gradients in relevance passes too.
    """

    def __init__(
        self,
        composite: Entries,
        model: nn.Module,
        observer: Observer | None = None,
        *,
        once: bool = False,
        parameters: bool = False,
    ) -> None:
        self.composite = composite
        self.model = model
        self.hooks = Hooks(self, model)
        self.plan: Plan | None = None
        #: Whether the block was entered, and did not end yet.
        self.entered = self.open = False
        #: The calls that the block was entered in (see :func:`contexts.innermost`).
        self.calls: frozenset[contexts.Call] = frozenset()
        # Not held: the graph holds the block, and must not hold what knows tensors of the graph.
        self._observer = None if observer is None else weakref.ref(observer)
        self._once = once
        self._parameters = parameters
        self.weights = WeightStore(nn.Module())
        #: Whether a forward pass of the model was asked for.
        self.asked = False
        self._given = Given()
        #: What lives as long as the block.
        self._life: weakref.ref[Any] | None = None

    def enter(self, life: Any) -> None:
        """Begin the block, which is over when ``life`` dies at the latest."""
        check_model(self.model)
        self.plan = Plan(self.composite, self.model)
        self.entered = self.open = True
        self.calls = contexts.calls(above=2)
        self.weights = WeightStore(self.model, once=self._once)
        self._life = weakref.ref(life, lambda _: self.close())
        EAGER.add(self)
        self.hooks.attach(self)
        contexts.enter(self)

    def __exit__(self, kind: type[BaseException] | None, _: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            close_interrupted(trace)
        unused = self.open and not self.asked and kind is None
        self.close()
        if unused:
            warnings.warn(
                f"A context on a model ({type(self.model).__name__}) ended without a forward pass of it, so that "
                "nothing was explained. Call the model itself inside the block, model(x), in the thread or task that "
                "entered it; to explain a part of it, open the context on that part.",
                stacklevel=2,
            )

    def close(self) -> None:
        """End the block, from any thread; whatever was interrupted, it can be done again."""
        self.open = False
        contexts.leave(self)
        self.abandon()
        self.hooks.detach(self)
        EAGER.remove(self)
        self.weights.clear()
        self._life = None

    def abandon(self) -> None:
        """Take off what an interrupt left of forward passes in this thread."""
        THREAD.runs[:] = [entry for entry in THREAD.runs if entry[0] is not self]
        take_off(lambda mode: mode.session is self)

    # --- calls of the model's modules ---

    def explain(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run the whole model, as a forward pass that is explained."""
        check_gradients_enabled()
        refuse_transformed(containers.tensors((args, kwargs)))
        if THREAD.runs:
            return self._swap(module, args, kwargs)
        assert self.plan is not None
        take_off(lambda _: True)
        run = Run(
            self.plan,
            WeightCache(self.weights),
            partial(Interception, self),
            self._observer,
            inside_checkpoint=checkpoint_around(),
            parameters=self._parameters,
        )
        # Contexts on parts of the model may need what the layers above do not.
        run.delivers = any(block.plan is not None and block.plan.delivers for block in THREAD.sessions)
        args, kwargs = boundary.enter_inputs(run, args, kwargs)
        mode = Interception(self, run)
        try:
            mode.__enter__()
            args, kwargs = boundary.enter(run, module, args, kwargs)
            run.end = partial(self._end, module, mode)
            output = forward_of(module)(*args, **kwargs)
            return run.end(output) if run.frames else output
        except BaseException:
            # An interrupt at the end of a torch.no_grad() inside leaves it on.
            set_gradients(True)
            raise
        finally:
            run.end = None
            if mode.entered:
                mode.leave()
            run.cuts.clear()
            run.reports.clear()

    def _end(self, module: nn.Module, mode: Interception, output: Any) -> Any:
        """End the forward pass; return the output as the user is to see it."""
        run = mode.run
        output = boundary.leave(run, module, output)
        mode.leave()
        if self not in THREAD.sessions:
            raise LRPError(
                "The context ended while its model was running, in another thread or task, so a part of the forward "
                "pass had no rules. Let the block end after the model returned."
            )
        return boundary.leave_outputs(run, output)

    def _swap(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Run a part of a model that is being explained: only the rules change, and the outer run goes on."""
        assert self.plan is not None
        runs, run = THREAD.runs, THREAD.runs[-1][1]
        before, depth, number = (run.plan, run.cache), len(run.frames), len(runs)
        try:
            runs.append((self, run))
            run.plan, run.cache = self.plan, WeightCache(self.weights)
            run.frames.append(Frame(module, hooked=bool(run.frames) and run.frames[-1].hooked))
            return forward_of(module)(*args, **kwargs)
        finally:
            del runs[number:]
            run.plan, run.cache = before
            del run.frames[depth:]

    def check_outside(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """Raise an error if a layer of the model runs past the call of the model, where it would have no rule."""
        if self.plan is None or not self.plan.rules(module) or not torch.is_grad_enabled():
            return
        # In a backward pass, a checkpoint runs again what was no part of a forward pass before.
        if current_backward_pass() != -1 or self not in contexts.entered():
            return
        if not any(map(self._given.leads, containers.tensors((args, kwargs)))) or inside_another(self.model):
            return
        self.asked = True
        raise LRPError(
            f"{self.plan.name_of(module)} was called inside a context on the whole model ({type(self.model).__name__}) "
            "but past the call of the model, so it would have the plain gradient in place of its rule. Usual causes: "
            "model.forward(x), a method such as forward_features or get_image_features, or parts called one by one. "
            "Call the model itself, model(x); or open the context on the part that is called, or on a torch.nn.Module "
            "of your own that calls the parts. What is not to be explained belongs outside the block, or into "
            "torch.no_grad()."
        )


class Session(AbstractContextManager[Any]):
    """One use of a composite on a model: ``with composite.context(model): ...``.

    What a with statement holds of it ends the block when it dies; what sees the model's modules holds the block alone.
    """

    #: What a with statement holds until its block is over, if one was begun.
    ending: weakref.ref[Any] | None = None

    def __init__(
        self,
        composite: Entries,
        model: nn.Module,
        observer: Observer | None = None,
        *,
        once: bool = False,
        parameters: bool = False,
    ) -> None:
        self.block = Block(composite, model, observer, once=once, parameters=parameters)

    def __enter__(self) -> Entries:
        block = self.block
        if block.entered:
            raise LRPError("This context was entered before; call composite.context(model) anew for each with block.")
        try:
            life = None if self.ending is None else self.ending()
            block.enter(self if life is None else life)
        except BaseException:
            block.close()
            raise
        return block.composite

    __exit__ = Ending(Block.__exit__, lambda session: session.block)

    @property
    def _weights(self) -> WeightStore:
        return self.block.weights
