"""The relevance filter: against the dense formula, in any place of a network, and in the books."""

import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrphooks
from lrphooks import Composite, composites, explain, lrp
from lrphooks.matching import AnyLinear
from lrphooks.rules import (
    AlphaBeta,
    Constant,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    Pass,
    TopRelevance,
    WSquare,
    ZBox,
    ZPlus,
)
from references import dense
from small_networks import NETWORKS, equal, every_layer, network

RULES = [Epsilon(0), Epsilon(0.1), Gamma(), ZPlus(), AlphaBeta(), Flat(), WSquare(), ZBox(-3.0, 3.0)]


def largest(relevance, percent):
    """The filter written out: all but the largest values of each row are 0."""
    relevance = np.asarray(relevance)
    rows = relevance.reshape(len(relevance), -1)
    count = max(1, int(rows.shape[1] * percent / 100))
    kept = np.zeros_like(rows)
    for row in range(len(rows)):
        best = np.argsort(-rows[row], kind="stable")[:count]
        kept[row, best] = rows[row, best]
    return torch.from_numpy(kept.reshape(relevance.shape))


@pytest.mark.parametrize("percent", [1, 10, 35, 80, 100])
@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("layer", [nn.Linear(6, 8), nn.Conv1d(2, 3, 2), nn.Conv2d(2, 3, 3, padding=1)], ids=repr)
def test_the_rule_gets_the_largest_relevance_alone(layer, rule, percent):
    """What is left of the relevance at the output, handed on by the rule itself."""
    layer = layer.double()
    shape = {nn.Linear: (3, 6), nn.Conv1d: (3, 2, 7), nn.Conv2d: (3, 2, 4, 4)}[type(layer)]
    x = torch.randn(shape, dtype=torch.float64)
    output = layer(x).detach()
    seed = torch.randn_like(output)
    kept = largest(output * seed, percent) / output
    expected = lrp(layer, x, lambda y: (y * kept).sum(), every_layer(rule))
    equal(lrp(layer, x, lambda y: (y * seed).sum(), every_layer(TopRelevance(rule, percent))), expected)


@pytest.mark.parametrize("percent", [5, 30])
@pytest.mark.parametrize("name", ["epsilon", "z_plus"])
def test_layers_one_after_the_other_against_the_dense_formula(name, percent):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 4))
    model, x = model.double(), torch.randn(3, 2, 6, 6, dtype=torch.float64)
    conv, first, second = (
        dense.DenseMap.of(model[0], (2, 6, 6)), dense.DenseMap.of(model[3], (64,)), dense.DenseMap.of(model[5], (20,)),
    )  # fmt: skip
    rule = {"epsilon": Epsilon(0.01), "z_plus": ZPlus(0.01)}[name]

    def back(layer, a, relevance):
        """The dense contributions, summed for each input."""
        c = layer.contributions(a.reshape(len(a), -1))
        bias = layer.bias
        if name == "z_plus":
            c, bias = np.clip(c, 0, None), np.clip(bias, 0, None)
        z = c.sum(2) + bias
        z = z + 0.01 * np.where(z < 0, -1, 1)
        return (c * (relevance.reshape(len(a), -1) / z)[:, :, None]).sum(1)

    hidden = [model[: n + 1](x).detach().numpy() for n in range(6)]
    relevance = np.zeros((3, 4))
    relevance[:, 1] = hidden[5][:, 1]
    relevance = back(second, hidden[4], largest(relevance, percent).numpy())
    relevance = back(first, hidden[2], largest(relevance, percent).numpy())
    relevance = back(conv, x.numpy(), largest(relevance, percent).numpy())
    found = lrp(model, x, 1, every_layer(rule).filtered(percent))
    equal(found, torch.from_numpy(relevance).reshape(x.shape), tol=1e-10)


class Two(nn.Module):
    """A layer whose output a ReLU and a sum consume."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 12), nn.Linear(12, 3)

    def forward(self, x):
        h = self.layer(F.relu(x))
        return self.head(F.relu(h) + 0.5 * h)


@pytest.mark.parametrize("rule", [Gamma(), ZPlus(), Epsilon(0.1)], ids=repr)
def test_the_sum_of_the_relevance_of_several_consumers_is_filtered(rule):
    model, x = Two().double(), torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        model.head.weight[1, ::2].abs_()
        model.head.bias[1] = 5
    filtered = Composite([("layer", TopRelevance(rule, 20)), (AnyLinear, rule)])
    found = explain(model, x, 1, filtered, record="layer")
    output = model.layer(F.relu(x)).detach()
    kept = largest(found.recorded["layer"], 20) / output
    # The record is of what arrives, before the filter; it is that of the model without one.
    equal(found.recorded["layer"], explain(model, x, 1, every_layer(rule), record="layer").recorded["layer"])
    rest = nn.Sequential(nn.ReLU(), model.layer)
    equal(found.relevance, lrp(rest, x, lambda y: (y * kept).sum(), every_layer(rule)), tol=1e-10)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_books_balance_with_what_is_dropped(name, rule):
    model, x = network(name)
    report = lrphooks.audit(model, x, 1, every_layer(rule).filtered(3))
    assert report.unexplained < 1e-9
    assert not report.imbalances
    assert abs(report.sinks["filtered"]) > 1e-6 * report.scale


def test_a_filter_that_keeps_everything_changes_nothing():
    for name in NETWORKS:
        model, x = network(name)
        for rule in RULES:
            equal(
                lrp(model, x, 1, every_layer(TopRelevance(rule, 100))), lrp(model, x, 1, every_layer(rule)), tol=1e-10
            )
        report = lrphooks.audit(model, x, 1, every_layer(ZPlus()).filtered(100))
        assert abs(report.sinks.get("filtered", 0.0)) < 1e-12 * report.scale


def test_the_forward_value_and_many_targets():
    model, x = network("residual")
    with torch.no_grad():
        model.fc.bias += 5  # explained values below 0 would be dropped whole
    composite = composites.EpsilonPlus().filtered(10)
    with composite.context(model):
        output = model(x.clone().requires_grad_())
    assert torch.equal(output.detach(), model(x).detach())
    for target, found in enumerate(lrphooks.lrp_targets(model, x, range(3), composite)):
        equal(found, lrp(model, x, target, composite))


def test_gradients_of_filtered_relevance():
    """Within what passes, the filter is linear."""
    model, x = Two().double(), torch.randn(3, 6, dtype=torch.float64)
    composite = every_layer(TopRelevance(Epsilon(0.25), 40))

    def total(values):
        leaf = values if values.requires_grad else values.clone().requires_grad_()
        with composite.context(model):
            output = model(leaf)
        (relevance,) = torch.autograd.grad(output[:, 1].sum(), leaf, create_graph=True)
        return relevance.square().sum()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(total(leaf), leaf)
    for index in ((0, 1), (2, 5)):
        step = torch.zeros_like(x)
        step[index] = 1e-6
        numeric = float(total(x + step).detach() - total(x - step).detach()) / 2e-6
        assert float(gradient[index]) == pytest.approx(numeric, rel=1e-5, abs=1e-9)


def test_composites_wrap_the_rules_of_all_their_layers():
    composite = composites.EpsilonGammaBox(-3.0, 3.0, layers=[(nn.Tanh, Pass())]).filtered(5)
    assert composite.entries[0] == (nn.Tanh, Pass())
    assert [rule for _, rule in composite.entries[1:]] == [
        TopRelevance(rule, 5) for _, rule in composites.EpsilonGammaBox(-3.0, 3.0).entries
    ]
    assert composite.filtered(20).entries[1][1] == TopRelevance(ZBox(-3.0, 3.0), 20)
    with pytest.raises(ValueError, match=r"gives no linear layer a rule"):
        composites.GuidedBackprop().filtered(5)


def test_it_is_a_value():
    rule = TopRelevance(ZPlus(), 5)
    assert repr(rule) == "TopRelevance(rule=ZPlus(stabilizer=1e-06), percent=5)"
    assert eval(repr(rule)) == rule
    assert pickle.loads(pickle.dumps(rule)) == rule
    assert hash(rule) == hash(TopRelevance(ZPlus(), 5))
    assert rule != TopRelevance(ZPlus(), 6)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((Pass(),), TypeError, r"rule must be one for linear layers, such as ZPlus\(\), got Pass\(\)"),
        ((Gradient(),), TypeError, r"got Gradient\(\)"),
        ((Constant(),), TypeError, r"got Constant\(\)"),
        ((ZPlus,), TypeError, r"Did you mean ZPlus\(\)\?"),
        ((TopRelevance(ZPlus()),), TypeError, r"got TopRelevance"),
        ((ZPlus(), 0), ValueError, r"percent must be above 0 and at most 100, got 0"),
        ((ZPlus(), 101), ValueError, r"percent must be above 0 and at most 100, got 101"),
        ((ZPlus(), -5), ValueError, r"percent must be at least 0, got -5"),
        ((ZPlus(), "5"), TypeError, r"percent must be a number"),
    ],
    ids=repr,
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=f"TopRelevance: .*{message}"):
        TopRelevance(*arguments)


def test_where_it_cannot_serve():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    with pytest.raises(TypeError, match=r"TopRelevance.* cannot serve module '1' \(ReLU\)"):
        lrp(model, torch.randn(2, 3), 0, Composite([("1", TopRelevance(ZPlus())), (AnyLinear, Epsilon())]))
    with pytest.raises(TypeError, match=r"TopRelevance.* cannot serve"):
        lrp(nn.LSTM(3, 2), torch.randn(2, 2, 3), lambda y: y[0], Composite([(nn.LSTM, TopRelevance(Flat()))]))
