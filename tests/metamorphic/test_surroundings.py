"""Relevance of a function stays as it is in checkpoints, under hooks that do nothing, and for inputs of any layout."""

import pytest

from .failures import marks_of
from .surroundings import cases


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=marks_of(c.surrounding, c.function), id=f"{c.function} {c.surrounding}") for c in cases()],
)
def test_what_changes_no_value_changes_no_relevance(case):
    assert case.differences() == []
