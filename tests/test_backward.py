"""Several backward passes over one graph: ``lrp_targets()``, each target as ``lrp()`` explains it."""

import pytest
import torch
from torch import nn

import lrphooks
from counting import Work
from lrphooks import Composite, LRPError, composites, lrp, lrp_targets
from lrphooks.matching import AnyLinear
from lrphooks.rules import AlphaBeta, Epsilon, Gamma, ZPlus
from small_networks import NETWORKS, PRESETS, every_layer, network

BUDGETS = [1, 2**30]


@pytest.mark.parametrize("budget", BUDGETS, ids=["one by one", "together"])
@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_each_relevance_is_that_of_lrp(name, preset, budget, close):
    model, x = network(name)
    composite = PRESETS[preset]()
    targets = [0, [1, 2], None, lambda y: y[:, 1] - y[:, 0], torch.tensor([3, 0])]
    found = lrp_targets(model, x, targets, composite, budget=budget)
    assert len(found) == len(targets)
    for relevance, target in zip(found, targets, strict=True):
        close(relevance, lrp(model, x, target, composite), tol=1e-9)


@pytest.mark.parametrize("rule", [Epsilon(), ZPlus(), Gamma(), AlphaBeta()], ids=repr)
@pytest.mark.parametrize("name", ["vgg", "tokens"])
def test_one_forward_pass_serves_all(rule, name):
    model, x = network(name)
    composite = every_layer(rule)
    counts = []
    for budget in BUDGETS:
        with Work() as work:
            lrp_targets(model, x, range(4), composite, budget=budget)
        counts.append(work.products)
    with Work() as single:
        lrp(model, x, 0, composite)
    assert counts[0] < 4 * single.products
    # Torch takes the batched backward pass of a convolution apart again, that of a dense layer not.
    assert counts[1] < counts[0]


def test_structures_of_inputs():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 4)

        def forward(self, a, b=None):
            return self.inner(a["x"]) + 2 * self.inner(b)

    model, a, b = Pair(), {"x": torch.randn(2, 3), "n": torch.tensor(1)}, torch.randn(2, 3)
    composite = Composite([(AnyLinear, Epsilon(0))])
    found = lrp_targets(model, (a,), [0, 3], composite, kwargs={"b": b})
    for target, relevance in zip([0, 3], found, strict=True):
        (positional,), keyword = relevance
        weight = model.inner.weight.detach()[target]
        torch.testing.assert_close(positional["x"], a["x"] * weight)
        torch.testing.assert_close(keyword["b"], 2 * b * weight)
        assert positional["n"] is None


class Opaque(torch.autograd.Function):
    """A function that torch cannot batch."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (2.0 if float(gradient.sum()) > -1e9 else 0.0)


class Doubling(nn.Module):
    def forward(self, x):
        return Opaque.apply(x)


def test_what_cannot_be_batched_is_served_one_by_one():
    model = nn.Sequential(nn.Linear(3, 4), Doubling(), nn.Linear(4, 3))
    composite = Composite([(AnyLinear, Epsilon(0))], unmatched="gradient")
    x = torch.randn(2, 3)
    for target, relevance in enumerate(lrp_targets(model, x, [0, 1, 2], composite)):
        torch.testing.assert_close(relevance, lrp(model, x, target, composite))


@pytest.mark.parametrize("targets", [0, None, [], "cat", {0: 1}], ids=repr)
def test_targets_that_are_no_list(targets):
    with pytest.raises(TypeError, match="lrp_targets: targets are a list of targets"):
        lrp_targets(nn.Linear(3, 4), torch.randn(2, 3), targets)


@pytest.mark.parametrize("budget", [0, -1, 1.5, True], ids=repr)
def test_wrong_budgets(budget):
    with pytest.raises(ValueError, match="lrp_targets: budget is a number of bytes"):
        lrp_targets(nn.Linear(3, 4), torch.randn(2, 3), [0], budget=budget)


def test_one_wrong_target_among_others():
    model, x = nn.Linear(3, 4), torch.randn(2, 3)
    with pytest.raises(ValueError, match="target 9 is out of range"):
        lrp_targets(model, x, [0, 9])
    with pytest.raises(LRPError, match="does not depend on the input"):
        lrp_targets(model, x, [0, lambda y: torch.zeros(2)])


def test_a_tensor_of_targets_and_the_default_composite():
    model, x = network("vgg")
    found = lrphooks.lrp_targets(model, x, torch.tensor([2, 0]))
    for target, relevance in zip([2, 0], found, strict=True):
        torch.testing.assert_close(relevance, lrp(model, x, target, composites.EpsilonPlus()))
