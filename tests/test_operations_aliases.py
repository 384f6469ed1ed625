"""Every spelling of every operation follows the convention of its kind."""

import pytest
import torch

from references.operation_cases import GROUPS
from references.operations import EXACT, Sandwich, floating, gradient_times_input, inputs, serves, spellings, values
from small_networks import equal

CASES = [pytest.param(c, id=f"{g}-{c.names}-{i}") for g, cases in GROUPS.items() for i, c in enumerate(cases)]


@pytest.mark.filterwarnings("ignore")  # some spellings are deprecated
@pytest.mark.parametrize("case", CASES)
def test_every_spelling_follows_the_convention(case):
    """A constant multiplies a signal, which takes all; every other operation stands alone."""
    x = inputs()
    expected = floating(case.function(*case.operands))
    operands, surrogate = case.operands, case.surrogate
    if case.gates:
        operands = (*operands, values(*expected[0].shape, seed=9, domain="nonzero"))
        surrogate = gating(surrogate)
    reference = gradient_times_input(Sandwich(x, surrogate, operands), x)
    served = 0
    for name in case.names.split():
        for spelling, function in spellings(name, len(case.operands), case.options):
            if serves(function, case.operands, expected):
                served += 1
                model = Sandwich(x, gating(function) if case.gates else function, operands)
                check(spelling, model, x, reference)
    assert served >= 2, "this case tries no second spelling"


def gating(function):
    return lambda *a: function(*a[:-1]) * a[-1]


def check(spelling, model, x, reference):
    x = x.clone().requires_grad_()
    try:
        with EXACT.context(model):
            output = model(x)
            output.backward()
        equal(x.grad, reference, 1e-10)
    except Exception as error:
        raise AssertionError(f"{spelling}: {error}") from error
    assert torch.equal(output, model(x)), f"{spelling} has another value inside the context"
