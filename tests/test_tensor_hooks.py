"""Hooks on tensors inside of a model: the modified gradient, never None, and what they return counts."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import lrphooks
from lrphooks import Composite, composites
from lrphooks.matching import AnyLinear, First
from lrphooks.rules import AlphaBeta, Epsilon, Gamma, TopRelevance, WSquare, ZBox, ZPlus

RULES = {
    "LRP-0": Composite([(AnyLinear, Epsilon(0.0))]),
    "epsilon": Composite([(AnyLinear, Epsilon(0.1))]),
    "gamma": Composite([(AnyLinear, Gamma(0.25))]),
    "z plus": Composite([(AnyLinear, ZPlus())]),
    "alpha beta": Composite([(AnyLinear, AlphaBeta(2.0, 1.0))]),
    "z box first": Composite([(First(AnyLinear), ZBox(-3.0, 3.0)), (AnyLinear, Gamma(0.25))]),
    "w square": Composite([(AnyLinear, WSquare())]),
    "filtered": Composite([(AnyLinear, TopRelevance(Epsilon(0.1), 50))]),
    "preset": composites.EpsilonPlusFlat(),
}
ACTIVATIONS = {
    "relu": F.relu,
    "relu in place": lambda z: F.relu(z, inplace=True),
    "silu": F.silu,
    "pooled": lambda z: F.max_pool2d(z, 2),
    "residual": lambda z: z + F.relu(z),
    "viewed": lambda z: z.flatten(2).relu().view(z.shape),
    "scaled": lambda z: (z * 0.5).tanh(),
    "product": lambda z: z * z.sigmoid(),
}


class Net(nn.Module):
    def __init__(self, act, norm=False):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)
        self.norm = nn.BatchNorm2d(6) if norm else nn.Identity()
        if norm:
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)
        self.act = act

    def forward(self, x):
        return self.head(F.relu(self.second(self.act(self.norm(self.first(x))))).mean((2, 3)))


def made(act="relu", norm=False):
    return Net(ACTIVATIONS[act], norm).double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)


def watched(model, hook, where="first"):
    """A copy of the model in which a forward hook registers a hook on a layer's output, as PyTorch advises."""
    model = copy.deepcopy(model)
    model.get_submodule(where).register_forward_hook(lambda module, args, out: (out.register_hook(hook), None)[1])
    return model


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("norm", [False, True])
def test_a_hook_gets_the_modified_gradient_and_changes_nothing(rule, act, norm, close):
    composite = RULES[rule]
    model, x = made(act, norm)
    z = model.first(x).detach()
    expected = lrphooks.explain(model, x, 0, composite, record=["first"])
    seen = []
    found = lrphooks.lrp(watched(model, lambda g: seen.append(g.detach().clone())), x, 0, composite)
    close(found, expected.relevance, 1e-12)
    if rule == "w square":
        # Relevance itself may travel there, which no gradient could carry.
        assert all(g is not None for g in seen)
    else:
        assert len(seen) == 1
        close(seen[0] * z, expected.recorded["first"], 1e-12)


@pytest.mark.parametrize("rule", [name for name in RULES if name not in ("w square", "filtered")])
@pytest.mark.parametrize("act", ACTIVATIONS)
@pytest.mark.parametrize("norm", [False, True])
def test_a_changed_gradient_counts(rule, act, norm, close):
    """Relevance is linear in what arrives, so half of it gives half of the relevance of the input."""
    model, x = made(act, norm)
    expected = lrphooks.lrp(model, x, 0, RULES[rule])
    close(lrphooks.lrp(watched(model, lambda g: g * 0.5), x, 0, RULES[rule]), expected * 0.5, 1e-12)
    rows = torch.tensor([1.0, 0.0], dtype=torch.float64).view(2, 1, 1, 1)
    close(lrphooks.lrp(watched(model, lambda g: g * rows), x, 0, RULES[rule]), expected * rows, 1e-12)


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "z plus", "preset"])
@pytest.mark.parametrize("norm", [False, True])
def test_several_hooks_and_retained_gradients(rule, norm, close):
    """As in torch: each hook gets what the one before returned, and a removed one is not called."""
    model, x = made("relu", norm)
    composite, z = RULES[rule], model.first(x).detach()
    expected = lrphooks.explain(model, x, 0, composite, record=["first"])
    seen, kept = [], []

    def register(module, args, out):
        out.register_hook(lambda g: g * 2)
        out.register_hook(lambda g: seen.append(g.detach()))
        out.register_hook(hook=lambda g: g * 0.5)
        out.register_hook(lambda g: seen.append("removed")).remove()
        out.retain_grad()
        kept.append(out)

    model.first.register_forward_hook(register)
    close(lrphooks.lrp(model, x, 0, composite), expected.relevance, 1e-12)
    assert len(seen) == 1
    close(seen[0] * z, expected.recorded["first"] * 2, 1e-12)
    close(kept[0].grad * z, expected.recorded["first"], 1e-12)


class Inside(nn.Module):
    """Registers in its own code: on views, after the output was consumed, on sums, under a checkpoint."""

    def __init__(self, where, seen):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(5, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.where, self.seen = where, seen

    def hook(self, tensor, where):
        if self.where == where:
            tensor.register_hook(lambda g: self.seen.append((g, tensor.detach().clone())))

    def forward(self, x):
        z = self.first(x)
        self.hook(z, "output")
        v = z.view(2, 2, 3)
        self.hook(v, "view")
        y = F.relu(v).flatten(1)
        self.hook(z, "after")
        self.hook(y, "relu")
        s = checkpoint(self.part, y, use_reentrant=False) if self.where == "checkpoint" else self.part(y)
        self.hook(s, "sum")
        out = self.head(s)
        self.hook(out, "last")
        return out

    def part(self, y):
        z = self.second(y)
        self.hook(z, "checkpoint")
        return y + F.gelu(z)


@pytest.mark.parametrize("rule", ["LRP-0", "epsilon", "gamma", "z plus", "alpha beta"])
@pytest.mark.parametrize("where", ["output", "view", "relu", "sum", "last", "checkpoint", "after"])
def test_hooks_in_the_models_own_code(rule, where, close):
    seen = []
    model, x = Inside(where, seen).double(), torch.randn(2, 5, dtype=torch.float64)
    plain = copy.deepcopy(model)
    plain.where = ""
    expected = lrphooks.explain(plain, x, 1, RULES[rule], record=["first", "second"])
    close(lrphooks.lrp(model, x, 1, RULES[rule]), expected.relevance, 1e-12)
    if where == "after" and not seen:
        # What consumed it went past it, which docs/how-it-works.md tells; it is not called with None.
        return
    ((gradient, value),) = seen
    relevance = gradient * value
    if where in ("output", "view", "after"):
        close(relevance.flatten(1), expected.recorded["first"], 1e-12)
    elif where == "checkpoint":
        close(relevance, expected.recorded["second"], 1e-12)
    elif where == "last":
        # The seed is 1 for the class that is explained.
        close(relevance, plain(x).detach() * torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64), 1e-12)
    else:
        assert torch.isfinite(relevance).all()
        assert relevance.abs().sum() > 0


def test_hooks_see_derivatives_of_relevance_too(close):
    """A pass that differentiates relevance calls them with true derivatives, by the same layers."""
    model, x = made("silu")
    found = {}
    for name, each in {"plain": model, "hooked": watched(model, lambda g: None)}.items():
        leaf = x.clone().requires_grad_()
        with RULES["gamma"].context(each):
            (relevance,) = torch.autograd.grad(each(leaf)[:, 0].sum(), leaf, create_graph=True)
        (found[name],) = torch.autograd.grad(relevance.square().sum(), leaf)
    close(found["hooked"], found["plain"], 1e-12)


@pytest.mark.parametrize("rule", ["epsilon", "gamma", "preset"])
@pytest.mark.parametrize("norm", [False, True])
def test_the_books_balance_with_hooks(rule, norm):
    model, x = made("relu", norm)
    expected = lrphooks.audit(model, x, 0, RULES[rule])
    found = lrphooks.audit(watched(model, lambda g: None), x, 0, RULES[rule])
    assert found.unexplained < 1e-12
    assert not found.imbalances
    assert found.sinks == pytest.approx(expected.sinks, rel=1e-9, abs=1e-12)
