"""Integrated gradients: closed forms, completeness, and captum."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from captum.attr import IntegratedGradients as CaptumIntegratedGradients
from torch import nn

from lrphooks.baselines import IncompleteWarning, IntegratedGradients
from small_networks import NETWORKS, network


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


X = torch.tensor([[1.0, -2.0, 3.0], [0.5, 1.5, -1.0]], dtype=torch.float64)


def test_a_product_of_inputs(close):
    """On the straight way from 0, f = a b gives half to each; from r, A_a = (a - r) (b + r) / 2."""
    product = Function(lambda x: (x[:, 0] * x[:, 1]).unsqueeze(1))
    half = (X[:, 0] * X[:, 1] / 2).unsqueeze(1)
    close(IntegratedGradients(2)(product, X), torch.cat([half, half, 0 * half], 1))
    a, b = X[:, 0], X[:, 1]
    expected = torch.stack([(a - 0.5) * (b + 0.5) / 2, (b - 0.5) * (a + 0.5) / 2, 0 * a], 1)
    close(IntegratedGradients(2, reference=0.5)(product, X), expected)


@pytest.mark.parametrize("power", range(1, 8))
def test_n_steps_are_exact_for_powers_up_to_twice_n(power, close):
    """Of the gradient, so 4 steps serve powers of up to 8."""
    model = Function(lambda x: (x**power).sum(1, keepdim=True))
    close(IntegratedGradients(4, reference=-0.25)(model, X), X**power - (-0.25) ** power)


@pytest.mark.parametrize("name", NETWORKS)
def test_completeness(name):
    model, x = network(name)
    reference = torch.randn(1, *x.shape[1:], dtype=torch.float64)
    found = IntegratedGradients(300, reference, batch=200)(model, x, [1, 3])
    with torch.no_grad():
        difference = (model(x) - model(reference))[[0, 1], [1, 3]]
    error = (found.flatten(1).sum(1) - difference).abs().max() / difference.abs().max()
    # A kink of ReLU costs about the weight of one step; smooth functions are exact.
    assert error < (1e-10 if name in ("tokens", "gates") else 0.01)


@pytest.mark.parametrize("batch", [1, 7, 1000])
@pytest.mark.parametrize("name", NETWORKS)
def test_captum(name, batch, close):
    model, x = network(name)
    target = torch.tensor([1, 3])
    expected = CaptumIntegratedGradients(model).attribute(x, baselines=0.1, target=target, n_steps=20)
    found = IntegratedGradients(20, 0.1, tolerance=10.0, batch=batch)(model, x, target)
    close(found, expected, tol=1e-7)  # captum sums with weights in single precision


def test_several_inputs_share_the_way(close):
    """f = a^2 b: on the way t (a, b), A_a = int 2 t^2 a b dt a."""
    a, b = X, X.flip(0)
    model = Function(lambda a, b: (a.square() * b).sum(1, keepdim=True))
    first, second = IntegratedGradients(3)(model, (a, b))
    close(first, 2 / 3 * a.square() * b)
    close(second, a.square() * b / 3)
    first, second = IntegratedGradients(3, (a, 0.0))(model, (a, b))
    assert torch.equal(first, torch.zeros_like(a))
    close(second, a.square() * b)


def test_what_rows_share_is_judged_as_a_whole(close):
    x, scale = X, torch.tensor(3.0, dtype=torch.float64)
    model = Function(lambda x, scale: x * scale)
    first, second = IntegratedGradients(3)(model, (x, scale), 0)
    close(first, torch.stack([x[:, 0] * 1.5, 0 * x[:, 0], 0 * x[:, 0]], 1))
    close(second, 1.5 * x[:, 0].sum())


def test_a_step_function_is_incomplete():
    """All of the rise is within a hundredth of the way, which two steps miss."""
    model = Function(lambda x: F.relu(x - 0.99) * 100)
    x = torch.tensor([[0.5], [1.0]], dtype=torch.float64)
    with pytest.warns(
        IncompleteWarning, match=r"row 1 miss 1 of f\(x\) - f\(x'\) = 1, with f\(x\) = 1. More steps than 2"
    ):
        IntegratedGradients(2)(model, x, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        IntegratedGradients(2, tolerance=1.0)(model, x, 0)
        IntegratedGradients(2)(model, x[:1], 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"steps": 2.0}, TypeError, "steps must be an integer, got 2.0"),
        ({"batch": True}, TypeError, "batch must be an integer, got True"),
        ({"tolerance": -1.0}, ValueError, "tolerance must be at least 0"),
        ({"reference": "black"}, TypeError, "reference must be a number, got 'black'"),
        ({"reference": torch.tensor(float("nan"))}, ValueError, "reference must be finite"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=f"IntegratedGradients: {message}"):
        IntegratedGradients(**arguments)


def test_references_that_do_not_fit():
    model = Function(lambda x: x)
    with pytest.raises(
        ValueError, match=r"a reference of shape \(2,\) does not broadcast to an input of shape \(2, 3\)"
    ):
        IntegratedGradients(reference=torch.zeros(2))(model, X, 0)
    with pytest.raises(ValueError, match="2 references were given for 1 inputs"):
        IntegratedGradients(reference=(0.0, 1.0))(model, X, 0)
