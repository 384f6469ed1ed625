"""How each torch call of an explained model runs: what is known of its operands, its rule, and what results inherit.

On short kernels this is what an explanation costs, so each call looks once at each operand, and what to do with an
operation in a module is decided once (:func:`decided`).
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrphooks.engine import facts, functions, linear, settling
from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.claims import layer_rule, rule_of_layer, sum_rule
from lrphooks.engine.epsilon_node import keep
from lrphooks.engine.frame import Decision
from lrphooks.engine.handlers import HANDLERS, softmax
from lrphooks.engine.handlers.common import positional, shield_in_place
from lrphooks.engine.handlers.composed import HIGHER_ORDER
from lrphooks.engine.handlers.native import NATIVE, native
from lrphooks.engine.inheritance import INHERITS, inherit
from lrphooks.engine.operation_node import operation as by_rule
from lrphooks.engine.serving import SUMS
from lrphooks.engine.weighted import summed_product, weighted_product, weighted_sum, with_bias, with_summand
from lrphooks.layers.linear_map import Summation, along
from lrphooks.operations import Operation, classify
from lrphooks.operations.names import OF_TWO, SHAPED_BY_ANOTHER
from lrphooks.rules.base import Rule
from lrphooks.rules.linear_rule import LinearRule
from lrphooks.rules.operation import Constant, Gradient, Normalize, OperationRule
from lrphooks.torch_private import is_view

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


class Found:
    """What is known of the operands of a call.

    dependent, known: those that carry relevance, and what is known of each.
    constants: those with a graph that do not; stopped: whether a rule declared one of them a constant.
    waiting: outputs of layers whose rule is not set yet.
    """

    __slots__ = ("constants", "dependent", "known", "stopped", "waiting")

    def __init__(self) -> None:
        self.dependent: list[Tensor] = []
        self.known: list[facts.Facts | None] = []
        self.constants: list[Tensor] = []
        self.waiting: list[Tensor] = []
        self.stopped = False


def runs_plainly(run: Run, operation: Operation, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Decision | None:
    """Return the decision on a call that hands on its plain gradient, if nothing is known of its operands.

    It is the shortest answer to what :func:`execute` asks: for most moves, sums of activations and ReLUs, and for
    frozen layers whose rule is the gradient.
    """
    kind = operation.kind
    if (
        kind not in _MAYBE_PLAIN
        or operation.in_place
        or run.looked_on
        or not (decision := decided(run, operation)).plain
    ):
        return None
    if kwargs and (kwargs.get("inplace") or not _INERT.issuperset(map(type, kwargs.values()))):
        return None
    layer, carries = kind == "linear", 0
    for value in args:
        kind_of = type(value)
        if kind_of in _INERT or (kind_of in _SEQUENCES and _INERT.issuperset(map(type, value))):
            continue
        node = value.grad_fn if kind_of is Tensor else None
        if node is not None and not facts.hang_on(value) and run.provenance.is_plain(node):
            carries += 1
        elif not (layer and kind_of in _TENSORS and not value.requires_grad):
            return None
    if layer:
        run.frames[-1].served = True
        return decision if carries == 1 and args[0].requires_grad and not run.delivers else None
    # A number that is added is an offset.
    numbers = kind == "combination" and not _NUMBERS.isdisjoint(map(type, (*args, *kwargs.values())))
    return decision if carries and not numbers else None


_MAYBE_PLAIN = frozenset(("shape", "combination", "relu", "softmax", "linear"))
_TENSORS = frozenset((Tensor, nn.Parameter))
#: Arguments that hold no tensor.
_INERT = frozenset((int, float, bool, str, type(None), slice, type(...), torch.dtype, torch.memory_format))
_SEQUENCES = frozenset((tuple, list, torch.Size))
_NUMBERS = frozenset((int, float, bool))
#: Sums of activations whose results inherit nothing where nothing is known of these.
_PLAIN_SUMS = frozenset(("add", "sub"))
#: Kinds whose results may come from elsewhere than from their operands: they run functions, or are not known.
_OF_ANYTHING = frozenset(("composed", "unknown", "recurrent"))


def execute(
    run: Run, operation: Operation, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Run one torch call of the model under its rule."""
    # Of x.type_as(y) and its like, the second operand gives a shape or a type alone.
    data = args[:1] if operation.name in SHAPED_BY_ANOTHER else (*args, *kwargs.values()) if kwargs else args
    found = survey(run, data)
    if operation.name in OF_TWO and any(isinstance(v, Tensor) for v in (*args[1:], kwargs.get("other"))):
        operation = classify(OF_TWO[operation.name])
    call = Call(operation, function, args, kwargs, found.dependent)
    if not found.dependent:
        return _independent(run, call, found)
    if operation.kind == "composed" and operation.name in NATIVE:
        return native(run, call)
    out = _dependent(run, call, found)
    if isinstance(out, Tensor) and out.grad_fn is not None and operation.kind not in _OF_ANYTHING:
        run.provenance.made(out.grad_fn)
    return out


def _dependent(run: Run, call: Call, found: Found) -> Any:
    """Run a call of operands that carry relevance."""
    kind, name = call.operation.kind, call.operation.name
    if kind in _JOINS and (joined := _joined(run, call, found)) is not None:
        return joined
    if call.writes_in_place:
        call = _before_writing(run, call)
    if found.waiting:
        call = settling.settle(run, call, found.waiting)
        found.known = [facts.read(t, run) for t in call.dependent]
    out = _under_rule(run, call, found)
    for known in found.known:
        if known is not None and known.weighted is not None:
            # It holds the factors, and is for a sum that comes next.
            known.weighted = None
    if run.plan.softmax_is_ruled and name in softmax.STEPS:
        return softmax.recognize(run, call.operation, call.args, call.kwargs, out)
    return out


def survey(run: Run, data: tuple[Any, ...]) -> Found:
    """Return what is known of the operands of a call."""
    found = Found()
    for value in data:
        if type(value) is Tensor or type(value) is nn.Parameter:
            _look(run, found, value)
        else:
            for tensor in tensors_in((value,)):
                _look(run, found, tensor)
    return found


def _look(run: Run, found: Found, tensor: Tensor) -> None:
    if not tensor.requires_grad:
        return
    kind: facts.Constant
    known = None
    if tensor.is_leaf:
        kind = "parameter"
    else:
        known = facts.read(tensor, run)
        if known is not None:
            kind = known.constant
        elif not (mark := run.provenance.look(tensor.grad_fn)).leads:
            kind = "parameter"
        elif mark.seen:
            kind = ""
        else:
            kind = functions.serve(run, tensor)
            known = facts.read(tensor, run)
    if kind:
        found.constants.append(tensor)
        found.stopped = found.stopped or kind == "stopped"
        return
    found.dependent.append(tensor)
    found.known.append(known)
    if known is not None and settling.waits(known):
        found.waiting.append(tensor)


def _independent(run: Run, call: Call, found: Found) -> Any:
    """Run a call that no relevance comes back through."""
    if call.operation.name in HIGHER_ORDER:
        return HANDLERS["composed"](run, call, Gradient())
    out = call.invoke()
    frozen = not found.constants and any(run.holds(t) for t in tensors_in((call.args, call.kwargs)))
    if found.constants or frozen:
        for tensor in tensors_in((call.args[0] if call.operation.in_place else out,)):
            if frozen or (tensor.requires_grad and not tensor.is_leaf):
                facts.write(tensor, run, constant="stopped" if found.stopped else "parameter")
    if found.stopped and run.plan.softmax_is_ruled and call.operation.name in softmax.STEPS:
        return softmax.recognize(run, call.operation, call.args, call.kwargs, out)
    return out


def _before_writing(run: Run, call: Call) -> Call:
    """Prepare for a call that overwrites an operand, which cannot be exchanged for another."""
    call = positional(call)
    target = call.args[0] if call.args else call.kwargs["input"]
    keep(run, target)
    if target.requires_grad and not target.is_leaf and not run.carries(target):
        # What it was is a constant, and what it becomes is none.
        shield_in_place(run, target)
    return call


# --- under a rule ---


def decided(run: Run, operation: Operation) -> Decision:
    """Return what is done with an operation in the module that runs, decided once for as long as the plan holds."""
    frame = run.frames[-1] if run.frames else None
    decisions = None if frame is None else frame.decisions
    if decisions is None:
        decisions = run.plan.decisions_in(run.frames, by_convention=run.times_input)
        if frame is not None:
            frame.decisions = decisions
    found = decisions.get(operation.name)
    if found is None:
        found = decisions[operation.name] = _decide(run, operation)
    return found


def _decide(run: Run, operation: Operation) -> Decision:
    kind = operation.kind
    if kind == "linear":
        # Only what runs as a module has one rule for all calls.
        sure = run.plan.sure_rule(run.frames[-1].module) if run.frames else None
        plain = isinstance(sure, Gradient) or (isinstance(sure, LinearRule) and sure.is_gradient)
        return Decision(sure, handler=linear.linear, inherits=None, plain=plain, positive=False)
    rule = run.rule_of(operation)
    own, stopped = isinstance(rule, OperationRule), isinstance(rule, Constant)
    sums = operation.name in _PLAIN_SUMS and not run.plan.rules_sums
    return Decision(
        rule,
        handler=by_rule if own else HANDLERS[kind],
        # The weights of attention alone are a constant then.
        inherits=None if stopped and kind != "attention" else INHERITS.get(kind),
        plain=isinstance(rule, Gradient) and (kind in _MAYBE_PLAIN - {"combination"} or sums),
        positive=kind in ("relu", "softmax"),
    )


def _under_rule(run: Run, call: Call, found: Found) -> Any:
    """Run a call whose operands are ready, under its rule."""
    operation = call.operation
    kind = operation.kind
    if kind == "unknown":
        rule = run.plan.operation_rule(operation, run.frames) or Gradient()
        return run.observed(call, rule, by_rule if isinstance(rule, OperationRule) else HANDLERS["unknown"])
    if kind == "linear":
        rule = rule_of_layer(run, call, found.known)
        own = isinstance(rule, OperationRule)
        return run.observed(run.shielded(call), rule, by_rule) if own else linear.linear(run, call, rule)
    if kind in _WRITTEN and (written := _written_out(run, call, found)) is not None:
        return written
    if found.constants:
        call = call.replaced({id(t): run.shield(t) for t in found.constants})
    decision = decided(run, operation)
    assert decision.rule is not None
    call.rule = decision.rule
    out = run.observed(call, decision.rule, decision.handler)
    if decision.inherits is not None:
        inherit(run, call, found.known, decision.inherits, out)
    return out


# --- what is one with a layer ---

#: The kinds that may be one with the layer before: BatchNorm, and sums with a bias.
_JOINS = frozenset(("batch norm", "combination"))
#: The kinds that linear layers are written out in.
_WRITTEN = frozenset(("product", "added product", "combination"))


def _joined(run: Run, call: Call, found: Found) -> Any:
    """Run what is one with the layer before it, a BatchNorm or a bias, or return None for any other call."""
    if call.operation.kind == "batch norm":
        return None if call.argument(5, "training", False) else _batch_norm(run, call, found)
    if call.operation.name == "add" and len(found.dependent) == 1:
        return with_bias(run, call, found.known[0])
    return None


def _written_out(run: Run, call: Call, found: Found) -> Tensor | None:
    """Run a linear layer that the model writes out as a product or a sum, or return None if it is none."""
    kind = call.operation.kind
    product = None
    if len(found.dependent) == 1:
        if kind != "combination":
            product = weighted_product(run, call)
        elif found.known[0] is not None and found.known[0].weighted is not None:
            product = summed_product(run, call, found.known)
    if product is not None:
        named = call if kind != "combination" else Call(classify("matmul"), call.function, call.args, call.kwargs)
        rule = layer_rule(run, named, product.tensors[1], found.known)
        if rule is not None:
            out = linear.execute(run, call, rule, product.map, product.tensors, product.function)
            if product.tensors[2] is None:
                linear.await_bias(run, out)
            return out
    elif kind == "added product" and (apart := with_summand(run, call)) is not None:
        return apart
    if run.plan.rules_sums and call.operation.name in SUMS and len(call.dependent) > 1:
        rule = sum_rule(run, call)
        addition = None if rule is None else weighted_sum(run, call)
        if addition is not None and rule is not None:
            return _sum(run, call, rule, addition)
    return None


def _sum(run: Run, call: Call, rule: Rule, addition: tuple[Summation, tuple[Tensor, Tensor, None]]) -> Tensor:
    target: Tensor = call.argument(0, "input")
    if not (call.writes_in_place and is_view(target)):
        return linear.execute(run, call, rule, *addition, probed=True)
    # The rule's nodes are not set in place on views, and what it is a view of is to see the sum and its rule.
    out = linear.execute(run, call.out_of_place(), rule, *addition, probed=True)
    return target.copy_(settling.settled(run, out))


def _batch_norm(run: Run, call: Call, found: Found) -> Any:
    source, known = call.dependent[0], found.known[0]
    layer = None if known is None or known.layer is None or known.layer.merged else known.layer
    linear_map = None if layer is None or len(found.dependent) > 1 else along(layer.map, source.shape, 1)
    rule = run.rule(call)
    if layer is None or linear_map is None or not isinstance(rule, Normalize | Gradient):
        return linear.batch_norm(run, settling.settle(run, call, found.waiting), rule, None)
    return linear.batch_norm(run, call, rule, layer.mapped(linear_map).multiplied())
