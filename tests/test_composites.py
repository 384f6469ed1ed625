"""Presets that are made for a model."""

import numpy as np
import pytest
import torch
from torch import nn

from lrphooks import Composite, lrp
from lrphooks.composites import EpsilonGammaBox, GammaDecay
from lrphooks.matching import Convolution
from lrphooks.rules import Epsilon, Gamma, Pass, ZBox
from small_networks import NETWORKS, network


class Convolutions(nn.Module):
    """Four convolutions, one of them in a block whose name is a pattern, and one that is no module."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3)
        self.blocks = nn.ModuleDict({"[a]": nn.Conv2d(4, 4, 3), "b": nn.Conv2d(4, 4, 3)})
        self.last, self.head = nn.Conv2d(4, 4, 3), nn.Linear(4, 3)
        self.kernel = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x):
        for layer in (self.stem, *self.blocks.values(), self.last):
            x = layer(x).relu()
        return self.head(nn.functional.conv2d(x, self.kernel).relu().mean((2, 3)))


def test_gamma_falls_by_equal_factors():
    model = Convolutions()
    assignment = GammaDecay(model, -1.0, 1.0, first=8.0, last=1.0, epsilon=0.1).assign(model)
    gammas = [assignment[name].candidates[1].rule.gamma for name in ("stem", "blocks.[a]", "blocks.b", "last")]
    assert gammas == pytest.approx([8.0, 4.0, 2.0, 1.0])
    assert assignment["stem"].candidates[0].rule == ZBox(-1.0, 1.0)
    assert assignment["stem"].candidates[0].first
    assert assignment["head"].rule == Epsilon(0.1)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_fall_it_is_epsilon_gamma_box(name, close):
    model, x = network(name)
    fallen = GammaDecay(model, -4.0, 4.0, first=0.3, last=0.3, sums=None)
    close(lrp(model, x, 0, fallen), lrp(model, x, 0, EpsilonGammaBox(-4.0, 4.0, gamma=0.3)))


def test_convolutions_that_are_no_modules_have_the_geometric_mean(close):
    model, x = Convolutions().double().eval(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    found = lrp(model, x, 0, GammaDecay(model, -4.0, 4.0, first=0.9, last=0.1))
    names = ["stem", "blocks.[[]a]", "blocks.b", "last"]
    layers = [(name, Gamma(gamma)) for name, gamma in zip(names, np.geomspace(0.9, 0.1, 4).tolist(), strict=True)]
    entries = [("stem", ZBox(-4.0, 4.0)), *layers[1:], (Convolution, Gamma(0.3)), (nn.Linear, Epsilon())]
    close(found, lrp(model, x, 0, Composite(entries)))


def test_residual_sums_have_a_gamma_of_their_own(close):
    model, x = network("residual")
    fallen = GammaDecay(model, -4.0, 4.0, first=0.3, last=0.3, sums=2.0)
    box = EpsilonGammaBox(-4.0, 4.0, gamma=0.3, layers=[(torch.add, Gamma(2.0))])
    close(lrp(model, x, 0, fallen), lrp(model, x, 0, box))
    assert not torch.allclose(lrp(model, x, 0, fallen), lrp(model, x, 0, EpsilonGammaBox(-4.0, 4.0, gamma=0.3)))


def test_layers_of_ones_own_come_first():
    model = Convolutions()
    assignment = GammaDecay(model, -1.0, 1.0, layers=[("last", Pass())]).assign(model)
    assert assignment["last"].rule == Pass()


def test_wrong_arguments_are_refused():
    model = Convolutions()
    with pytest.raises(ValueError, match="GammaDecay: last must be above 0, got 0"):
        GammaDecay(model, -1.0, 1.0, last=0)
    with pytest.raises(ValueError, match="GammaDecay: sums must be at least 0, got -1"):
        GammaDecay(model, -1.0, 1.0, sums=-1)
    with pytest.raises(TypeError, match="GammaDecay: first must be a number, got 'high'"):
        GammaDecay(model, -1.0, 1.0, first="high")
    with pytest.raises(TypeError, match=r"GammaDecay: model must be the torch.nn.Module that it is for, got -1\.0"):
        GammaDecay(-1.0, 1.0, 0.5)
