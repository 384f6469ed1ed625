"""Relevance of every spelling of a function equals that of the canonical one, under every composite."""

import pytest
import torch

from lrphooks import lrp

from .failures import KNOWN, marks
from .networks import COMPOSITES, TOLERANCE, Network, compare, difference, example
from .table import TABLE, cases


@pytest.mark.parametrize(
    ("function", "spelling", "composite"),
    [pytest.param(TABLE[f], s, c, marks=marks(f, s, c), id=f"{f}: {s} under {c}") for f, s, c in cases()],
)
def test_a_spelling_has_the_relevance_of_the_canonical_one(function, spelling, composite):
    assert compare(function, spelling, composite) == []


def test_the_table_is_as_large_as_it_is_said_to_be():
    assert len(TABLE) >= 12
    assert sum(len(function.spellings) for function in TABLE.values()) >= 40


@pytest.mark.parametrize("name", ["product of two", "product of three", "product of four"])
@pytest.mark.parametrize("place", ["linear", "relu"])
def test_each_factor_of_a_product_receives_its_part_by_the_definition(name, place):
    """Against the relevance of the operands written out: G times the product of the others, over n."""
    function = TABLE[name]
    model = Network(function, function.canonical, place)
    x = example(model).requires_grad_()
    operands = [stem(x) for stem in model.stems]
    operands = [a.relu() for a in operands] if place == "relu" else operands
    z = torch.stack(operands).prod(0)
    weight = model.head.weight[1]
    G = weight * (z > 0) if place == "relu" else weight.expand_as(z)
    parts = [
        torch.autograd.grad(a, x, (G * z / a).nan_to_num(), retain_graph=True)[0] / len(operands) for a in operands
    ]
    found = lrp(model, x.detach(), 1, COMPOSITES["AttnLRP"](model))
    assert difference(found, (x * sum(parts)).detach()) < TOLERANCE


def test_what_is_listed_as_failing_is_in_the_table():
    assert [line for line in KNOWN if line[0] not in TABLE or line[1] not in TABLE[line[0]].spellings] == []
