"""Relevance in float16, whose numbers end at 6e-8 and 65504: that of the same weights in float64."""

import copy

import pytest
import torch
from torch import nn

import lrphooks
from lrphooks import Composite, backward, composites
from lrphooks.concepts import conditional_relevance, relevant_channels
from lrphooks.matching import AnyLinear, Convolution
from lrphooks.rules import Epsilon, ZPlus


def dense():
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 3)), (4, 24)


def convolutional():
    layers = nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU()
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 3)), (2, 3, 24, 24)


#: Those whose last layer has LRP-0, so that relevance is linear in its weights.
LINEAR = {
    "LRP-0": Composite([(AnyLinear, Epsilon(0.0))]),
    "z-plus": Composite([(Convolution, ZPlus()), (AnyLinear, Epsilon(0.0))]),
    "AttnLRP": composites.AttnLRP(epsilon=0.0),
}
COMPOSITES = {**LINEAR, "epsilon": Composite([(AnyLinear, Epsilon(1e-6))]), "epsilon plus": composites.EpsilonPlus()}


#: A power of two, by which the outputs of the small model are those of the large one exactly.
SMALL = 2.0**-9


@pytest.fixture(params=[dense, convolutional])
def pair(request):
    """A model in float16, the same with outputs of about a thousandth, and an input."""
    model, shape = request.param()
    model = model.eval().half()
    model[-1].bias.data.zero_()
    small = copy.deepcopy(model)
    small[-1].weight.data.mul_(SMALL)
    return model, small, torch.randn(shape).half()


def near(found, expected, *, share=0.01):
    """Relevance is linear in the last weights; 6e-8 is the distance of the numbers that it is rounded to at last."""
    expected = expected.double() * SMALL
    assert found.dtype == torch.float16
    assert (found.double() - expected).abs().max() < share * expected.abs().max() + 6e-8


@pytest.mark.parametrize("name", LINEAR)
def test_small_outputs(pair, name):
    model, small, x = pair
    near(lrphooks.lrp(small, x, 1, LINEAR[name]), lrphooks.lrp(model, x, 1, LINEAR[name]))


def test_all_that_is_asked_of_one_pass(pair):
    model, small, x = pair
    composite, targets = COMPOSITES["LRP-0"], [0, 2]
    for found, expected in zip(*(lrphooks.lrp_targets(m, x, targets, composite) for m in (small, model)), strict=True):
        near(found, expected)
    found, expected = (lrphooks.explain(m, x, 1, composite, record=["0", "2"], parameters=True) for m in (small, model))
    assert torch.equal(found.explained, small(x)[:, 1]), "the value itself is not scaled"
    for key in ("0", "2"):
        near(found.recorded[key], expected.recorded[key])
    for key in expected.parameters:
        near(found.parameters[key], expected.parameters[key])
    near(*(conditional_relevance(m, x, {"2": [0, 1, 5]}, 1, composite) for m in (small, model)))
    near(*(relevant_channels(m, x, "2", 1, composite, top=3).relevance for m in (small, model)), share=0.05)


@pytest.mark.parametrize("name", COMPOSITES)
def test_of_the_same_weights_in_float64(name):
    model, shape = dense()
    model[-1].weight.data.mul_(0.01)
    model, x = model.half(), torch.randn(shape).half()
    found = lrphooks.lrp(model, x, 1, COMPOSITES[name]).double()
    expected = lrphooks.lrp(model.double(), x.double(), 1, COMPOSITES[name])
    assert (found - expected).abs().max() < 0.02 * expected.abs().max()


def test_a_scale_that_is_too_large_is_given_up():
    """The weights cancel in the output, so what is 1 at the output comes to 30,000 on its way back."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.eye(2) * 100
    model[1].weight.data = torch.tensor([[300.0, -300.0]])
    x = torch.tensor([[0.5, 0.499]])
    model, x = model.half(), x.half()
    assert 0 < model(x).item() < 64
    found = lrphooks.lrp(model, x, 0, COMPOSITES["LRP-0"])
    assert torch.equal(found, x * torch.tensor([[3e4, -3e4]]).half())


def test_other_types_are_left_alone():
    value = torch.full((3,), 1e-3, requires_grad=True)
    assert backward.Scaled.of(value, [value]).value is value
    half = torch.full((3,), 1e-3, dtype=torch.bfloat16, requires_grad=True)
    assert backward.Scaled.of(half, [half]).value is half


@pytest.mark.parametrize("largest", [0.0, 1e-7, 1e-3, 3.0, 1e3, 6e4])
def test_the_scale_is_a_power_of_two_that_leaves_room(largest):
    value = torch.tensor([largest, -largest / 2], dtype=torch.float16)
    scaled = backward.Scaled.of(value, [])
    exponent = float(scaled.scale.log2())
    assert exponent == int(exponent)
    assert 0 <= exponent <= 14
    assert float(scaled.value.abs().max()) <= max(16.0, largest * 1.01)
    assert torch.equal(scaled.back(scaled.value), value)
