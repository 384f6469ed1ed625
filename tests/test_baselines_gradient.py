"""The gradient and gradient times input: closed forms, and captum."""

import pytest
import torch
from captum.attr import InputXGradient as CaptumInputXGradient
from captum.attr import Saliency
from torch import nn

from lrphooks import lrp
from lrphooks.baselines import Gradient, InputXGradient
from lrphooks.rules import Epsilon
from small_networks import NETWORKS, every_layer, network


class Quadratic(nn.Module):
    """x -> (x A x, b x)."""

    def __init__(self):
        super().__init__()
        self.register_buffer("a", torch.randn(4, 4).double())
        self.register_buffer("b", torch.randn(4).double())

    def forward(self, x):
        return torch.stack([((x @ self.a) * x).sum(1), x @ self.b], 1)


def test_closed_forms(close):
    model, x = Quadratic(), torch.randn(3, 4).double()
    expected = torch.stack([(model.a + model.a.T) @ x[0], model.b, (model.a + model.a.T) @ x[2]])
    close(Gradient()(model, x, [0, 1, 0]), expected)
    close(InputXGradient()(model, x, [0, 1, 0]), expected * x)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
@pytest.mark.parametrize("name", NETWORKS)
def test_captum(name, close):
    model, x = network(name)
    target = torch.tensor([1, 3])
    close(Gradient()(model, x, target), Saliency(model).attribute(x, target, abs=False))
    close(InputXGradient()(model, x, target), CaptumInputXGradient(model).attribute(x, target))


def test_input_times_gradient_is_lrp_0_in_a_relu_network(close):
    model, x = network("vgg")
    close(InputXGradient()(model, x, 2), lrp(model, x, 2, every_layer(Epsilon(0))))
