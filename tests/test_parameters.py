"""Relevance of parameters: against plain derivatives, dense formulas, and the relevance of what they act on."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrphooks
from lrphooks import LRPError, explain, lrp
from lrphooks.rules import AlphaBeta, Epsilon, Flat, Gamma, TopRelevance, WSquare, ZBox, ZPlus
from small_networks import equal, every_layer, network

RULES = [Epsilon(0), Epsilon(0.1), Gamma(), ZPlus(), AlphaBeta()]


@pytest.mark.parametrize("name", ["vgg", "residual", "strange", "functional"])
def test_for_lrp_0_it_is_the_parameter_times_its_gradient(name):
    """In a network of linear layers, ReLU, pooling and BatchNorm."""
    model, x = network(name)
    asked = dict(model.named_parameters())
    gradients = torch.autograd.grad(model(x)[:, 1].sum(), list(asked.values()), allow_unused=True)
    found = explain(model, x, 1, every_layer(Epsilon(0)), parameters=True)
    assert list(found.parameters) == list(asked)
    for (key, p), gradient in zip(asked.items(), gradients, strict=True):
        equal(found.parameters[key], p.detach() * gradient)
    equal(found.relevance, lrp(model, x, 1, every_layer(Epsilon(0))))


def dense(x, layer, relevance, rule):
    """What flows through each weight and bias of a dense layer, contribution by contribution."""
    weight, bias = layer.weight.detach(), layer.bias.detach()
    c = x.unsqueeze(1) * weight  # (rows, outputs, inputs)
    b = bias.expand(len(x), -1)
    z = c.sum(2) + b

    def shared(c, b, stabilizer, relevance):
        total = c.sum(2) + b
        s = relevance / (total + stabilizer * torch.where(total < 0, -1.0, 1.0).double())
        return (c * s.unsqueeze(2)).sum(0), (b * s).sum(0)

    if isinstance(rule, Epsilon):
        w, of_bias = shared(c, b, rule.epsilon, relevance)
    elif isinstance(rule, ZPlus):
        w, of_bias = shared(c.clamp(min=0), b.clamp(min=0), 1e-6, relevance)
    elif isinstance(rule, AlphaBeta):
        up, bias_up = shared(c.clamp(min=0), b.clamp(min=0), 1e-6, 2 * relevance)
        down, bias_down = shared(-c.clamp(max=0), -b.clamp(max=0), 1e-6, relevance)
        w, of_bias = up - down, bias_up - bias_down
    else:
        rising = (z > 0).unsqueeze(2)
        c = c + 0.25 * torch.where(rising, c.clamp(min=0), c.clamp(max=0))
        b = b + 0.25 * torch.where(z > 0, b.clamp(min=0), b.clamp(max=0))
        w, of_bias = shared(c, b, 1e-6, relevance)
    return w, of_bias


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_dense_layers_against_the_formula(rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 4)).double()
    with torch.no_grad():
        model[4].bias.abs_()
    x = torch.randn(3, 6, dtype=torch.float64)
    found = explain(model, x, 1, every_layer(rule), record="*", parameters=True)
    for index in (0, 2, 4):
        hidden = model[:index](x).detach() if index else x
        weight, bias = dense(hidden, model[index], found.recorded[str(index)], rule)
        equal(found.parameters[f"{index}.weight"], weight, tol=1e-10)
        equal(found.parameters[f"{index}.bias"], bias, tol=1e-10)


@pytest.mark.parametrize("rule", [*RULES, TopRelevance(ZPlus(), 30), ZBox(-3.0, 3.0)], ids=repr)
def test_the_weights_of_a_layer_have_what_its_inputs_receive(rule):
    """And its bias what it absorbs."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).double()
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    composite = lrphooks.Composite([(nn.Conv2d, rule), (nn.Linear, Epsilon(0.01))])
    found = explain(model, x, 1, composite, parameters=True)
    assert float(found.parameters["0.weight"].sum()) == pytest.approx(found.total, rel=1e-9)
    alone, target = model[0], lambda y: (y * weights).sum((1, 2, 3))
    weights = torch.rand(4, 4, 4, dtype=torch.float64)
    report = lrphooks.audit(alone, x, target, every_layer(rule))
    of_bias = explain(alone, x, target, every_layer(rule), parameters=True).parameters["bias"]
    assert float(of_bias.sum()) == pytest.approx(report.sinks.get("bias", 0.0), rel=1e-9)


@pytest.mark.parametrize("rule", RULES[1:], ids=repr)
def test_a_merged_batch_norm(rule):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    model[1].running_mean.normal_()
    nn.init.normal_(model[1].weight)
    nn.init.normal_(model[1].bias)
    model, x = model.double().eval(), torch.randn(2, 2, 6, 6, dtype=torch.float64)
    found = explain(model, x, 1, every_layer(rule), parameters=True)
    merged = nn.Sequential(nn.Conv2d(2, 4, 3), *model[2:]).double()
    scale = model[1].weight / (model[1].running_var + 1e-5).sqrt()
    with torch.no_grad():
        merged[0].weight.copy_(model[0].weight * scale.reshape(-1, 1, 1, 1))
        merged[0].bias.copy_(model[1].bias - model[1].running_mean * scale)
    expected = explain(merged, x, 1, every_layer(rule), parameters=True)
    equal(found.parameters["0.weight"], expected.parameters["0.weight"], tol=1e-9)
    # The gain has what goes through its channel: all weights, and the part of the shift that it scales.
    total = expected.parameters["0.weight"].sum((1, 2, 3))
    if isinstance(rule, Epsilon):
        share = expected.parameters["0.bias"] / merged[0].bias.detach()
        equal(found.parameters["1.bias"], share * model[1].bias.detach(), tol=1e-9)
        equal(found.parameters["1.weight"], total - share * (model[1].running_mean * scale).detach(), tol=1e-9)


def test_rules_for_first_layers():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    x = torch.randn(3, 5, dtype=torch.float64)

    def of_weight(rule):
        composite = lrphooks.Composite([("0", rule), (nn.Linear, Epsilon(0.01))])
        return explain(model, x, 1, composite, record="0", parameters=True)

    assert not of_weight(Flat()).parameters["0.weight"].any()
    found = of_weight(WSquare(0.0))
    squares = model[0].weight.detach().square()
    expected = 2 * squares * (found.recorded["0"] / squares.sum(1)).sum(0).unsqueeze(1)
    equal(found.parameters["0.weight"], expected)
    assert not found.parameters["0.bias"].any()


class Every(nn.Module):
    """Parameters in every kind of place: a gain, an offset, an attention, a norm, a slope, a table."""

    def __init__(self):
        super().__init__()
        self.gain, self.offset = nn.Parameter(torch.randn(4)), nn.Parameter(torch.randn(4))
        self.norm, self.slope, self.qkv = nn.LayerNorm(4), nn.PReLU(), nn.Linear(4, 12)
        self.frozen = nn.Parameter(torch.randn(4), requires_grad=False)
        self.unused, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        h = x * self.gain + self.offset + self.frozen
        q, k, v = self.qkv(self.norm(self.slope(h))).chunk(3, -1)
        return self.head((h + (q @ k.transpose(1, 2)).softmax(-1) @ v).mean(1))


def test_parameters_in_every_kind_of_place():
    """A factor has all that goes through it, a summand its own part."""
    torch.manual_seed(0)
    model, x = Every().double(), torch.randn(2, 3, 4, dtype=torch.float64)
    nn.init.normal_(model.norm.bias)
    composite = lrphooks.composites.CPLRP(0)
    found = explain(model, x, 1, composite, record=["norm", "slope", "qkv"], parameters=True)
    assert "frozen" not in found.parameters
    assert not found.parameters["unused.weight"].any()
    assert all(p.grad is None for p in model.parameters())
    # The relevance of x passes its gain, channel by channel.
    equal(found.parameters["gain"], found.relevance.sum((0, 1)))
    h = (x * model.gain + model.offset + model.frozen).detach()
    arrives = (found.relevance / (x * model.gain).detach()) * h
    equal(found.parameters["offset"], (arrives / h * model.offset.detach()).sum((0, 1)))
    normed = found.recorded["norm"]
    output = model.norm(model.slope(h)).detach()
    equal(found.parameters["norm.bias"], (normed / output * model.norm.bias.detach()).sum((0, 1)))
    equal(found.parameters["norm.weight"], (normed / output * (output - model.norm.bias.detach())).sum((0, 1)))
    assert float(found.parameters["qkv.weight"].sum()) == pytest.approx(float(normed.sum()), rel=1e-9)
    negative = torch.where(h < 0, found.recorded["slope"], 0)
    assert float(found.parameters["slope.weight"].sum()) == pytest.approx(float(negative.sum()), rel=1e-9)


def test_gradients_of_parameters_stay_as_they_are():
    model, x = network("vgg")
    F.cross_entropy(model(x), torch.tensor([1, 2])).backward()
    before = [p.grad.clone() for p in model.parameters()]
    explain(model, x, 1, parameters=True)
    for p, gradient in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.grad, gradient)


def test_a_model_without_parameters_that_could_have_relevance():
    model = nn.Sequential(nn.Linear(3, 2)).requires_grad_(False)
    with pytest.raises(LRPError, match=r"explain: no parameter of the model requires a gradient.*requires_grad_\(\)"):
        explain(model, torch.randn(2, 3), 0, parameters=True)
