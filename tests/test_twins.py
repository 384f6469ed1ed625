"""Modules, models, composites and threads that share something: each result equals that of its unshared twin."""

import copy
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import Composite, composites, lrp
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, Flat, Gamma, ZPlus
from small_networks import PRESETS, SMOOTH, equal, every_layer, network, on_first, relevance, weighting

ZPLUS = every_layer(ZPlus())
COMPOSITES = {**{name: make() for name, make in PRESETS.items()}, **SMOOTH}


class Twice(nn.Module):
    """A block applied twice, or once each of two copies of it."""

    def __init__(self, *, shared):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.first = nn.Sequential(nn.Conv2d(5, 5, 3, padding=1), nn.BatchNorm2d(5), nn.ReLU(inplace=True))
        self.first[1].running_mean.normal_()
        self.second = self.first if shared else copy.deepcopy(self.first)
        self.act = nn.GELU()
        self.fc = nn.Linear(5, 3)
        self.double().eval()

    def forward(self, x):
        x = self.act(self.stem(x))
        x = self.second(self.first(x)) + x
        return self.fc(x.mean((2, 3)))


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
def test_a_block_called_twice_equals_two_copies(composite):
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    equal(relevance(composite, Twice(shared=True), x), relevance(composite, Twice(shared=False), x))


class Alternating(nn.Module):
    """One dense layer and one activation, used all the way through."""

    def __init__(self, *, shared, depth=4):
        super().__init__()
        torch.manual_seed(0)
        layer, act = nn.Linear(6, 6), nn.ReLU(inplace=True)
        self.layers = nn.ModuleList(layer if shared else copy.deepcopy(layer) for _ in range(depth))
        self.acts = nn.ModuleList(act if shared else copy.deepcopy(act) for _ in range(depth))
        self.double()

    def forward(self, x):
        for layer, act in zip(self.layers, self.acts, strict=True):
            x = act(layer(x))
        return x


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
def test_a_layer_called_all_the_way_through_equals_its_copies(composite):
    """Also under First: only the first call is the first executed layer."""
    x = torch.randn(2, 6, dtype=torch.float64)
    equal(relevance(composite, Alternating(shared=True), x), relevance(composite, Alternating(shared=False), x))


class Recursive(nn.Module):
    """A model that calls itself, as a network over a tree does."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.head = nn.Linear(6, 6).double(), nn.Linear(6, 3).double()

    def forward(self, x, depth=2):
        if depth == 0:
            return x
        x = self(F.relu(self.layer(x)), depth - 1)
        return self.head(x) if depth == 2 else x


def test_a_model_that_calls_itself_equals_its_unrolled_twin():
    model = Recursive()
    layer = model.layer
    twin = nn.Sequential(layer, nn.ReLU(), copy.deepcopy(layer), nn.ReLU(), copy.deepcopy(model.head))
    x = torch.randn(2, 6, dtype=torch.float64)
    equal(relevance(ZPLUS, model, x), relevance(ZPLUS, twin, x))


@pytest.mark.parametrize("name", ["EpsilonPlusFlat", "EpsilonGammaBox", "GuidedBackprop", "CPLRP"])
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_forward_passes_before_a_backward_pass(name, order):
    model, x = network("residual")
    composite = PRESETS[name]()
    inputs = [x, torch.randn_like(x)]
    leaves = [v.clone().requires_grad_() for v in inputs]
    with composite.context(model):
        outputs = [model(leaf) for leaf in leaves]
        for i in order:
            outputs[i].backward(weighting(outputs[i]))
    for leaf, v in zip(leaves, inputs, strict=True):
        equal(leaf.grad, relevance(composite, model, v))


def test_one_backward_pass_over_two_forward_passes_adds_up():
    model, x = network("vgg")
    leaf = x.clone().requires_grad_()
    with ZPLUS.context(model):
        a, b = model(leaf), model(2 * leaf)
        torch.autograd.backward([a, b], [weighting(a), weighting(b)])
    # Relevance of 2 * leaf is with respect to that tensor; the chain rule leads on to the leaf.
    equal(leaf.grad, relevance(ZPLUS, model, x) + 2 * relevance(ZPLUS, model, 2 * x))


# --- contexts within contexts -----------------------------------------------------------------------------------


def test_the_inner_context_of_the_same_model_wins_until_it_ends():
    model, x = network("vgg")
    outer, inner = ZPLUS, every_layer(Gamma(1.0))
    found = []

    def run():
        leaf = x.clone().requires_grad_()
        output = model(leaf)
        output.backward(weighting(output))
        found.append(leaf.grad)

    with outer.context(model):
        run()
        with inner.context(model):
            run()
        run()
        with pytest.raises(ValueError, match="stop"), inner.context(model):
            raise ValueError("stop")
        run()
    for grad, composite in zip(found, (outer, inner, outer, outer), strict=True):
        equal(grad, relevance(composite, model, x))


@pytest.mark.parametrize("inner_first", [False, True])
@pytest.mark.parametrize("part", ["features", "classifier", "features.2"])
def test_a_submodule_with_a_context_of_its_own_has_its_own_rules(part, inner_first):
    """As if one composite had named the submodule's layers."""
    model, x = network("vgg")
    outer, inner = every_layer(Epsilon(0.1)), every_layer(Gamma(1.0))
    names = (f"{part}.*", part) if part != "features.2" else (part,)
    names = tuple(n for n in names if not isinstance(dict(model.named_modules()).get(n), nn.Sequential))
    twin = Composite([(names, Gamma(1.0)), (AnyLinear, Epsilon(0.1))])
    contexts = [outer.context(model), inner.context(model.get_submodule(part))]
    leaf = x.clone().requires_grad_()
    first, second = contexts[::-1] if inner_first else contexts
    with first, second:
        output = model(leaf)
        output.backward(weighting(output))
        again = x.clone().requires_grad_()
        output = model(again)
        output.backward(weighting(output))
    equal(leaf.grad, relevance(twin, model, x))
    equal(again.grad, leaf.grad)


def test_one_composite_on_two_models_and_two_on_two_interleaved():
    (one, x), (two, y) = network("vgg"), network("gates", seed=3)
    for first, second in ((ZPLUS, ZPLUS), (ZPLUS, composites.AttnLRP(0.1))):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        with first.context(one), second.context(two):
            p = one(a)
            q = two(b)
            p.backward(weighting(p), retain_graph=True)
            q.backward(weighting(q))
        equal(a.grad, relevance(first, one, x))
        equal(b.grad, relevance(second, two, y))


def test_two_models_with_a_common_part_under_two_composites():
    part = network("vgg")[0].features
    one = nn.Sequential(part, nn.Flatten(), nn.Linear(32, 3)).double()
    two = nn.Sequential(part, nn.Flatten(), nn.Linear(32, 2)).double()
    twins = copy.deepcopy(one), copy.deepcopy(two)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    rules = every_layer(ZPlus()), every_layer(Gamma(1.0))
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    with rules[0].context(one), rules[1].context(two):
        outputs = [m(v) for m, v in zip((one, two), leaves, strict=True)]
        for output in reversed(outputs):
            output.backward(weighting(output))
    for leaf, rule, twin in zip(leaves, rules, twins, strict=True):
        equal(leaf.grad, relevance(rule, twin, x))


# --- threads ---------------------------------------------------------------------------------------------------


def test_threads_explain_one_model_under_different_composites():
    """While two others run it as it is, and train nothing."""
    model, x = network("residual")
    names = [n for n in PRESETS if n not in ("AttnLRP", "CPLRP")]
    expected = {n: relevance(PRESETS[n](), copy.deepcopy(model), x) for n in names}
    plain = x.clone().requires_grad_()
    output = copy.deepcopy(model)(plain)
    output.backward(weighting(output))
    start = threading.Barrier(6)

    def explain(name):
        composite = PRESETS[name]()
        start.wait()
        return [relevance(composite, model, x) for _ in range(6)]

    def run(_):
        start.wait()
        grads = []
        for _ in range(10):
            leaf = x.clone().requires_grad_()
            out = model(leaf)
            grads.append(torch.autograd.grad(out, leaf, weighting(out))[0])
        return grads

    with ThreadPoolExecutor(6) as pool:
        plains = [pool.submit(run, i) for i in range(2)]
        ruled = {n: pool.submit(explain, n) for n in names[:4]}
        for future in plains:
            for grad in future.result():
                assert torch.equal(grad, plain.grad)
        for name, future in ruled.items():
            for grad in future.result():
                equal(grad, expected[name])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_threads_share_one_composite_on_models_of_their_own():
    composite = composites.EpsilonGammaBox(-3.0, 3.0)
    pairs = [network("vgg", seed=s) for s in range(4)]
    expected = [relevance(composite, m, x) for m, x in pairs]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda pair: lrp(pair[0], pair[1], lambda y: y * weighting(y), composite), pairs * 2))
    for grad, reference in zip(found, expected * 2, strict=True):
        equal(grad, reference)


def test_first_is_counted_anew_in_every_forward_pass():
    """In one context, after a forward pass that raised as well."""
    model, x = network("vgg")
    composite = on_first(Flat(), ZPlus())
    expected = relevance(composite, model, x)
    with composite.context(model):
        for bad in (False, True, False):
            if bad:
                with pytest.raises(RuntimeError):
                    model(torch.randn(2, 3, 1, 1, dtype=torch.float64, requires_grad=True)[:, :, :0])
                continue
            leaf = x.clone().requires_grad_()
            output = model(leaf)
            output.backward(weighting(output))
            equal(leaf.grad, expected)
