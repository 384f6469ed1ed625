"""Every spelling of every operation follows the convention of its kind."""

import pytest

from references.operation_cases import GROUPS
from references.operations import agrees, floating, serves, spellings, values

CASES = [pytest.param(c, id=f"{g}-{c.names}-{i}") for g, cases in GROUPS.items() for i, c in enumerate(cases)]


@pytest.mark.filterwarnings("ignore")  # some spellings are deprecated
@pytest.mark.parametrize("case", CASES)
def test_every_spelling_follows_the_convention(case):
    """A constant multiplies a signal, which takes all; every other operation stands alone."""
    expected = floating(case.function(*case.operands))
    operands, surrogate = case.operands, case.surrogate
    if case.gates:
        operands = (*operands, values(*expected[0].shape, seed=9, domain="nonzero"))
        surrogate = gating(surrogate)
    served = 0
    for name in case.names.split():
        for spelling, function in spellings(name, len(case.operands), case.options):
            if serves(function, case.operands, expected):
                served += 1
                try:
                    agrees(gating(function) if case.gates else function, surrogate, operands)
                except Exception as error:
                    raise AssertionError(f"{spelling}: {error}") from error
    assert served >= 2, "this case tries no second spelling"


def gating(function):
    return lambda *a: function(*a[:-1]) * a[-1]
