"""Relevance that stands for next to nothing of f(x): it is said, with the way out."""

import warnings

import pytest
import torch
from torch import nn

import lrphooks
from lrphooks.composites import EpsilonPlus, GuidedBackprop


def network(bias):
    """A dense layer with inputs of 1 and weights that sum to 1, so that f(x) = 1 + bias, of which the inputs get 1."""
    model = nn.Linear(4, 2)
    nn.init.constant_(model.weight, 0.25)
    nn.init.constant_(model.bias, bias)
    return nn.Sequential(model)


def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught if "arrives at the inputs" in str(each.message)]


X = torch.ones(3, 4)


def test_it_says_how_much_what_and_what_else():
    (text,) = told(lambda: lrphooks.lrp(network(19.0), X, 0))
    assert text.startswith("lrp: 0.05 of f(x) arrives at the inputs;")
    assert 'bias="ignore"' in text
    assert "lrphooks.audit" in text
    assert repr(EpsilonPlus()) in text


def test_the_way_out_is_one():
    assert told(lambda: lrphooks.lrp(network(19.0), X, 0, EpsilonPlus(bias="ignore"))) == []


@pytest.mark.parametrize(("bias", "times"), [(8.5, 0), (9.5, 1), (-0.5, 0), (-20.0, 1), (0.0, 0)])
def test_from_nine_tenths_on(bias, times):
    assert len(told(lambda: lrphooks.lrp(network(bias), X, 0))) == times


def test_it_points_at_the_line_of_the_caller():
    with pytest.warns(UserWarning, match="arrives at the inputs") as caught:
        lrphooks.explain(network(50.0), X, 0)
    assert caught[0].filename == __file__


def test_half_of_the_rows_decide():
    model = network(19.0)
    rows = torch.ones(4, 4) * torch.tensor([1.0, 1.0, 100.0, 100.0])[:, None]
    assert len(told(lambda: lrphooks.lrp(model, rows, 0))) == 1
    rows[1] = 100.0
    assert told(lambda: lrphooks.lrp(model, rows, 0)) == []


def test_other_questions():
    """Functions of the output, several inputs, and outputs of 0; a modified gradient is no relevance."""
    model = network(19.0)
    assert len(told(lambda: lrphooks.lrp(model, X, lambda output: output.sum()))) == 1
    assert len(told(lambda: lrphooks.lrp(model, X, lambda output: output))) == 1
    assert told(lambda: lrphooks.lrp(network(-1.0), X, 0)) == []
    assert told(lambda: lrphooks.lrp(model, X, 0, GuidedBackprop())) == []

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, a, b):
            return self.inner(a + b)

    assert len(told(lambda: lrphooks.lrp(Two(), (X / 2, X / 2), 0))) == 1
