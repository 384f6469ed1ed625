"""Model-parameter randomisation: what is drawn anew, in which order, and how alike relevance stays."""

import copy

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from judged import contributions, linear, small_cnn
from lrphooks.composites import EpsilonPlus
from lrphooks.evaluation import ParameterRandomisation
from lrphooks.evaluation.randomisation import executed


def input_x_gradient(model, x, target):
    x = x.requires_grad_()
    output = model(x).gather(1, target[:, None]).sum()
    return torch.autograd.grad(output, x)[0] * x.detach()


class Backwards(nn.Module):
    """Registers its layers in another order than it runs them, and owns a parameter."""

    def __init__(self):
        super().__init__()
        self.last, self.first = nn.Linear(6, 3), nn.Linear(4, 6)
        self.scale = nn.Parameter(torch.ones(6))

    def forward(self, x):
        return self.last(self.scale * self.first(x).relu())


def test_modules_are_randomised_in_the_order_of_execution():
    assert executed(Backwards(), torch.randn(1, 4)) == ["", "first", "last"]
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    names = executed(encoder, torch.randn(1, 3, 8))
    assert names.index("self_attn.out_proj") == names.index("self_attn") + 1 < names.index("linear1")


@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_the_curve_is_that_of_models_randomised_by_hand(order, close):
    model, x = small_cnn(), torch.randn(3, 1, 12, 12)
    target = [0, 1, 2]
    result = ParameterRandomisation(order=order, seed=5)(model, x, target, input_x_gradient)
    usual = input_x_gradient(model, x.clone(), torch.tensor(target))
    changed, expected = copy.deepcopy(model), []
    for step, layer in enumerate([4, 0]):
        changed = copy.deepcopy(model) if order == "independent" else changed
        torch.manual_seed(5 + step)
        changed[layer].reset_parameters()
        relevance = input_x_gradient(changed, x.clone(), torch.tensor(target))
        expected.append([spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(usual, relevance, strict=True)])
    close(result.curve, np.array(expected).T, tol=1e-6)
    close(result.values, np.mean(expected, 0), tol=1e-6)
    assert result.at.tolist() == ["4", "0"]


def test_an_explanation_that_ignores_the_model_stays_as_it_was():
    model, x = linear(1, 9, 9)
    for similarity in ("spearman", "ssim"):
        result = ParameterRandomisation(similarity=similarity)(model, x, 0, lambda m, rows, t: rows)
        assert result.values.tolist() == pytest.approx([1.0] * 3)


def test_absolute_relevance_ignores_the_sign():
    model, x = linear(9)
    first = model.weight.detach().clone()

    def turning(m, rows, target):
        return rows if torch.equal(m.weight, first) else -rows

    assert ParameterRandomisation()(model, x, 0, turning).mean == pytest.approx(-1.0)
    assert ParameterRandomisation(absolute=True)(model, x, 0, turning).mean == pytest.approx(1.0)


def test_parameters_without_a_way_of_their_own_keep_their_mean_and_spread():
    model, x = linear(5000, classes=2)
    with torch.no_grad():
        model.weight.mul_(3.0).add_(1.0)
    seen = []

    def watching(m, rows, target):
        seen.append(m.weight.detach().clone())
        return contributions(m, rows, target)

    ParameterRandomisation(seed=9)(model, x, 0, watching)
    assert seen[1].mean().item() == pytest.approx(seen[0].mean().item(), abs=0.15)
    assert seen[1].std().item() == pytest.approx(seen[0].std().item(), rel=0.05)
    assert abs(np.corrcoef(seen[0].flatten(), seen[1].flatten())[0, 1]) < 0.05


def test_the_model_and_the_state_of_chance_are_left_as_they_were():
    model, x = small_cnn(), torch.randn(2, 1, 12, 12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    ParameterRandomisation()(model, x, None, EpsilonPlus())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())


def test_what_cannot_be_randomised_is_refused():
    model, x = linear(1, 5, 5)
    with pytest.raises(TypeError, match="ParameterRandomisation: explains changed models, so it needs a method"):
        ParameterRandomisation()(model, x, 0, x)
    with pytest.raises(ValueError, match="too small for the windows of ssim, 7 positions a side"):
        ParameterRandomisation(similarity="ssim")(model, x, 0, contributions)
    with pytest.raises(ValueError, match="the model has no parameters, so there is nothing to randomise"):
        ParameterRandomisation()(nn.Flatten(), x, 0, lambda m, rows, t: rows)
    with pytest.raises(ValueError, match="order must be one of cascading, independent, got 'top_down'"):
        ParameterRandomisation(order="top_down")
