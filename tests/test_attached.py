"""Hooks, autograd functions and weights that come from elsewhere: relevance stays that of the model without them."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lrphooks import Composite, UnmatchedError, UnmatchedWarning, composites
from lrphooks.matching import AnyLinear
from lrphooks.rules import AlphaBeta, Constant, Epsilon, Gamma, Gradient, ZPlus
from small_networks import Vgg, equal, every_layer, network, relevance, weighting

ZPLUS = every_layer(ZPlus())


def hooked(model, kind, where):
    module = model.get_submodule(where)
    if kind == "forward":
        module.register_forward_hook(lambda *_: None)
    elif kind == "full backward":
        module.register_full_backward_hook(lambda *_: None)
    elif kind == "full backward pre":
        module.register_full_backward_pre_hook(lambda *_: None)
    else:
        module.register_forward_hook(lambda m, a, out: out.retain_grad())
    return model


@pytest.mark.parametrize("where", ["features.0", "features.1", "features.4", "classifier", "classifier.1", ""])
@pytest.mark.parametrize("kind", ["forward", "full backward", "full backward pre", "retain_grad"])
def test_hooks_that_only_look_change_nothing(kind, where):
    """Full backward hooks, as Grad-CAM tools set them, wrap a module's inputs and outputs."""
    torch.manual_seed(0)
    model = Vgg(inplace=False).double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = relevance(composites.EpsilonAlpha2Beta1Flat(), copy.deepcopy(model), x)
    equal(relevance(composites.EpsilonAlpha2Beta1Flat(), hooked(model, kind, where), x), expected)


def test_hooks_on_every_module_change_nothing():
    """A BatchNorm finds the layer before it through the wraps of both."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    model[1].running_mean.normal_()
    model, x = model.double().eval(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    expected = relevance(composites.EpsilonPlus(), copy.deepcopy(model), x)
    for name in "01234":
        hooked(model, "full backward", name)
    equal(relevance(composites.EpsilonPlus(), model, x), expected)


class Unchanged(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Custom(nn.Module):
    def forward(self, x):
        return Unchanged.apply(x)


def seen(composite):
    """The composite with an entry for the function, which would be reported otherwise."""
    return Composite([(Unchanged, Gradient()), *composite.entries])


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_custom_function_after_a_layer_does_not_undo_its_rule(at):
    """The function itself cannot be seen; the layer before it is matched all the same."""
    torch.manual_seed(0)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)]
    twin = nn.Sequential(*layers).double().eval()
    model = nn.Sequential(*layers[:at], Custom(), *layers[at:])
    if at == 1:
        # Between a layer and its BatchNorm, so that the two are not merged in the twin either.
        twin = nn.Sequential(layers[0], Scaled(), *layers[1:]).double().eval()
    x = torch.randn(2, 6, dtype=torch.float64)
    # The rule computes the layer anew there, so the two differ by rounding.
    equal(relevance(seen(ZPLUS), model, x), relevance(ZPLUS, twin, x), 1e-10)


class Forked(nn.Module):
    """A layer whose output goes to a function that can be seen and to one that cannot, in either order."""

    def __init__(self, hidden, first, relu):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(6, 6).double(), nn.Linear(6, 3).double()
        self.hidden, self.first, self.relu = hidden, first, relu

    def forward(self, x):
        z = self.layer(F.relu(x))
        before = self.hidden(z) if self.first else 0
        seen = F.relu(z) if self.relu else z * 1.0
        return self.head(seen + before + (0 if self.first else self.hidden(z)))


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("rule", [ZPlus(), Gamma(), Epsilon(0.1)], ids=repr)
def test_a_custom_function_beside_another_consumer_does_not_undo_a_rule(rule, first, relu):
    x = torch.randn(3, 6, dtype=torch.float64)
    model, twin = Forked(Unchanged.apply, first, relu), Forked(Scaled(), first, relu)
    equal(relevance(seen(every_layer(rule)), model, x), relevance(every_layer(rule), twin, x), 1e-10)


@pytest.mark.parametrize("last", [False, True])
def test_a_custom_function_is_reported(last):
    """What it computes cannot be seen, so it is never silent; an entry for it, or unmatched="gradient", allows it."""
    model = nn.Sequential(nn.Linear(4, 4), Custom(), *([] if last else [nn.Linear(4, 2)]))
    x = torch.randn(2, 4)
    message = r"autograd function Unchanged.* on shape \(2, 4\): what it computes cannot be seen.*\(Unchanged, lrphooks"
    with pytest.raises(UnmatchedError, match=message):
        relevance(ZPLUS, model, x)
    with pytest.warns(UnmatchedWarning, match="autograd function Unchanged"):
        relevance(Composite(ZPLUS.entries, unmatched="warn"), model, x)
    equal(relevance(Composite(ZPLUS.entries, unmatched="gradient"), model, x), relevance(seen(ZPLUS), model, x))


def test_a_custom_function_of_a_constant_is_one():
    """It carries no relevance, so nothing is lost in it and nothing reported: the gates of some recurrent models."""

    class Gated(nn.Module):
        def forward(self, x):
            return x * Unchanged.apply(x.sigmoid()) + torch.var_mean(x, 1, keepdim=True)[1]

    x = torch.randn(2, 4, dtype=torch.float64)
    seed = weighting(x)
    expected = x * (x.sigmoid() * seed + seed.sum(1, keepdim=True) / 4)
    equal(relevance(every_layer(Epsilon(0)), Gated(), x), expected)


def test_a_custom_function_may_be_a_constant():
    class Gated(nn.Module):
        def forward(self, x):
            return x * Unchanged.apply(x * 2.0)

    x = torch.randn(2, 4, dtype=torch.float64)
    composite = Composite([(Unchanged, Constant()), (AnyLinear, Epsilon(0))])
    equal(relevance(composite, Gated(), x), 2 * x * x * weighting(x))


class Scaled(nn.Module):
    def forward(self, x):
        return x * 1.0


@pytest.mark.parametrize("where", ["", "0"])
def test_a_pre_hook_that_changes_the_input_is_part_of_the_model(where):
    """Relevance is that of the tensor the user gave: it sums to the output where nothing absorbs any."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    model.get_submodule(where).register_forward_pre_hook(lambda m, args: (args[0] * 2,))
    x = torch.randn(2, 6, dtype=torch.float64)
    grad = relevance(every_layer(Epsilon(0)), model, x)
    output = model(x)
    torch.testing.assert_close(grad.sum(), (output * weighting(output)).sum())


@pytest.mark.parametrize("rule", [ZPlus(), Gamma(), AlphaBeta(2, 1), Epsilon(0.1)], ids=repr)
@pytest.mark.parametrize("frozen", ["none", "all", "weights", "biases"])
def test_relevance_does_not_depend_on_what_requires_a_gradient(rule, frozen):
    for name in ("residual", "tokens", "gates", "functional"):
        model, x = network(name)
        expected = relevance(every_layer(rule), model, x)
        for key, parameter in model.named_parameters():
            kind = "biases" if "bias" in key else "weights"
            parameter.requires_grad_(frozen not in ("all", kind))
        equal(relevance(every_layer(rule), model, x), expected)


class GeneralizedMean(nn.Module):
    """GeM pooling with its learned exponent."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.p = nn.Conv2d(3, 4, 3), nn.Parameter(torch.tensor(3.0))

    def forward(self, x):
        x = F.relu(self.conv(x)).clamp(min=1e-6).pow(self.p).mean((2, 3))
        return x.pow(1 / self.p)


def test_a_learned_exponent_counts_as_a_frozen_one():
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    frozen = GeneralizedMean().double().requires_grad_(False)
    learned = GeneralizedMean().double()
    equal(relevance(ZPLUS, learned, x), relevance(ZPLUS, frozen, x))


@pytest.mark.parametrize("how", ["functional_call", "cached", "weight_norm", "spectral_norm", "root"])
def test_weights_computed_from_parameters_are_weights(how):
    """Also where they are computed before the forward pass, as by meta-learning or a cached parametrization."""
    model, x = network("vgg")
    first = model.features[2]
    if how == "functional_call":
        values = {key: p * 1.0 for key, p in model.named_parameters()}
        leaf = x.clone().requires_grad_()
        with ZPLUS.context(model):
            output = torch.func.functional_call(model, values, (leaf,))
            output.backward(weighting(output))
        equal(leaf.grad, relevance(ZPLUS, model, x))
        return
    if how == "root":
        model, x = nn.Linear(6, 4).double(), torch.randn(2, 6, dtype=torch.float64)
        first = model
    twin = copy.deepcopy(model)
    if how == "spectral_norm":
        parametrizations.spectral_norm(first)
        model.eval()
    else:
        parametrizations.weight_norm(first)
    twin.get_parameter("weight" if how == "root" else "features.2.weight").data.copy_(first.weight.detach())
    if how == "cached":
        with parametrize.cached():
            model(x)
            found = relevance(ZPLUS, model, x)
    else:
        found = relevance(ZPLUS, model, x)
    equal(found, relevance(ZPLUS, twin, x))


def test_weights_computed_in_another_thread_are_weights():
    """Nodes of autograd are numbered in each thread by itself, so their numbers do not tell which came first."""
    model, x = network("vgg")
    values = {key: p * 1.0 for key, p in model.named_parameters()}
    for _ in range(100):
        values = {key: value * 1.0 for key, value in values.items()}

    def explain():
        leaf = x.clone().requires_grad_()
        with ZPLUS.context(model):
            output = torch.func.functional_call(model, values, (leaf,))
            output.backward(weighting(output))
        return leaf.grad

    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(explain).result()
    equal(found, relevance(ZPLUS, model, x))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("how", ["step", "data", "copy"])
@pytest.mark.parametrize("rule", [ZPlus(), Gamma(), AlphaBeta(2, 1)], ids=repr)
def test_weights_that_change_inside_a_context_are_seen(rule, how):
    """By an optimizer's step, through ``.data`` as older code does it, or by loading other weights."""
    model, x = network("vgg")
    other = network("vgg", seed=1)[0]
    composite = Composite([(AnyLinear, rule)])
    y = x.clone().requires_grad_()
    with composite.context(model):
        model(y).sum().backward()
        for p, q in zip(model.parameters(), other.parameters(), strict=True):
            if how == "data":
                p.data.copy_(q)
            else:
                with torch.no_grad():
                    p.copy_(q) if how == "copy" else p.add_(q - p)
        y.grad = None
        output = model(y)
        output.backward(weighting(output))
    torch.testing.assert_close(y.grad, relevance(composite, copy.deepcopy(model), x), rtol=0, atol=1e-14)
