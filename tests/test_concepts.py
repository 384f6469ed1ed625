"""Conditional relevance, relevant channels and maximising inputs, against masks written out on small networks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrphooks
from counting import Work
from lrphooks import LRPError, concepts, explain, lrp
from lrphooks.baselines import InputXGradient
from lrphooks.composites import AttnLRP, EpsilonPlus
from lrphooks.concepts import Channels, Heads, conditional_relevance, maximizing_inputs, relevant_channels
from lrphooks.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from small_networks import equal, every_layer, network

RULES = [Epsilon(0), Epsilon(0.1), Gamma(), ZPlus(), AlphaBeta(), Flat(), WSquare(), ZBox(-3.0, 3.0)]
BUDGETS = [1, 2**30]


def chain():
    """Convolutions, one with a BatchNorm, and dense layers, one after the other."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(),
        nn.Linear(20, 6), nn.ReLU(), nn.Linear(6, 3),
    )  # fmt: skip
    model[3].running_mean.normal_(0, 0.2)
    with torch.no_grad():
        # Every channel is at work, so that each test has something to test.
        model[3].bias += 0.7
        model[6].bias += 0.7
        model[8].weight[1].abs_()
    return model.double().eval(), torch.randn(2, 2, 6, 6, dtype=torch.float64)


LAYERS = {"0": 4, "1": 4, "2": 5, "3": 5, "4": 5, "6": 6, "7": 6, "8": 3}


class Masked(nn.Module):
    """Explains what an activation is worth: its values, with a target that weighs them by the relevance kept."""

    def __init__(self, part):
        super().__init__()
        self.part = part

    def forward(self, x):
        return self.part(x)


def seeded(part, x, relevance, composite):
    """The relevance of x where that of a part's output is given."""
    return lrp(Masked(part), x, lambda out: (out * relevance / torch.where(out == 0, 1, out).detach()).sum(), composite)


@pytest.mark.parametrize("rule", RULES, ids=repr)
@pytest.mark.parametrize("layer", LAYERS)
def test_all_channels_together_are_the_whole_relevance(layer, rule):
    model, x = chain()
    each = conditional_relevance(model, x, [{layer: c} for c in range(LAYERS[layer])], 1, every_layer(rule))
    equal(sum(each), lrp(model, x, 1, every_layer(rule)), tol=1e-10)
    several = conditional_relevance(model, x, {layer: range(2)}, 1, every_layer(rule))
    equal(several, each[0] + each[1], tol=1e-10)


@pytest.mark.parametrize("rule", RULES[:5], ids=repr)
@pytest.mark.parametrize(("layer", "cut"), [("1", 2), ("3", 4), ("4", 5), ("7", 8)])
def test_only_the_relevance_of_the_channel_goes_on(layer, cut, rule):
    """What arrives at the output of the layer, masked by hand, and handed on by the part of the model below it."""
    model, x = chain()
    composite = every_layer(rule)
    hidden = model[:cut](x).detach()
    arrives = lrp(model[cut:], hidden, 1, composite)
    for channel in (0, 2):
        kept = torch.zeros_like(arrives)
        kept[:, channel] = arrives[:, channel]
        found = conditional_relevance(model, x, {layer: channel}, 1, composite)
        equal(found, seeded(model[:cut], x, kept, composite), tol=1e-9)


@pytest.mark.parametrize("budget", BUDGETS, ids=["one by one", "together"])
@pytest.mark.parametrize("rule", [Epsilon(0.1), ZPlus(), Gamma(), Flat()], ids=repr)
def test_conditions_on_several_modules(rule, budget):
    model, x = chain()
    composite = every_layer(rule)
    conditions = [{"1": 0, "4": [1, 3]}, {"4": 2}, {"7": [0, 1], "1": 3}, {"4": [1, 3], "1": 1}, {"7": 1}]
    found = conditional_relevance(model, x, conditions, 1, composite, budget=budget)
    for condition, relevance in zip(conditions, found, strict=True):
        equal(relevance, conditional_relevance(model, x, condition, 1, composite), tol=1e-12)
    # Of two modules one after the other, the channels of the lower add up to the condition on the upper alone.
    each = conditional_relevance(model, x, [{"4": 2, "1": c} for c in range(4)], 1, composite, budget=budget)
    equal(sum(each), found[1], tol=1e-10)


class Skips(nn.Module):
    """A residual sum past the named module."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = F.relu(self.stem(x))
        return self.head(h + self.body(h))


def test_what_goes_past_the_module_is_left_out():
    model, x = Skips().double(), torch.randn(3, 3, dtype=torch.float64)
    each = conditional_relevance(model, x, [{"body": c} for c in range(4)], 1, every_layer(Epsilon(0)))
    active = (model.stem(x) > 0).double()
    for channel, found in enumerate(each):
        # For LRP-0 the product of the weights along the path, times the input.
        path = model.head.weight[1, channel] * model.body.weight[channel] * active
        equal(found, (path @ model.stem.weight * x).detach())
    assert (sum(each) - lrp(model, x, 1, every_layer(Epsilon(0)))).abs().max() > 1e-3
    # Both ways are all there is.
    past = conditional_relevance(model, x, {"stem": range(4)}, 1, every_layer(Epsilon(0))) - sum(each)
    equal(past, ((model.head.weight[1] * active) @ model.stem.weight * x).detach())


def test_modules_beside_each_other_have_no_relevance_in_common():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x):
            return self.a(x) + self.b(x)

    model, x = Beside(), torch.randn(2, 3)
    found = conditional_relevance(model, x, [{"a": 0, "b": 0}, {"a": 0}], 0, every_layer(Epsilon(0)))
    assert torch.equal(found[0], torch.zeros_like(x))
    torch.testing.assert_close(found[1], x * model.a.weight.detach()[0])


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.join, self.proj, self.head = nn.Linear(8, 24), nn.Identity(), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        heads = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
        return self.head(x + self.proj(self.join(heads.transpose(1, 2).flatten(2)))).mean(1)


def test_heads_of_attention():
    torch.manual_seed(0)
    model, x = Attention().double(), torch.randn(2, 5, 8, dtype=torch.float64)
    conditions = [{"join": Heads(0, of=2)}, {"join": Heads([1], of=2)}, {"join": range(4)}, {"join": Channels(7)}]
    first, second, four, last = conditional_relevance(model, x, conditions, 1, AttnLRP(0))
    equal(first, four)
    singles = conditional_relevance(model, x, [{"join": c} for c in range(4, 8)], 1, AttnLRP(0))
    equal(second, sum(singles))
    equal(last, singles[3])
    through = conditional_relevance(model, x, {"proj": range(8)}, 1, AttnLRP(0))
    equal(first + second, through, tol=1e-10)


def test_many_conditions_take_one_forward_pass():
    model, x = network("tokens")
    conditions = [{"fc1": c} for c in range(8)]
    with Work() as one:
        conditional_relevance(model, x, conditions[:1], 1, AttnLRP())
    with Work() as many:
        conditional_relevance(model, x, conditions, 1, AttnLRP())
    # Eight times as many backward passes, of which most are batched.
    assert many.products < 3 * one.products


class Opaque(torch.autograd.Function):
    """A function that torch cannot batch."""

    @staticmethod
    def forward(ctx, x):
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        return gradient * (2.0 if float(gradient.sum()) > -1e9 else 0.0)


def test_what_cannot_be_batched_is_served_one_by_one():
    class Doubling(nn.Module):
        def forward(self, x):
            return Opaque.apply(x)

    model, x = nn.Sequential(nn.Linear(3, 4), Doubling(), nn.Linear(4, 3)), torch.randn(2, 3)
    composite = lrphooks.Composite([(nn.Linear, Epsilon(0))], unmatched="gradient")
    each = conditional_relevance(model, x, [{"1": c} for c in range(4)], 0, composite)
    torch.testing.assert_close(sum(each), lrp(model, x, 0, composite))


def test_inputs_in_structures():
    model, x = Skips(), torch.randn(3, 3)

    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, a, b=None):
            return self.inner(a["x"] + b)

    found = conditional_relevance(Pair(), ({"x": x},), {"inner.body": 1}, 0, EpsilonPlus(), kwargs={"b": x})
    (positional,), keyword = found
    torch.testing.assert_close(positional["x"] + keyword["b"], conditional_relevance(model, 2 * x, {"body": 1}, 0))


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_the_most_relevant_channels(rule):
    model, x = chain()
    for layer, count in LAYERS.items():
        recorded = explain(model, x, 1, every_layer(rule), record=layer).recorded[layer]
        totals = recorded.flatten(2).sum(2) if recorded.dim() > 2 else recorded
        found = relevant_channels(model, x, layer, 1, every_layer(rule), top=2)
        for row in range(2):
            ranked = sorted(range(count), key=lambda c: -float(totals[row, c]))[:2]
            values = [float(totals[row, c]) for c in ranked]
            assert found.relevance[row].tolist() == pytest.approx(values, rel=1e-9, abs=1e-12)
            if values[0] != values[1]:
                assert found.channels[row, 0] == ranked[0]


def test_the_channels_of_tokens_are_the_last_dimension():
    model, x = network("tokens")
    recorded = explain(model, x, 1, AttnLRP(), record="fc1").recorded["fc1"]
    found = relevant_channels(model, x, "fc1", 1, AttnLRP(), top=12)
    equal(found.relevance, recorded.sum(1).sort(1, descending=True).values)


BATCHES = list(torch.randn(23, 2, 6, 6, dtype=torch.float64).split(5))


@pytest.mark.parametrize("pool", ["sum", "max"])
@pytest.mark.parametrize("by", ["relevance", "activation"])
def test_the_inputs_that_maximise_channels(by, pool):
    """The same as if all data were explained at once and sorted."""
    model, _ = chain()
    data = torch.cat(BATCHES)
    layer = "4"
    if by == "relevance":
        values = explain(model, data, None, EpsilonPlus(), record=layer).recorded[layer]
    else:
        values = model[:5](data).detach()
    scores = values.flatten(2).sum(2) if pool == "sum" else values.flatten(2).amax(2)
    best = scores.sort(dim=0, descending=True)
    found = maximizing_inputs(model, iter(BATCHES), layer, [3, 0], by=by, top=4, pool=pool)
    assert found.channels.tolist() == [3, 0]
    equal(found.scores, best.values[:4, [3, 0]].t())
    # Where several inputs are equal, any may come first.
    equal(scores.t()[[3, 0]].gather(1, found.inputs), found.scores)
    everything = maximizing_inputs(model, BATCHES, layer, by=by, top=50, pool=pool)
    assert everything.scores.shape == (5, 23)
    equal(everything.scores, best.values.t())
    equal(scores.t().gather(1, everything.inputs), everything.scores)
    assert all(len(set(row)) == 23 for row in everything.inputs.tolist())


def test_targets_come_with_the_data():
    model, _ = chain()
    labels = [torch.randint(3, (len(batch),)) for batch in BATCHES]
    values = explain(model, torch.cat(BATCHES), torch.cat(labels), record="7").recorded["7"]
    best = values.sort(dim=0, descending=True)
    for pairs in (zip(BATCHES, labels, strict=True), [list(pair) for pair in zip(BATCHES, labels, strict=True)]):
        found = maximizing_inputs(model, pairs, "7", top=3)
        equal(found.scores, best.values[:3].t())


def test_the_model_is_left_as_it_was():
    model, x = chain()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    conditional_relevance(model, x, {"4": 1})
    maximizing_inputs(model, BATCHES, "4", 1, by="activation")
    with pytest.raises(ValueError, match="does not fit"):
        conditional_relevance(model, x, {"4": 99})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.pair = nn.Linear(3, 3), Split()

    def forward(self, x):
        a, b = self.pair(self.layer(self.layer(x)))
        return a + b


class Split(nn.Module):
    def forward(self, x):
        return x * 2, x * 3


CONV, IMAGES = chain()
CONV1D = nn.Sequential(nn.Conv1d(2, 4, 3), nn.Sequential(nn.ReLU()), nn.Flatten(), nn.Linear(16, 2))
SEQUENCES, PLAIN = torch.randn(1, 2, 6), torch.randn(2, 3)


@pytest.mark.parametrize(
    ("model", "x", "condition", "error", "message"),
    [
        (CONV, IMAGES, {"4": 5}, ValueError, r"does not fit .* module '4' \(ReLU\).*no 5 among 5 \(0 to 4\)"),
        (CONV, IMAGES, {"4": -1}, ValueError, r"there is no -1 among 5"),
        (CONV, IMAGES, {"4": []}, TypeError, r"Channels: indices are one integer or several, got \[\]"),
        (CONV, IMAGES, {"4": "1"}, TypeError, r"indices are one integer or several, got '1'"),
        (CONV, IMAGES, {"4": 1.0}, TypeError, r"indices are one integer or several, got 1\.0"),
        (CONV, IMAGES, {"6": Heads(0, of=4)}, ValueError, r"dimension -1 has 6 values, which 4 heads cannot share"),
        (CONV, IMAGES, {"layer": 1}, LRPError, r"no module of the model is named 'layer'"),
        (CONV, IMAGES, {"?": 1}, LRPError, r"'\?' stands for 9 modules \('0', '1', '2', '3', \.\.\.\); name one"),
        (CONV, IMAGES, {}, TypeError, r"a condition is a mapping of modules to channels.*got \{\}"),
        (CONV, IMAGES, [], TypeError, r"conditions are a mapping.*got none"),
        (CONV, IMAGES, ["4"], TypeError, r"a condition is a mapping of modules to channels.*got '4'"),
        (Twice(), PLAIN, {"layer": 0}, LRPError, r"module 'layer' \(Linear\) ran 2 times, so its channels are not one"),
        (Twice(), PLAIN, {"pair": 0}, LRPError, r"module 'pair' \(Split\) returned 2 tensors"),
        (CONV1D, SEQUENCES, {"1": 0}, LRPError, r"module '1' .* cannot be told, since .* Conv1d too.*indices, dim=1\)"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, dict) else "",
)  # fmt: skip
def test_conditions_that_the_model_does_not_have(model, x, condition, error, message):
    with pytest.raises(error, match=message):
        conditional_relevance(model, x, condition, 0, EpsilonPlus())


def test_the_dimension_may_be_said():
    found = [conditional_relevance(CONV1D, SEQUENCES, {name: Channels(1, dim=1)}, 0) for name in ("0", "1")]
    assert torch.equal(*found)
    assert torch.equal(found[0], conditional_relevance(CONV1D, SEQUENCES, {"0": 1}, 0))
    with pytest.raises(ValueError, match=r"Heads: of is how many heads there are, at least 1, got 0"):
        Heads(0, of=0)


def test_wrong_options():
    with pytest.raises(LRPError, match=r"InputXGradient\(\) tells nothing of channels"):
        conditional_relevance(CONV, IMAGES, {"4": 1}, 0, InputXGradient())
    with pytest.raises(ValueError, match=r"relevant_channels: top is how many channels are wanted, 1 to 5, got 6"):
        relevant_channels(CONV, IMAGES, "4", 0, top=6)
    for option, message in (
        ({"by": "gradient"}, r"by is one of \('relevance', 'activation'\), got 'gradient'"),
        ({"pool": "mean"}, r"pool is one of \('sum', 'max'\), got 'mean'"),
        ({"top": 0}, r"top is how many inputs are kept for each channel, at least 1, got 0"),
        ({"channels": 7}, r"there is no channel 7 among 5"),
    ):
        with pytest.raises(ValueError, match=f"maximizing_inputs: {message}"):
            maximizing_inputs(CONV, BATCHES, "4", **option)
    with pytest.raises(ValueError, match=r"data holds no batch"):
        maximizing_inputs(CONV, iter(()), "4")


def test_the_names_of_the_module():
    assert all(hasattr(concepts, name) for name in concepts.__all__)
