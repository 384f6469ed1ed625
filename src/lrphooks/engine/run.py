"""One forward pass of an explained model: its rules, what is known of its tensors, and every call inside it."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType

from torch import Tensor, nn

from lrphooks.engine import containers, facts
from lrphooks.engine.cache import WeightCache
from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.conventions import CONVENTIONS
from lrphooks.engine.frame import Frame
from lrphooks.engine.nodes import ScaleNode
from lrphooks.engine.passes import Passes
from lrphooks.engine.provenance import Provenance
from lrphooks.engine.reports import Cuts, Reports
from lrphooks.operations import Operation
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Gradient
from lrphooks.torch_private import any_backward_hooks, base_of, current_backward_pass, has_backward_hooks

if TYPE_CHECKING:
    from lrphooks.engine.observer import Observer
    from lrphooks.engine.plan import Plan


class Run:
    """The state of one forward pass and of the backward passes over its graph; it lives as long as that graph.

    The graph's nodes hold it, unseen by the garbage collector. So once the forward pass has ended, it must hold nothing
    that holds a tensor of the graph: both would live for ever.
    """

    def __init__(
        self,
        plan: Plan,
        cache: WeightCache,
        mode: Callable[[Run], AbstractContextManager[Any]],
        observer: ReferenceType[Observer] | None = None,
        *,
        inside_checkpoint: Callable[[], Any] = lambda: None,
        parameters: bool = False,
    ) -> None:
        self._mode = mode
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
        self.inside_checkpoint = inside_checkpoint

    @property
    def observer(self) -> Observer | None:
        """Who looks on, as long as its maker holds it."""
        return None if self._observer is None else self._observer()

    def rest(self) -> None:
        """Let go of what the forward pass alone needs."""
        self._shields.clear()
        if self.remembered is not None:
            self.remembered = facts.Remembered()

    def tell(self, values: Any) -> None:
        """Tell of operations without a rule that all tensors of some values come from."""
        self.reports.end((t for t in containers.tensors(values) if t.requires_grad), self.provenance.reaches)

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

    def mode(self) -> AbstractContextManager[Any]:
        """Return the mode that brings every torch call of the model before this run."""
        return self._mode(self)

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
    def looked_at(self) -> bool:
        """Whether there was an observer when the run began."""
        return self._observer is not None

    @property
    def looked_on(self) -> bool:
        """Whether calls may have to be told of that are nothing to rules."""
        return self._observer is not None or self.remembered is not None or bool(self.cuts.held)

    @property
    def watched(self) -> bool:
        """Whether there is an observer to tell; what a checkpoint runs again was told before."""
        return self._observer is not None and self.observer is not None and current_backward_pass() == -1

    def observed(self, call: Call, rule: Rule, handler: Callable[[Run, Call, Rule], Any]) -> Any:
        """Run a call by its handler, with the observer looking on."""
        if self._observer is not None and self.watched:
            assert self.observer is not None
            return self.observer.operation(self, call, rule, handler)
        return handler(self, call, rule)

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
