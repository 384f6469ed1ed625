"""One forward pass of an explained model: its rules, what is known of its tensors, and every call inside it."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import ReferenceType

import torch
from torch import Tensor, nn

from lrphooks.engine import containers, functions, linear, notes, passing, settling
from lrphooks.engine.cache import WeightCache
from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.checks import check_input, nothing_to_explain, refuse_reentrant_checkpoint
from lrphooks.engine.cuts import Cuts
from lrphooks.engine.epsilon_node import keep
from lrphooks.engine.handlers import CONVENTIONS, HANDLERS, softmax
from lrphooks.engine.handlers.common import Handler
from lrphooks.engine.handlers.composed import HIGHER_ORDER
from lrphooks.engine.handlers.native import NATIVE, native
from lrphooks.engine.interception import Interception, checkpoint_around, notice_checkpoint
from lrphooks.engine.layer_call import behind_hooks
from lrphooks.engine.nodes import InputNode, Passes, ScaleNode
from lrphooks.engine.passing import Source
from lrphooks.engine.provenance import SEEN, Provenance
from lrphooks.engine.serving import serves
from lrphooks.engine.unmatched import Reports, entry, report
from lrphooks.engine.weighted import SUMS, weighted_product, weighted_sum, with_bias
from lrphooks.layers.linear_map import Dense, Summation
from lrphooks.operations import Operation, classify, expression
from lrphooks.operations.names import OF_TWO, SHAPED_BY_ANOTHER
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Gradient, Normalize
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
        self._claimed: dict[Any, tuple[int, str]] = {}
        self.provenance = Provenance()
        self.reports = Reports()
        self.cuts = Cuts()
        self._shields: dict[int, tuple[Tensor, Tensor]] = {}
        #: The checkpoint around the whole model, if there is one.
        self.inside_checkpoint = checkpoint_around()

    @property
    def observer(self) -> Observer | None:
        """Who looks on, as long as its maker holds it."""
        return None if self._observer is None else self._observer()

    def rest(self) -> None:
        """Let go of what the forward pass alone needs."""
        self._shields.clear()

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
        notes.write(inner, self, link=lambda: link)
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
        note = notes.read(value, self)
        return not self._constant_kind(value, note)

    def _constant_kind(self, tensor: Tensor, note: notes.Note | None) -> notes.Constant:
        """Return what kind of constant a tensor that is no leaf is, empty if it carries relevance."""
        if note is not None:
            return note.constant
        return "" if self.provenance.leads(tensor) else "parameter"

    def made_of_parameters(self, tensor: Tensor) -> bool:
        """Whether the tensor is a parameter or was made of parameters alone."""
        if isinstance(tensor, nn.Parameter) or isinstance(base_of(tensor), nn.Parameter):
            return True
        return self._constant_kind(tensor, notes.read(tensor, self)) == "parameter"

    def shield(self, tensor: Tensor) -> Tensor:
        """Return a constant as operations see it: it receives nothing in a relevance pass, unless asked a parameter."""
        kept = self._shields.get(id(tensor))
        if kept is not None and kept[0] is tensor:
            return kept[1]
        learned = self.made_of_parameters(tensor)
        shielded: Tensor = ScaleNode.apply(self, float(self.parameters and learned), tensor)
        notes.write(shielded, self, constant="parameter" if learned else "stopped")
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
        dependent, constants, waiting, stopped = self._survey(data)
        if operation.name in OF_TWO and any(isinstance(v, Tensor) for v in (*args[1:], kwargs.get("other"))):
            operation = classify(OF_TWO[operation.name])
        call = Call(operation, function, args, kwargs, dependent)
        if not dependent:
            return self._independent(call, constants, stopped)
        if operation.kind == "composed" and operation.name in NATIVE:
            return native(self, call)
        if (joined := self._joined(call, waiting)) is not None:
            return joined
        if call.writes_in_place:
            keep(self, call.args[0] if args else kwargs["input"])
        if waiting:
            call = settling.settle(self, call, waiting)
        if operation.kind == "unknown":
            rule = self.plan.operation_rule(call.operation, self.frames)
            return self.observed(call, rule or Gradient(), HANDLERS["unknown"])
        if operation.kind == "linear":
            return linear.linear(self, call, self.rule(call))
        if (written := self._written_out(call)) is not None:
            return written
        if constants:
            call = call.replaced({id(t): self.shield(t) for t in constants})
        out = self.observed(call, self.rule(call), HANDLERS[operation.kind])
        return softmax.recognize(self, operation, args, kwargs, out) if self.plan.softmax_is_ruled else out

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

    def _survey(self, data: tuple[Any, ...]) -> tuple[list[Tensor], list[Tensor], list[Tensor], bool]:
        """Return the operands that carry relevance, those that do not, the layers to settle, and any stopped value."""
        dependent: list[Tensor] = []
        constants: list[Tensor] = []
        waiting: list[Tensor] = []
        stopped = False
        for tensor in tensors_in(data):
            if not tensor.requires_grad:
                continue
            note = None if tensor.is_leaf else notes.read(tensor, self)
            kind = "parameter" if tensor.is_leaf else self._constant_kind(tensor, note)
            if note is None and not kind:
                node: Any = tensor.grad_fn
                if node.metadata.get(SEEN) is not self.provenance.token:
                    kind = functions.serve(self, tensor)
            if kind:
                constants.append(tensor)
                stopped = stopped or kind == "stopped"
                continue
            dependent.append(tensor)
            if note is not None and settling.waits(note):
                waiting.append(tensor)
        return dependent, constants, waiting, stopped

    def _independent(self, call: Call, constants: list[Tensor], stopped: bool) -> Any:
        """Run a call that no relevance comes back through."""
        if call.operation.name in HIGHER_ORDER:
            return HANDLERS["composed"](self, call, Gradient())
        out = call.invoke()
        if constants:
            for tensor in tensors_in((out,)):
                if tensor.requires_grad and not tensor.is_leaf:
                    notes.write(tensor, self, constant="stopped" if stopped else "parameter")
        if stopped and self.plan.softmax_is_ruled:
            return softmax.recognize(self, call.operation, call.args, call.kwargs, out)
        return out

    def _joined(self, call: Call, waiting: list[Tensor]) -> Any:
        """Run what is one with the layer before it, a BatchNorm or a bias, or return None for any other call."""
        if call.operation.kind == "batch norm" and not call.argument(5, "training", False):
            return self._batch_norm(call, waiting)
        if call.operation.name == "add" and len(call.dependent) == 1:
            return with_bias(self, call)
        return None

    def _written_out(self, call: Call) -> Tensor | None:
        """Run a linear layer that the model writes out as a product or a sum, or return None if it is none."""
        if call.operation.kind in ("product", "added product") and len(call.dependent) == 1:
            product = weighted_product(self, call)
            rule = None if product is None else self._layer_rule(call, product.tensors[1])
            if product is not None and rule is not None:
                out = linear.execute(self, call, rule, product.map, product.tensors, product.function)
                if isinstance(product.map, Dense):
                    linear.await_bias(self, out)
                return out
        if self.plan.rules_sums and call.operation.name in SUMS and len(call.dependent) > 1:
            rule = self._sum_rule(call)
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

    def _batch_norm(self, call: Call, waiting: list[Tensor]) -> Any:
        source = call.dependent[0]
        note = notes.read(source, self)
        layer = behind_hooks(source) if note is None else note.layer
        if layer is not None and (layer.merged or not linear.scales_outputs(source, layer)):
            layer = None
        rule = self.rule(call)
        if layer is None or not isinstance(rule, Normalize | Gradient):
            call, layer = settling.settle(self, call, waiting), None
        return linear.batch_norm(self, call, rule, layer)

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
            rule = self._layer_rule(call, weight)
            if rule is None:
                self.unmatched(call, "no entry of the composite gives a rule for this linear layer")
                return Gradient()
            return rule
        if call.rule is None:
            rule = self.plan.operation_rule(call.operation, self.frames)
            call.rule = rule or (CONVENTIONS[kind] if self.times_input else Gradient())
        return call.rule

    def _layer_rule(self, call: Call, weight: Any) -> Rule | None:
        """Return the rule of a linear layer: by the module that runs it, the owner of its weight, or the function."""
        frame = self.frames[-1] if self.frames else None
        if frame is not None:
            frame.served = True
        running = frame.module if frame else None
        module = self.plan.layer_module(running, weight)
        return self._claimable(call, module, self.plan.layer_candidates(module, call.operation, self.frames))

    def _sum_rule(self, call: Call) -> Rule | None:
        """Return the rule for linear layers that a sum has, or None; the module that adds has no say in it."""
        candidates = self.plan.layer_candidates(None, call.operation, self.frames)
        return self._claimable(call, None, ((r, f) for r, f in candidates if serves(r, call.operation)))

    def _claimable(
        self, call: Call, module: nn.Module | None, candidates: Iterable[tuple[Rule, int | None]]
    ) -> Rule | None:
        """Return the first of the rules that is not for a first layer which was executed before."""
        running = self.frames[-1].module if self.frames else None
        for rule, first in candidates:
            if first is None:
                return rule
            owner = (id(running), self.unrolled) if self.unrolled else (id(module), call.operation.name)
            claimed = self._claimed.get(first)
            # The cells of a recurrent layer are one layer, and a checkpoint that runs its part again finds the first
            # layer where it was.
            again = bool(self.unrolled) or current_backward_pass() != -1
            if claimed is None or (claimed == owner and again):
                self._claimed[first] = owner
                return rule
        return None
