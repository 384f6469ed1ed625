"""Products with parameters are linear layers, however a model writes them."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrphooks.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from small_networks import equal, every_layer, relevance


class Experts(nn.Module):
    """Each row goes to one expert: all at once, or one by one."""

    def __init__(self, grouped):
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.head, self.grouped = nn.Parameter(torch.randn(2, 16, 8)), nn.Linear(8, 4), grouped

    def forward(self, x):
        if self.grouped:
            z = torch._grouped_mm(x, self.weight, offs=torch.tensor([3, 8], dtype=torch.int32))
        else:
            z = torch.cat((F.linear(x[:3], self.weight[0].t()), F.linear(x[3:], self.weight[1].t())))
        return self.head(torch.relu(z))


def _multiplies_in_groups():
    try:
        torch._grouped_mm(torch.ones(8, 16), torch.ones(2, 16, 8), offs=torch.tensor([3, 8], dtype=torch.int32))
    except NotImplementedError:
        return False
    return True


GROUPED = pytest.mark.skipif(not _multiplies_in_groups(), reason="this torch has no kernel of _grouped_mm for the CPU")


@GROUPED
@pytest.mark.parametrize("rule", [Epsilon(0.1), ZPlus(), Gamma(), AlphaBeta()], ids=repr)
def test_a_mixture_of_experts_equals_its_experts_one_by_one(rule):
    x = torch.randn(8, 16)
    equal(relevance(every_layer(rule), Experts(True), x), relevance(every_layer(rule), Experts(False), x), 1e-6)


@GROUPED
@pytest.mark.parametrize("rule", [Flat(), WSquare(), ZBox(-4, 4)], ids=repr)
def test_rules_for_first_layers_serve_experts(rule):
    x = torch.randn(8, 16)
    equal(relevance(every_layer(rule), Experts(True), x), relevance(every_layer(rule), Experts(False), x), 1e-6)


class Written(nn.Module):
    def __init__(self, write):
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.bias, self.write = nn.Parameter(torch.randn(6, 4)), nn.Parameter(torch.randn(4)), write

    def forward(self, x):
        return self.write(x, self.weight, self.bias)


@pytest.mark.parametrize("rule", [Epsilon(0.1), ZPlus(), Gamma(), AlphaBeta(), Flat()], ids=repr)
def test_products_with_parameters_follow_the_rule_of_linear_layers(rule):
    x = torch.randn(3, 6, dtype=torch.float64)
    layer = Written(lambda x, w, b: F.linear(x, w.t(), b)).double()
    written = Written(lambda x, w, b: torch.addmm(b, x, w)).double()
    equal(relevance(every_layer(rule), written, x), relevance(every_layer(rule), layer, x))
    layer = Written(lambda x, w, b: F.linear(x, w.t())).double()
    for write in (lambda x, w, b: x @ w, lambda x, w, b: torch.mm(x, w), lambda x, w, b: x.matmul(w)):
        equal(relevance(every_layer(rule), Written(write).double(), x), relevance(every_layer(rule), layer, x))
