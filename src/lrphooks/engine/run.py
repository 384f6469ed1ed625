"""One forward pass of an explained model: its rules, what is known of its tensors, and every call inside it."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType

import torch
from torch import Tensor, nn

from lrphooks.engine import containers, facts, functions, linear, passing, settling
from lrphooks.engine.cache import WeightCache
from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.checks import check_input, nothing_to_explain, refuse_reentrant_checkpoint
from lrphooks.engine.claims import layer_rule, sum_rule
from lrphooks.engine.cuts import Cuts
from lrphooks.engine.epsilon_node import keep
from lrphooks.engine.handlers import CONVENTIONS, HANDLERS, softmax
from lrphooks.engine.handlers.common import Handler, positional, shield_in_place
from lrphooks.engine.handlers.composed import HIGHER_ORDER
from lrphooks.engine.handlers.native import NATIVE, native
from lrphooks.engine.inheritance import inherit
from lrphooks.engine.interception import Interception, checkpoint_around, notice_checkpoint
from lrphooks.engine.nodes import InputNode, Passes, ScaleNode
from lrphooks.engine.operation_node import operation
from lrphooks.engine.passing import Source
from lrphooks.engine.provenance import SEEN, Provenance
from lrphooks.engine.unmatched import Reports, entry, report
from lrphooks.engine.weighted import SUMS, summed_product, weighted_product, weighted_sum, with_bias, with_summand
from lrphooks.layers.linear_map import Summation, along
from lrphooks.operations import Operation, classify, expression
from lrphooks.operations.names import OF_TWO, SHAPED_BY_ANOTHER
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Gradient, Normalize, OperationRule
from lrphooks.torch_private import (
    OutOfSight,
    any_backward_hooks,
    base_of,
    current_backward_pass,
    has_backward_hooks,
    is_view,
    top_saved_tensors_hooks,
)

if TYPE_CHECKING:
    from lrphooks.engine.observer import Observer
    from lrphooks.engine.plan import Plan
    from lrphooks.engine.session import Block


@dataclass(slots=True)
class Frame:
    """One module whose forward is running."""

    module: nn.Module
    served: bool = False
    passing: Source | None = None
    hooked: bool = False


@dataclass(slots=True)
class Found:
    """What is known of the operands of a call.

    dependent, known: those that carry relevance, and what is known of each.
    constants: those with a graph that do not; stopped: whether a rule declared one of them a constant.
    waiting: outputs of layers whose rule is not set yet.
    """

    dependent: list[Tensor] = field(default_factory=list)
    known: list[facts.Facts | None] = field(default_factory=list)
    constants: list[Tensor] = field(default_factory=list)
    waiting: list[Tensor] = field(default_factory=list)
    stopped: bool = False

    @property
    def fresh(self) -> bool:
        """Whether no linear layer is behind any of the operands."""
        return all(known is not None and known.fresh for known in self.known)


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
        self.passes = Passes()
        #: Whether a relevance pass gives parameters a gradient too.
        self.parameters = parameters
        #: Whether relevance itself may have to travel, so that layers keep a way for it.
        self.delivers = plan.delivers
        self.times_input = plan.composite.attribution == "relevance"
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
        inner, link = InputNode.apply(self, x)
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
        with OutOfSight():
            if not torch.is_grad_enabled():
                refuse_reentrant_checkpoint()
            elif top_saved_tensors_hooks(True) is not None:
                notice_checkpoint(self)
            hooked = has_backward_hooks(module)
            self.frames.append(Frame(module, hooked=hooked or (bool(self.frames) and self.frames[-1].hooked)))
            if self.observer is not None and self.watched:
                self.observer.entered(self.frames[-1], self.plan.path_of(module))
            if id(module) in self.plan.passing:
                args, kwargs, self.frames[-1].passing = passing.enter(self, module, args, kwargs)
        return args, kwargs

    def leave(self, module: nn.Module, output: Any) -> Any:
        """End a module, also one that raised (without output); return its output as others are to see it."""
        if not self.frames or self.frames[-1].module is not module:
            return output
        frame = self.frames.pop()
        if output is None or (frame.passing is None and not self.watched):
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
        shielded: Tensor = ScaleNode.apply(self, float(self.parameters and learned), tensor)
        facts.write(shielded, self, constant="parameter" if learned else "stopped")
        if tensor.is_leaf:
            self._shields[id(tensor)] = (tensor, shielded)
        return shielded

    def shielded(self, call: Call) -> Call:
        """Return the call with all its constants shielded."""
        operands = tensors_in((call.args, call.kwargs))
        return call.replaced({id(t): self.shield(t) for t in operands if t.requires_grad and not self.carries(t)})

    # --- every call ---

    def execute(
        self, operation: Operation, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Run one torch call of the model under its rule."""
        # Of x.type_as(y) and its like, the second operand gives a shape or a type alone.
        data = args[:1] if operation.name in SHAPED_BY_ANOTHER else (*args, *kwargs.values()) if kwargs else args
        found = self._survey(data)
        if operation.name in OF_TWO and any(isinstance(v, Tensor) for v in (*args[1:], kwargs.get("other"))):
            operation = classify(OF_TWO[operation.name])
        call = Call(operation, function, args, kwargs, found.dependent)
        if not found.dependent:
            return self._independent(call, found)
        if operation.kind == "composed" and operation.name in NATIVE:
            return native(self, call)
        if (joined := self._joined(call, found)) is not None:
            return joined
        if call.writes_in_place:
            call = self._before_writing(call)
        if found.waiting:
            call = settling.settle(self, call, found.waiting)
            found.known = [facts.read(t, self) for t in call.dependent]
        out = self._under_rule(call, found)
        for known in found.known:
            if known is not None and known.weighted is not None:
                # It holds the factors, and is for a sum that comes next.
                known.weighted = None
        return softmax.recognize(self, operation, args, kwargs, out) if self.plan.softmax_is_ruled else out

    def _under_rule(self, call: Call, found: Found) -> Any:
        """Run a call whose operands are ready, under its rule."""
        kind = call.operation.kind
        if kind == "unknown":
            given = self.plan.operation_rule(call.operation, self.frames)
            own = isinstance(given, OperationRule)
            return self.observed(call, given or Gradient(), operation if own else HANDLERS["unknown"])
        if kind == "linear":
            rule = self.rule(call)
            own = isinstance(rule, OperationRule)
            return self.observed(self.shielded(call), rule, operation) if own else linear.linear(self, call, rule)
        if (written := self._written_out(call, found)) is not None:
            return written
        if found.constants:
            call = call.replaced({id(t): self.shield(t) for t in found.constants})
        rule = self.rule(call)
        out = self.observed(call, rule, operation if isinstance(rule, OperationRule) else HANDLERS[kind])
        inherit(self, call, found.known, rule, out)
        return out

    def _before_writing(self, call: Call) -> Call:
        """Prepare for a call that overwrites an operand, which cannot be exchanged for another."""
        call = positional(call)
        target = call.args[0] if call.args else call.kwargs["input"]
        keep(self, target)
        if target.requires_grad and not target.is_leaf and not self.carries(target):
            # What it was is a constant, and what it becomes is none.
            shield_in_place(self, target)
        return call

    @property
    def watched(self) -> bool:
        """Whether there is an observer to tell; what a checkpoint runs again was told before."""
        return self.observer is not None and current_backward_pass() == -1

    def observed(self, call: Call, rule: Rule, handler: Handler) -> Any:
        """Run a call by its handler, with the observer looking on."""
        if self.watched:
            assert self.observer is not None
            return self.observer.operation(self, call, rule, handler)
        return handler(self, call, rule)

    def _survey(self, data: tuple[Any, ...]) -> Found:
        """Return what is known of the operands of a call."""
        found = Found()
        for tensor in tensors_in(data):
            if not tensor.requires_grad:
                continue
            known = None if tensor.is_leaf else facts.read(tensor, self)
            kind = "parameter" if tensor.is_leaf else self._constant_kind(tensor, known)
            if known is None and not kind:
                node: Any = tensor.grad_fn
                if node.metadata.get(SEEN) is not self.provenance.token:
                    kind = functions.serve(self, tensor)
                    known = facts.read(tensor, self)
            if kind:
                found.constants.append(tensor)
                found.stopped = found.stopped or kind == "stopped"
                continue
            found.dependent.append(tensor)
            found.known.append(known)
            if known is not None and settling.waits(known):
                found.waiting.append(tensor)
        return found

    def _independent(self, call: Call, found: Found) -> Any:
        """Run a call that no relevance comes back through."""
        if call.operation.name in HIGHER_ORDER:
            return HANDLERS["composed"](self, call, Gradient())
        out = call.invoke()
        frozen = not found.constants and any(self.holds(t) for t in tensors_in((call.args, call.kwargs)))
        if found.constants or frozen:
            for tensor in tensors_in((call.args[0] if call.operation.in_place else out,)):
                if frozen or (tensor.requires_grad and not tensor.is_leaf):
                    facts.write(tensor, self, constant="stopped" if found.stopped else "parameter")
        if found.stopped and self.plan.softmax_is_ruled:
            return softmax.recognize(self, call.operation, call.args, call.kwargs, out)
        return out

    def _joined(self, call: Call, found: Found) -> Any:
        """Run what is one with the layer before it, a BatchNorm or a bias, or return None for any other call."""
        if call.operation.kind == "batch norm" and not call.argument(5, "training", False):
            return self._batch_norm(call, found)
        if call.operation.name == "add" and len(found.dependent) == 1:
            return with_bias(self, call, found.known[0])
        return None

    def _written_out(self, call: Call, found: Found) -> Tensor | None:
        """Run a linear layer that the model writes out as a product or a sum, or return None if it is none."""
        kind = call.operation.kind
        if kind in ("product", "added product") and len(found.dependent) == 1:
            product = weighted_product(self, call)
        elif kind == "combination" and len(found.dependent) == 1:
            product = summed_product(self, call, found.known)
        else:
            product = None
        if product is not None:
            named = call if kind != "combination" else Call(classify("matmul"), call.function, call.args, call.kwargs)
            rule = layer_rule(self, named, product.tensors[1], fresh=found.fresh)
            if rule is not None:
                out = linear.execute(self, call, rule, product.map, product.tensors, product.function)
                if product.tensors[2] is None:
                    linear.await_bias(self, out)
                return out
        elif kind == "added product" and (apart := with_summand(self, call)) is not None:
            return apart
        if self.plan.rules_sums and call.operation.name in SUMS and len(call.dependent) > 1:
            rule = sum_rule(self, call)
            addition = None if rule is None else weighted_sum(self, call)
            if addition is not None and rule is not None:
                return self._sum(call, rule, addition)
        return None

    def _sum(self, call: Call, rule: Rule, addition: tuple[Summation, tuple[Tensor, Tensor, None]]) -> Tensor:
        target: Tensor = call.argument(0, "input")
        if not (call.writes_in_place and is_view(target)):
            return linear.execute(self, call, rule, *addition, probed=True)
        # The rule's nodes are not set in place on views, and what it is a view of is to see the sum and its rule.
        out = linear.execute(self, call.out_of_place(), rule, *addition, probed=True)
        return target.copy_(settling.settled(self, out))

    def _batch_norm(self, call: Call, found: Found) -> Any:
        source, known = call.dependent[0], found.known[0]
        layer = None if known is None or known.layer is None or known.layer.merged else known.layer
        linear_map = None if layer is None or len(found.dependent) > 1 else along(layer.map, source.shape, 1)
        rule = self.rule(call)
        if layer is None or linear_map is None or not isinstance(rule, Normalize | Gradient):
            return linear.batch_norm(self, settling.settle(self, call, found.waiting), rule, None)
        return linear.batch_norm(self, call, rule, layer.mapped(linear_map).multiplied())

    def unmatched(self, call: Call, reason: str) -> None:
        """Report an operation without a rule as the composite asks for: an error, a warning, or nothing."""
        name = call.operation.name
        report(self, f"operation {name}", reason, entry(expression(name)), [tuple(t.shape) for t in call.dependent])

    def name_of_running(self) -> str:
        """Return the module that is running as messages name it."""
        return self.plan.name_of(self.frames[-1].module) if self.frames else "the model"

    # --- rules ---

    def rule(self, call: Call) -> Rule:
        """Return the rule that a call follows: the composite's, or by convention."""
        kind = call.operation.kind
        if kind == "linear":
            weight = call.argument(1, "weight")
            known = [facts.read(t, self) for t in call.dependent]
            rule = layer_rule(self, call, weight, fresh=all(each is not None and each.fresh for each in known))
            if rule is None:
                self.unmatched(call, "no entry of the composite gives a rule for this linear layer")
                return Gradient()
            return rule
        if call.rule is None:
            rule = self.plan.operation_rule(call.operation, self.frames)
            call.rule = rule or (CONVENTIONS[kind] if self.times_input else Gradient())
        return call.rule
