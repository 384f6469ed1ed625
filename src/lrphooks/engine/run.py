"""One forward pass of an explained model: its rules, what is known of its tensors, and every call inside it."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType

import torch
from torch import Tensor, nn

from lrphooks.engine import containers, facts, passing, settling
from lrphooks.engine.cache import WeightCache
from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.checks import check_input, nothing_to_explain, refuse_reentrant_checkpoint
from lrphooks.engine.conventions import CONVENTIONS
from lrphooks.engine.cuts import Cuts
from lrphooks.engine.frame import Frame
from lrphooks.engine.handlers.common import Handler
from lrphooks.engine.interception import Interception, checkpoint_around, notice_checkpoint
from lrphooks.engine.nodes import InputNode, ScaleNode
from lrphooks.engine.passes import Passes
from lrphooks.engine.provenance import Provenance
from lrphooks.engine.unmatched import Reports, entry, report
from lrphooks.operations import Operation, expression
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Gradient
from lrphooks.torch_private import (
    OutOfSight,
    any_backward_hooks,
    base_of,
    current_backward_pass,
    has_backward_hooks,
    top_saved_tensors_hooks,
)

if TYPE_CHECKING:
    from lrphooks.engine.observer import Observer
    from lrphooks.engine.plan import Plan
    from lrphooks.engine.session import Block


class Run:
    """The state of one forward pass and of the backward passes over its graph; it lives as long as that graph.

    The graph's nodes hold it, unseen by the garbage collector. So once the forward pass has ended, it must hold nothing
    that holds a tensor of the graph: both would live for ever.
    """

    def __init__(
        self,
        session: Block,
        plan: Plan,
        cache: WeightCache,
        observer: ReferenceType[Observer] | None = None,
        *,
        parameters: bool = False,
    ) -> None:
        self.session = session
        self._observer = observer
        self.plan = plan
        self.cache = cache
        self.passes = Passes(parameters=parameters, times_input=plan.composite.attribution == "relevance")
        #: Whether relevance itself may have to travel, so that layers keep a way for it.
        self.delivers = plan.delivers
        self.frames: list[Frame] = []
        #: Ends the forward pass, while it runs, and returns the output as the user is to see it.
        self.end: Callable[[Any], Any] | None = None
        #: The recurrent operation whose cells are running.
        self.unrolled = ""
        #: The layers that took a rule for first layers, by its entry.
        self.claimed: dict[int, Any] = {}
        self.provenance = Provenance()
        self.reports = Reports()
        self.cuts = Cuts()
        self._shields: dict[int, tuple[Tensor, Tensor]] = {}
        #: What is known of values that hooks wrap, where modules have any.
        self.remembered = facts.Remembered() if any(map(has_backward_hooks, plan.modules)) else None
        #: The checkpoint around the whole model, if there is one.
        self.inside_checkpoint = checkpoint_around()

    @property
    def observer(self) -> Observer | None:
        """Who looks on, as long as its maker holds it."""
        return None if self._observer is None else self._observer()

    def rest(self) -> None:
        """Let go of what the forward pass alone needs."""
        self._shields.clear()
        if self.remembered is not None:
            self.remembered = facts.Remembered()

    # --- the boundary ---

    def enter_inputs(self, args: Any, kwargs: Any) -> tuple[Any, Any]:
        """Return the model's arguments with the explained inputs as the model is to see them."""
        found: dict[int, tuple[Tensor, Tensor]] = {}

        def enter(tensor: Tensor) -> Tensor:
            # A tensor that is given twice stays one tensor.
            if id(tensor) not in found:
                found[id(tensor)] = (tensor, self._enter_input(tensor))
            return found[id(tensor)][1]

        args, kwargs = containers.map_tensors((args, kwargs), enter, "input", keep=lambda t: not t.requires_grad)
        if found:
            return args, kwargs
        raise nothing_to_explain(args, kwargs)

    def _enter_input(self, x: Tensor) -> Tensor:
        """Return the explained input as the model is to see it."""
        check_input(x, self.cache.owned)
        inner, link = InputNode.apply(self.passes, x)
        self.provenance.begin(inner)
        facts.write(inner, self, fresh=True, link=lambda: link)
        if self.observer is not None:
            self.observer.explained(self, inner)
        return inner  # type: ignore[no-any-return]

    def tell(self, values: Any) -> None:
        """Tell of operations without a rule that all tensors of some values come from."""
        self.reports.end((t for t in containers.tensors(values) if t.requires_grad), self.provenance.reaches)

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        """Begin a module; return its arguments where they change."""
        if not torch.is_grad_enabled():
            refuse_reentrant_checkpoint()
        elif top_saved_tensors_hooks(True) is not None:
            notice_checkpoint(self)
        frames = self.frames
        hooked = has_backward_hooks(module) or (bool(frames) and frames[-1].hooked)
        frames.append(Frame(module, hooked=hooked))
        if self._observer is not None or self.plan.passing:
            with OutOfSight():
                if self.observer is not None and self.watched:
                    self.observer.entered(frames[-1], self.plan.path_of(module))
                if id(module) in self.plan.passing:
                    args, kwargs, frames[-1].passing = passing.enter(self, module, args, kwargs)
        return args, kwargs

    def leave(self, module: nn.Module, output: Any) -> Any:
        """End a module, also one that raised (without output); return its output as others are to see it."""
        if not self.frames or self.frames[-1].module is not module:
            return output
        frame = self.frames.pop()
        if output is None or (frame.passing is None and (self._observer is None or not self.watched)):
            return output
        with OutOfSight():
            if frame.passing is not None:
                output = settling.settled(self, output) if isinstance(output, Tensor) else output
                output = passing.passed(self, frame.passing, output, self.plan.name_of(module))
            if self.watched:
                assert self.observer is not None
                self.observer.left(self, module, output)
        return output

    @property
    def parameters(self) -> bool:
        """Whether a relevance pass gives parameters a gradient too."""
        return self.passes.parameters

    @property
    def times_input(self) -> bool:
        """Whether a relevance pass ends with relevance, and not with the modified gradient."""
        return self.passes.times_input

    @property
    def linked(self) -> bool:
        """Whether relevance itself may travel, so that layers give a link to their outputs."""
        return self.delivers or self.observer is not None

    @property
    def hooked(self) -> bool:
        """Whether torch passes what a running module returns through a node of its own, for backward hooks."""
        return any_backward_hooks() or (bool(self.frames) and self.frames[-1].hooked)

    def mode(self) -> Interception:
        """Return the mode that brings every torch call of the model before this run."""
        return Interception(self.session, self)

    # --- what is known of tensors ---

    def carries(self, value: Any) -> bool:
        """Whether a value is a tensor through which relevance reaches the explained input."""
        if not isinstance(value, Tensor) or not value.requires_grad or value.is_leaf:
            return False
        note = facts.read(value, self)
        return not self._constant_kind(value, note)

    def _constant_kind(self, tensor: Tensor, note: facts.Facts | None) -> facts.Constant:
        """Return what kind of constant a tensor that is no leaf is, empty if it carries relevance."""
        if note is not None:
            return note.constant
        return "" if self.provenance.leads(tensor) else "parameter"

    def made_of_parameters(self, tensor: Tensor) -> bool:
        """Whether the tensor is a parameter or was made of parameters alone."""
        if isinstance(tensor, nn.Parameter) or isinstance(base_of(tensor), nn.Parameter):
            return True
        return self._constant_kind(tensor, facts.read(tensor, self)) == "parameter"

    def holds(self, tensor: Tensor) -> bool:
        """Whether the tensor is a parameter or a buffer of the model, or was made of such, frozen or not."""
        if isinstance(tensor, nn.Parameter) or not self.cache.owned.isdisjoint((id(tensor), id(base_of(tensor)))):
            return True
        if tensor.requires_grad:
            return self.made_of_parameters(tensor)
        known = facts.read(tensor, self)
        return known is not None and known.constant == "parameter"

    def shield(self, tensor: Tensor) -> Tensor:
        """Return a constant as operations see it: it receives nothing in a relevance pass, unless asked a parameter."""
        kept = self._shields.get(id(tensor))
        if kept is not None and kept[0] is tensor:
            return kept[1]
        learned = self.made_of_parameters(tensor)
        shielded: Tensor = ScaleNode.apply(self.passes, float(self.parameters and learned), tensor)
        facts.write(shielded, self, constant="parameter" if learned else "stopped")
        if tensor.is_leaf:
            self._shields[id(tensor)] = (tensor, shielded)
        return shielded

    def shielded(self, call: Call) -> Call:
        """Return the call with all its constants shielded."""
        operands = tensors_in((call.args, call.kwargs))
        return call.replaced({id(t): self.shield(t) for t in operands if t.requires_grad and not self.carries(t)})

    # --- rules ---

    @property
    def looked_on(self) -> bool:
        """Whether calls may have to be told of that are nothing to rules."""
        return self._observer is not None or self.remembered is not None or bool(self.cuts.held)

    @property
    def watched(self) -> bool:
        """Whether there is an observer to tell; what a checkpoint runs again was told before."""
        return self._observer is not None and self.observer is not None and current_backward_pass() == -1

    def observed(self, call: Call, rule: Rule, handler: Handler) -> Any:
        """Run a call by its handler, with the observer looking on."""
        if self._observer is not None and self.watched:
            assert self.observer is not None
            return self.observer.operation(self, call, rule, handler)
        return handler(self, call, rule)

    def unmatched(self, call: Call, reason: str) -> None:
        """Report an operation without a rule as the composite asks for: an error, a warning, or nothing."""
        name = call.operation.name
        report(self, f"operation {name}", reason, entry(expression(name)), [tuple(t.shape) for t in call.dependent])

    def name_of_running(self) -> str:
        """Return the module that is running as messages name it."""
        return self.plan.name_of(self.frames[-1].module) if self.frames else "the model"

    def rule_of(self, operation: Operation) -> Rule:
        """Return the rule of an operation other than a linear layer: the composite's, or by convention."""
        rule = self.plan.operation_rule(operation, self.frames)
        return rule or (CONVENTIONS[operation.kind] if self.times_input else Gradient())

    def rule(self, call: Call) -> Rule:
        """Return the rule that a call follows."""
        if call.rule is None:
            call.rule = self.rule_of(call.operation)
        return call.rule
