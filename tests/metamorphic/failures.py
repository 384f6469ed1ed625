"""What does not hold yet: delete a line, or a composite from one, when it does.

``python -m tests.metamorphic`` prints the lines anew.
"""

# ruff: noqa: E501 -- a line is a case, as the command prints it

import pytest

from .networks import LRP_0

#: A function, a spelling, composites. ``all``: under all; ``rules``: under those that are not LRP-0 on every layer;
#: ``first``: under those with a rule for the first layer.
FAILURES = """
a * (1 + s) | ones.add_(s) | all
a * (1 + s) | F.pad and narrow of (1 + s) | all
convolution and BatchNorm | rows, stacked | rules
convolution and BatchNorm | rows, cat | rules
convolution and BatchNorm | copied into memory | rules
convolution and BatchNorm | written into memory | rules
convolution and BatchNorm | rows one by one at the norm | rules
product of three | cat, chunked | AttnLRP AttnLRP(1e-3) CPLRP Epsilon Gamma ExcitationBackprop EpsilonPlus EpsilonAlpha2Beta1 EpsilonGammaBox
product of three | halves of a sum | AttnLRP AttnLRP(1e-3) CPLRP Epsilon Gamma ExcitationBackprop EpsilonPlus EpsilonAlpha2Beta1 EpsilonGammaBox
attention, softmax written out | exp * (1 / sum) | AttnLRP AttnLRP(1e-3)
a layer and a slice | fill_ of a view, behind a checkpoint | Gamma ExcitationBackprop EpsilonPlusFlat EpsilonGammaBox GammaDecay
"""

#: A surrounding, a function.
SURROUNDED = """
as a module with a backward hook in a checkpoint | shared encoder
as a module with a backward hook in a checkpoint | parallel stems
as a module with a backward hook in a checkpoint | a block that runs twice
as a module with a backward hook in a checkpoint | two blocks
as a module with a backward hook in a checkpoint | two dense layers
"""

FIRST = ("EpsilonPlusFlat", "EpsilonGammaBox", "GammaDecay")


def short(composites, of):
    """The composites among those of a function, as they are written here."""
    names = {"all": of, "rules": tuple(c for c in of if c not in LRP_0), "first": FIRST}
    return next((name for name, group in names.items() if set(group) == set(composites)), " ".join(composites))


def is_listed(composite, listed):
    """Whether a composite is among those that are listed."""
    return (
        composite in listed
        or "all" in listed
        or ("rules" in listed and composite not in LRP_0)
        or ("first" in listed and composite in FIRST)
    )


def read(text):
    """{(function, spelling): composites} of the lines of a table."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        function, spelling, composites = (part.strip() for part in line.split(" | "))
        found[function, spelling] = composites.split()
    return found


KNOWN = read(FAILURES)


def marks(function, spelling, composite):
    """The marks of a case: an expected failure where it is listed."""
    expected = is_listed(composite, KNOWN.get((function, spelling), ()))
    return [pytest.mark.xfail(strict=True, reason="listed in metamorphic/failures.py")] if expected else []


def marks_of(surrounding, function):
    """The marks of a function in a surrounding."""
    expected = f"{surrounding} | {function}" in SURROUNDED.splitlines()
    return [pytest.mark.xfail(strict=True, reason="listed in metamorphic/failures.py")] if expected else []
