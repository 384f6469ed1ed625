"""Which rules an operation can have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.autograd import Function

from lrphooks import matching
from lrphooks.operations import Kind, Operation, classify, names
from lrphooks.rules.base import LayerRule, Rule
from lrphooks.rules.filter import TopRelevance
from lrphooks.rules.input import InputRule
from lrphooks.rules.linear_rule import LinearRule
from lrphooks.rules.operation import (
    Constant,
    DeconvReLU,
    Gradient,
    GuidedReLU,
    Identity,
    Normalize,
    OperationRule,
    Pass,
    Proportional,
    TakesAll,
    Uniform,
)

if TYPE_CHECKING:
    from lrphooks.entries import Entries

_ELEMENTWISE: tuple[type[Rule], ...] = (Identity, Pass)
_PRODUCT: tuple[type[Rule], ...] = (Uniform, Proportional, TakesAll)

#: The operations that are linear layers where one operand is a parameter.
OPERATIONS = frozenset(names.WEIGHTED.split())
#: The operations that are linear layers, with weights 1 and -1, where both operands are activations.
SUMS = frozenset(names.SUM.split())

#: Selections that act on each element by itself.
ELEMENTWISE_SELECT = frozenset(names.ELEMENTWISE_SELECT.split())

#: The rules of each kind of operation, beside Gradient and Constant, which serve all.
SERVED: dict[Kind, tuple[type[Rule], ...]] = {
    "relu": (*_ELEMENTWISE, GuidedReLU, DeconvReLU),
    "shape": _ELEMENTWISE,
    "split": _ELEMENTWISE,
    "product": _PRODUCT,
    "added product": _PRODUCT,
    "division": (Identity,),
    "clamp": _ELEMENTWISE,
    "power": _ELEMENTWISE,
    "activation": _ELEMENTWISE,
    "gate": _ELEMENTWISE,
    "constant": _ELEMENTWISE,
    "shift": _ELEMENTWISE,
    "attention": (Uniform,),
    "normalization": (Normalize, *_ELEMENTWISE),
    "batch norm": (Normalize, *_ELEMENTWISE),
    "linear": (LinearRule, InputRule, TopRelevance, Pass),
}

#: The rules that an autograd function of the model's own can have.
FUNCTION: tuple[type[Rule], ...] = (Gradient, Constant, *_ELEMENTWISE, OperationRule)


def serves(rule: Rule, operation: Operation) -> bool:
    """Whether an operation can have a rule."""
    if isinstance(rule, Gradient | Constant | OperationRule) or operation.kind == "recurrent":
        # A recurrent layer says itself what its cells want.
        return True
    if operation.kind == "select":
        return isinstance(rule, _ELEMENTWISE) and operation.name in ELEMENTWISE_SELECT
    if operation.name in OPERATIONS and isinstance(rule, LayerRule):
        return True
    if operation.name in SUMS and isinstance(rule, LayerRule) and isinstance(rule.inner, LinearRule):
        return True
    return isinstance(rule, SERVED.get(operation.kind, ()))


def check_entries(composite: Entries) -> None:
    """Raise a TypeError if an entry gives operations a rule that they cannot have.

    A group or a tuple may hold operations that a rule cannot serve, beside some that it can.
    """
    for index, (matcher, rule) in enumerate(composite.entries):
        if isinstance(matcher, matching.First) and not isinstance(rule, LayerRule):
            others = [
                n for n in matching.operation_names(matcher) if classify(n).kind != "linear" and n not in OPERATIONS
            ]
            if others:
                raise TypeError(
                    f"Entry {index} of the composite, ({matching.describe(matcher)}, {rule!r}), is for the first "
                    f"executed {others[0]}, but First() counts linear layers alone. Name the module instead."
                )
        if isinstance(matcher, type) and issubclass(matcher, Function) and not isinstance(rule, FUNCTION):
            raise TypeError(
                f"{rule!r} cannot serve autograd function {matcher.__name__}, which entry {index} of the composite "
                f"gives it to. The rules that can are {', '.join(kind.__name__ for kind in FUNCTION)}."
            )
        operations = [classify(name) for name in matching.operation_names(matcher)]
        if not operations or any(serves(rule, operation) for operation in operations):
            continue
        known = ", ".join(f"{kind.__name__}" for kind in _serving(operations[0]))
        raise TypeError(
            f"{rule!r} cannot serve operation {operations[0].name}, which entry {index} of the composite, "
            f"({matching.describe(matcher)}, ...), gives it to. The rules that can are {known}."
        )


def _serving(operation: Operation) -> tuple[type[Rule], ...]:
    more = SERVED.get(operation.kind, ())
    if operation.kind == "select" and operation.name in ELEMENTWISE_SELECT:
        more = _ELEMENTWISE
    if operation.name in OPERATIONS:
        more = (LinearRule, InputRule, TopRelevance, *more)
    if operation.name in SUMS:
        more = (LinearRule, TopRelevance, *more)
    return Gradient, Constant, *more
