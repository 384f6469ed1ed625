"""A softmax as last layer: what its offset takes is said, with the way out."""

import warnings

import pytest
import torch
from torch import nn

import lrphooks
from lrphooks.composites import AttnLRP, EpsilonPlus


def network(scale):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.Softmax(-1)).double()
    with torch.no_grad():
        model[2].weight *= scale
    return model, torch.randn(2, 6, dtype=torch.float64)


def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught if "a softmax seems to be" in str(each.message)]


@pytest.mark.parametrize("composite", [AttnLRP(), EpsilonPlus()])
def test_the_loss_that_is_named_is_the_one_that_occurs(composite):
    model, x = network(20.0)
    relevance = []
    (text,) = told(lambda: relevance.append(lrphooks.lrp(model, x, composite=composite)))
    p = model(x).amax(1)
    lost = ((p - relevance[0].sum(1)).abs().sum() / p.sum()).item()
    assert lost > 0.5
    assert f"{lost:.0%} of what is explained goes to the softmax's offset" in text
    assert "model[:-1]" in text


def test_the_way_out_conserves():
    model, x = network(20.0)
    assert told(lambda: lrphooks.lrp(model[:-1], x, composite=AttnLRP())) == []
    logits = model[:-1](x).amax(1)
    torch.testing.assert_close(lrphooks.lrp(model[:-1], x, composite=AttnLRP()).sum(1), logits)


def test_other_outputs_are_no_matter():
    model, x = network(20.0)
    assert told(lambda: lrphooks.lrp(model[:-1], x)) == []
    assert told(lambda: lrphooks.lrp(model, x, lambda p: p[:, 0])) == []
    single = nn.Linear(6, 1).double()
    assert told(lambda: lrphooks.lrp(single, x, 0)) == []
