"""The contract that rules of one's own are checked by: it passes those that keep it, and says what others break."""

from dataclasses import dataclass, field

import pytest
import torch

from lrphooks.rules import OperationRule
from lrphooks.testing import check_rule
from test_operation_rules import Cubed, First, Halves, Keeps, times

A, B = (torch.rand(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) + 0.5 for i in range(2))


@pytest.mark.parametrize(
    ("rule", "operation", "operands"),
    [
        (Halves(), torch.mul, (A, B)),
        (Halves(), times, (A, B)),
        (Halves(), torch.atan2, (A, B)),
        (First(), torch.sub, (A, B)),
        (Keeps(0.5), torch.tanh, (A,)),
        (Keeps(), torch.sigmoid, (A,)),
        (Keeps(), Cubed, (A,)),
    ],
)
def test_rules_that_keep_the_contract(rule, operation, operands):
    check_rule(rule, operation, *operands)


@dataclass(frozen=True)
class Detaches(OperationRule):
    def modified_gradients(self, gradient, output, operands):
        return [gradient * (output / a).detach() for a in operands]


@dataclass(frozen=True)
class Counts(OperationRule):
    """State on the rule, which all calls share."""

    calls: list = field(default_factory=list, compare=False)

    def modified_gradients(self, gradient, output, operands):
        self.calls.append(1)
        return [gradient * len(self.calls) for _ in operands]


class NoValue(OperationRule):
    def modified_gradients(self, gradient, output, operands):
        return [gradient for _ in operands]

    def __repr__(self):
        return object.__repr__(self)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Detaches(), "derivative of relevance along a direction .*finite differences .*without detach"),
        (Counts(), "relevance is a . G_a: not so for operand 0"),
        (NoValue(), "does not print as the call|pickled rule is not equal"),
    ],
)
def test_rules_that_break_it(rule, message):
    with pytest.raises((AssertionError, TypeError), match=message):
        check_rule(rule, torch.mul, A, B)


def test_operands_are_precise():
    with pytest.raises(TypeError, match=r"check_rule: operands must be tensors of float64, got torch.float32"):
        check_rule(Halves(), torch.mul, A.float(), B)
