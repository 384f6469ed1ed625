"""Checkpoints of any kind change nothing: their part runs again as it ran at first, wherever and whenever that is."""

import functools
import inspect
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils import checkpoint as checkpoints

from lrphooks import Composite, audit, lrp
from lrphooks.matching import AnyLinear
from lrphooks.rules import AlphaBeta, Epsilon, Flat, Gamma, Gradient, Identity, Pass, TopRelevance, ZPlus
from small_networks import equal, every_layer, on_first, relevance, weighting

X = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# What torch logs for debug=True does not fit its own format, which pytest's handlers take for an error.
logging.getLogger("LoggingTensor").disabled = True


def once(function, *args):
    return function(*args)


def again(function, *args, **settings):
    return checkpoints.checkpoint(function, *args, use_reentrant=False, **settings)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2, self.norm = nn.Linear(6, 8), nn.Linear(8, 6), nn.LayerNorm(6)

    def forward(self, x):
        return F.relu(self.norm(x + self.fc2(F.gelu(self.fc1(x)))))


class Model(nn.Module):
    """Two blocks, run as ``way(blocks, x)``."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.blocks, self.head = nn.Linear(6, 6), nn.ModuleList([Block(), Block()]), nn.Linear(6, 3)
        self.way = way
        self.double().eval()

    def forward(self, x):
        return self.head(self.way(self.blocks, self.stem(x)))


def plainly(blocks, x):
    return blocks[1](blocks[0](x))


def saving_products():
    kept = [torch.ops.aten.mm.default, torch.ops.aten.addmm.default]
    return checkpoints.create_selective_checkpoint_contexts(kept)


def saving_everything():
    def policy(ctx, op, *args, **kwargs):
        return checkpoints.CheckpointPolicy.MUST_SAVE

    return checkpoints.create_selective_checkpoint_contexts(policy)


def offloaded(function, x):
    with torch.autograd.graph.save_on_cpu():
        return function(x)


def in_early_stop(stop):
    def way(blocks, x):
        with checkpoints.set_checkpoint_early_stop(stop):
            return again(functools.partial(plainly, blocks), x)

    return way


def by_generator(blocks, x):
    """What FSDP's checkpoint wrapper and the composable checkpoint come down to, a closure without arguments."""
    return again(lambda: plainly(blocks, x))


def in_place(blocks, x):
    return again(lambda t: plainly(blocks, t.mul(2).relu_().add_(t)), x)


WAYS = {
    "one": lambda blocks, x: again(functools.partial(plainly, blocks), x),
    "several": lambda blocks, x: again(blocks[1], again(blocks[0], x)),
    "of a part": lambda blocks, x: again(lambda t: F.gelu(blocks[0](t) * t), x),
    "nested": lambda blocks, x: again(lambda t: again(blocks[1], F.gelu(again(blocks[0], t))), x),
    "nested alone": lambda blocks, x: again(lambda t: again(blocks[1], again(blocks[0], t)), x),
    "nested thrice": lambda blocks, x: again(lambda t: again(lambda s: again(blocks[1], s), again(blocks[0], t)), x),
    "to its end": in_early_stop(stop=False),
    "stopped early": in_early_stop(stop=True),
    "selective": lambda blocks, x: again(functools.partial(plainly, blocks), x, context_fn=saving_products),
    "selective, all": lambda blocks, x: again(functools.partial(plainly, blocks), x, context_fn=saving_everything),
    "selective, of parts": lambda blocks, x: again(
        lambda t: again(blocks[1], blocks[0](t), context_fn=saving_products), x
    ),
    "debug": lambda blocks, x: again(functools.partial(plainly, blocks), x, debug=True),
    "unchecked": lambda blocks, x: again(functools.partial(plainly, blocks), x, determinism_check="none"),
    "other random numbers": lambda blocks, x: again(functools.partial(plainly, blocks), x, preserve_rng_state=False),
    "offloaded inside": lambda blocks, x: again(lambda t: offloaded(blocks[1], blocks[0](t)) * t, x),
    "offloaded as a whole": lambda blocks, x: again(lambda t: offloaded(functools.partial(plainly, blocks), t), x),
    "offloaded outside": lambda blocks, x: offloaded(lambda t: again(functools.partial(plainly, blocks), t), x),
    "a closure": by_generator,
    "in place": in_place,
    "a block twice": lambda blocks, x: again(blocks[0], again(blocks[0], x)),
    "by keyword": lambda blocks, x: again(lambda *, t: plainly(blocks, t), t=x),
}

#: Those that torch itself can run again only once, so that there is one backward pass, and no derivative of relevance.
ONCE = [way for way in WAYS if way.startswith(("selective", "debug"))]

WITHOUT = {
    "of a part": lambda blocks, x: F.gelu(blocks[0](x) * x),
    "nested": lambda blocks, x: blocks[1](F.gelu(blocks[0](x))),
    "offloaded inside": lambda blocks, x: plainly(blocks, x) * x,
    "in place": lambda blocks, x: plainly(blocks, (x * 2).relu() + x),
    "a block twice": lambda blocks, x: blocks[0](blocks[0](x)),
}

COMPOSITES = {
    "epsilon": every_layer(Epsilon(1e-3)),
    "z-plus": every_layer(ZPlus()),
    "gamma": every_layer(Gamma(0.3)),
    "alpha-beta": every_layer(AlphaBeta(2, 1)),
    "flat": on_first(Flat(), ZPlus()),
    "by module": Composite(
        [("blocks.0", Gradient()), ("blocks.1.fc1", Gamma(1.0)), (F.gelu, Identity()), (AnyLinear, ZPlus())]
    ),
    "pass": Composite([("blocks.0", Pass()), (AnyLinear, ZPlus())]),
}


def backward(output, leaf):
    (found,) = torch.autograd.grad(output, leaf, weighting(output), retain_graph=True)
    return found


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
@pytest.mark.parametrize("way", WAYS)
def test_relevance_is_that_without_checkpoints(way, composite):
    """Within the context, after it, in another thread after it, and as often as asked."""
    expected = relevance(composite, Model(WITHOUT.get(way, plainly)), X)
    model, leaf = Model(WAYS[way]), X.clone().requires_grad_()
    with composite.context(model):
        output = model(leaf)
        if way not in ONCE:
            equal(backward(output, leaf), expected)
    with ThreadPoolExecutor(1) as pool:
        equal(pool.submit(backward, output, leaf).result(), expected)
    if way not in ONCE:
        equal(backward(output, leaf), expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ONCE])
def test_derivatives_of_relevance_are_those_without_checkpoints(way):
    def trained(model):
        leaf = X.clone().requires_grad_()
        with COMPOSITES["epsilon"].context(model):
            output = model(leaf)
            (found,) = torch.autograd.grad(output, leaf, weighting(output), create_graph=True)
        wanted = [leaf, *model.parameters()]
        return torch.autograd.grad(found.square().sum(), wanted, allow_unused=True, materialize_grads=True)

    for found, expected in zip(trained(Model(WAYS[way])), trained(Model(WITHOUT.get(way, plainly))), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", WAYS)
def test_batched_backward_passes(way):
    model, leaf = Model(WAYS[way]), X.clone().requires_grad_()
    with COMPOSITES["z-plus"].context(model):
        output = model(leaf)
    seeds = torch.eye(3, dtype=X.dtype).unsqueeze(1).expand(-1, 3, -1)
    (found,) = torch.autograd.grad(output, leaf, seeds, is_grads_batched=True)
    for one, seed in zip(found, seeds, strict=True):
        equal(one, relevance(COMPOSITES["z-plus"], Model(WITHOUT.get(way, plainly)), X, seed), 1e-10)


@pytest.mark.parametrize("way", ["one", "nested", "selective", "selective, all", "offloaded inside"])
def test_the_audit_sees_what_it_sees_without_checkpoints(way):
    found, expected = (audit(Model(w), X, 1, COMPOSITES["epsilon"]) for w in (WAYS[way], WITHOUT.get(way, plainly)))
    assert [(row.name, row.rule) for row in found.operations] == [(row.name, row.rule) for row in expected.operations]
    torch.testing.assert_close(found.unexplained, expected.unexplained, rtol=0, atol=1e-12)


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
@pytest.mark.parametrize("way", ["plain", "one", "of a part", "a block twice"])
def test_a_checkpoint_around_the_model(way, composite):
    """Within the context, after it, and in a thread that has no context; the model may have checkpoints itself."""
    inner = WAYS.get(way, plainly)
    expected = relevance(composite, Model(WITHOUT.get(way, plainly)), X)
    model, leaf = Model(inner), X.clone().requires_grad_()
    with ThreadPoolExecutor(1) as pool:
        with composite.context(model):
            output = again(model, leaf)
            equal(backward(output, leaf), expected)
            equal(pool.submit(backward, output, leaf).result(), expected)
        equal(backward(output, leaf), expected)
        equal(pool.submit(backward, output, leaf).result(), expected)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    equal(leaf.detach(), X)


def test_a_checkpoint_around_a_model_and_more():
    """What is before and after the model has its own gradient, whatever runs again."""

    def whole(model, call):
        leaf = X.clone().requires_grad_()
        with COMPOSITES["gamma"].context(model):
            output = call(lambda t: model(t * 1).sin(), leaf)
        return backward(output, leaf)

    equal(whole(Model(plainly), again), whole(Model(plainly), once))


class Written(nn.Module):
    """A layer that the model writes out, and a function, in the forward pass of a module that has rules for them."""

    def __init__(self, call):
        super().__init__()
        self.weight, self.call = nn.Parameter(torch.randn(6, 6)), call

    def inner(self, x):
        return F.silu(F.silu(x @ self.weight.T) * x)

    def forward(self, x):
        return self.call(self.inner, x)


def test_a_checkpoint_around_a_function_keeps_the_rules_of_its_module():
    def model(call):
        torch.manual_seed(0)
        return nn.Sequential(Written(call), nn.Linear(6, 6), Written(call)).double()

    for rule in (Gradient(), Pass()):
        composite = Composite([("2", rule), (F.silu, Identity()), (AnyLinear, Gamma(0.5))])
        expected = relevance(composite, model(once), X)
        built, leaf = model(again), X.clone().requires_grad_()
        with composite.context(built):
            output = built(leaf)
        equal(backward(output, leaf), expected)


@pytest.mark.parametrize("inside", [True, False])
def test_a_part_with_a_context_of_its_own(inside):
    """A checkpoint in the part, or around it, runs again by the rules of the part."""

    def found(call):
        torch.manual_seed(0)
        part = nn.Sequential(nn.Linear(6, 6), Written(call if inside else once), nn.Linear(6, 6)).double()

        class Whole(nn.Module):
            def __init__(self):
                super().__init__()
                self.part, self.head = part, nn.Linear(6, 3).double()

            def forward(self, x):
                return self.head(part(x) if inside else call(part, x))

        model, leaf = Whole(), X.clone().requires_grad_()
        with every_layer(ZPlus()).context(model), every_layer(Gamma(0.5)).context(part):
            output = model(leaf)
            return backward(output, leaf)

    equal(found(again), found(once))


def test_the_default_device_is_that_of_the_first_time():
    """Also of a run in another thread, which has another one; so of a checkpoint without lrphooks."""
    seen = []

    def inner(x):
        seen.append(torch.get_default_device())
        return F.gelu(x @ x.T)

    class Whole(nn.Linear):
        def forward(self, x):
            return again(inner, super().forward(x)).sum(1)

    model = Whole(6, 6).double()
    with torch.device("meta"), every_layer(ZPlus()).context(model):
        output = model(X.clone().requires_grad_())
    plain = again(inner, X.clone().requires_grad_())
    output.sum().backward()
    assert seen[0] == torch.device("meta")
    assert len(seen) == 3
    if "device_ctx" in inspect.getsource(checkpoints):
        assert seen[2] == seen[0]
    assert plain.requires_grad


def test_a_model_may_call_itself_in_a_checkpoint():
    class Recursive(nn.Module):
        def __init__(self, call):
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.call = nn.Linear(6, 6).double(), call

        def forward(self, x, depth=2):
            y = F.gelu(self.fc(x))
            return self.call(self, y, depth - 1) if depth else y

    for composite in (COMPOSITES["gamma"], COMPOSITES["epsilon"]):
        equal(lrp(Recursive(again), X, 1, composite), lrp(Recursive(once), X, 1, composite))


class Residual(nn.Module):
    """x + f(norm(x)), whose input is the output of a layer, or rows of one that a norm before it keeps too."""

    def __init__(self, call, *, rows):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.norm, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.call, self.rows = call, rows
        self.double()

    def block(self, x):
        return self.fc2(self.norm(x + self.fc1(self.norm(x))))

    def forward(self, x):
        x = self.fc1(x)
        if not self.rows:
            return self.head(self.call(self.block, self.call(self.block, x)))
        x = x.view(-1, 6)
        return self.head(self.norm(x) + self.call(self.block, x))


def nested(function, *args):
    return again(lambda *a: again(function, *a), *args)


def nested_thrice(function, *args):
    return again(lambda *a: nested(function, *a), *args)


@pytest.mark.parametrize("rows", [False, True], ids=["layer", "rows"])
@pytest.mark.parametrize("call", [again, nested, nested_thrice])
@pytest.mark.parametrize("composite", [COMPOSITES["epsilon"], COMPOSITES["gamma"]], ids=["epsilon", "gamma"])
def test_a_residual_block_behind_a_layer(composite, call, rows):
    """A nested checkpoint runs again from another tensor than at first, of which less is known."""
    equal(lrp(Residual(call, rows=rows), X, 1, composite), lrp(Residual(once, rows=rows), X, 1, composite))


@pytest.mark.parametrize("call", [again, nested, nested_thrice])
@pytest.mark.parametrize("rule", [Epsilon(1e-3), Gamma(0.3)], ids=["epsilon", "gamma"])
def test_a_filter_sees_the_relevance_of_all_consumers_in_a_checkpoint(rule, call):
    composite = every_layer(TopRelevance(rule, 50))
    equal(lrp(Residual(call, rows=False), X, None, composite), lrp(Residual(once, rows=False), X, None, composite))
