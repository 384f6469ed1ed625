"""The audit: its books balance on any model, each sink has a closed form, and a wrong rule is found and named."""

import gc
import json
import sys
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import lrphooks
from lrphooks import Composite, LRPError, audit, composites, lrp
from lrphooks.engine.handlers import elementwise
from lrphooks.matching import Activation, AnyLinear
from lrphooks.rules import Epsilon, Flat, Gradient, Pass, WSquare, ZBox, ZPlus
from small_networks import NETWORKS, PRESETS, network

EXACT = Composite([(AnyLinear, Epsilon(0))])


@pytest.mark.parametrize("name", NETWORKS)
def test_the_books_balance_under_every_preset(name):
    for preset, make in PRESETS.items():
        composite = make(0.1, 0.1)
        if composite.attribution != "relevance":
            continue
        model, x = network(name)
        report = audit(model, x, 0, composite)
        assert report.unexplained < 1e-12, (preset, report)
        assert not report.imbalances, (preset, report)
        assert not report.fallbacks
        torch.testing.assert_close(report.output, float(model(x)[:, 0].sum().detach()), rtol=1e-12, atol=0)
        torch.testing.assert_close(report.relevance, float(lrp(model, x, 0, composite).sum()), rtol=1e-9, atol=1e-12)


def test_the_sinks_of_a_dense_layer_are_those_of_the_formula():
    """R = a w (z / (z + e sign z)), so the bias takes b z / (z + e sign z) and the stabilizer the rest."""
    torch.manual_seed(0)
    model, x = nn.Linear(4, 3).double(), torch.randn(2, 4, dtype=torch.float64)
    z, bias = model(x).detach()[:, 1], model.bias[1].item()
    share = z / (z + 0.25 * z.sign())
    report = audit(model, x, 1, Composite([(AnyLinear, Epsilon(0.25))]))
    assert set(report.sinks) == {"bias", "stabilizer"}
    assert report.sinks["bias"] == pytest.approx(float((share * bias).sum()), rel=1e-12)
    assert report.sinks["stabilizer"] == pytest.approx(float((z - share * z).sum()), rel=1e-12)
    row = report.layers[0]
    assert (row.type, row.rule) == ("Linear", "Epsilon(epsilon=0.25)")
    assert row.arrived == pytest.approx(float(z.sum()), rel=1e-12)
    assert row.handed == pytest.approx(report.relevance, rel=1e-12)
    assert row.absorbed == pytest.approx(sum(report.sinks.values()), rel=1e-12)


class Positioned(nn.Module):
    """Constants that are added, joined and filled in."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.position, self.token = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(1, 1, 4))
        self.head = nn.Linear(4, 1, bias=False)

    def forward(self, x):
        x = torch.cat((self.token.expand(len(x), -1, -1), x + self.position), 1) + 0.5
        return self.head(x).sum(1)


def test_constants_are_a_sink_of_their_own():
    model, x = Positioned().double(), torch.randn(2, 3, 4, dtype=torch.float64)
    weight = model.head.weight[0].detach()
    constants = 2 * float(
        (model.position.detach() @ weight).sum() + model.token.detach().flatten() @ weight + 4 * 0.5 * weight.sum()
    )
    report = audit(model, x, 0, EXACT)
    assert report.sinks == {"constants": pytest.approx(constants, rel=1e-12)}
    assert report.unexplained < 1e-14


@pytest.mark.parametrize("write", ["whole", "view", "part", "both"])
def test_constants_written_in_place_are_seen_through_every_view(write):
    class Writes(nn.Module):
        def forward(self, x):
            y = x * 2.0
            z = y.view(2, 2, 3)
            if write == "whole":
                y += 1.5
            elif write == "view":
                z += 1.5
            else:
                z[:, 1] += 1.5
            return (y.flatten(1) + z.flatten(1)).sum(1) if write == "both" else y.sum(1)

    x = torch.randn(2, 6, dtype=torch.float64)
    report = audit(Writes(), x, 0, EXACT)
    count = {"whole": 12, "view": 12, "part": 6, "both": 12}[write]
    assert report.sinks == {"constants": pytest.approx(1.5 * count, rel=1e-12)}
    assert report.unexplained < 1e-14


def test_the_offset_of_a_softmax():
    """AttnLRP expands p = softmax(s) at s: p - J s is left over."""
    s = torch.tensor([[0.3, -1.2, 2.0]], dtype=torch.float64)
    p = s.softmax(-1)
    expanded = p * (s - (p * s).sum(-1, keepdim=True))
    report = audit(nn.Softmax(-1), s, 2, EXACT)
    assert report.sinks == {"softmax offset": pytest.approx(float((p - expanded)[0, 2]), rel=1e-12)}
    assert report.relevance == pytest.approx(float(expanded[0, 2]), rel=1e-12)


def test_relevance_that_falls_on_zeros_is_counted():
    """Without a way for relevance itself, w-square above a custom function loses what falls on inputs that are 0."""

    class Hidden(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clamp(min=0)

        @staticmethod
        def backward(ctx, gradient):
            return gradient

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2, bias=False)

        def forward(self, x):
            return self.head(Hidden.apply(x * 1.0))

    torch.manual_seed(0)
    model, x = Model().double(), torch.tensor([[1.0, -2.0, 3.0, -4.0]], dtype=torch.float64)
    w = model.head.weight[0].detach().square()
    report = audit(model, x, 0, Composite([(Hidden, Gradient()), (AnyLinear, WSquare(0.0))]))
    lost = report.output * float(w[[1, 3]].sum() / w.sum())
    assert report.sinks["zeros"] == pytest.approx(lost, rel=1e-12)
    assert report.hidden == {"Hidden": 1}
    assert "is not known: Hidden (1)." in str(report)


@pytest.mark.parametrize("rule", [Flat(), WSquare(), ZBox(-4, 4), ZPlus(), Epsilon(0)], ids=repr)
def test_relevance_that_travels_as_such_is_in_the_books(rule):
    model, x = network("vgg")
    report = audit(model, x, 0, Composite([(Activation, Pass()), (AnyLinear, rule)]))
    assert report.unexplained < 1e-12
    assert not report.imbalances


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)

    def forward(self, x):
        return self.last(F.gelu(self.first(x)))


def test_a_planted_wrong_rule_is_unexplained_and_named(monkeypatch):
    """A node that hands on twice what it should."""
    model, x = Twice().double(), torch.randn(3, 4, dtype=torch.float64)
    assert audit(model, x, 0).unexplained < 1e-14
    right = elementwise._RATIOS["gelu", "none"]
    monkeypatch.setitem(elementwise._RATIOS, ("gelu", "none"), lambda gradient, a: 2 * right(gradient, a))
    report = audit(model, x, 0)
    assert report.unexplained > 0.01
    assert [row.operation for row in report.imbalances] == ["gelu"]
    assert "gelu under Identity() in the model" in str(report)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_what_the_precision_cannot_tell_is_not_named(monkeypatch, dtype):
    torch.manual_seed(0)
    model, x = Twice().to(dtype), torch.randn(3, 4, dtype=dtype)
    right = elementwise._RATIOS["gelu", "none"]
    monkeypatch.setitem(elementwise._RATIOS, ("gelu", "none"), lambda gradient, a: right(gradient, a) * (1 + 2e-5))
    report = audit(model, x, 0)
    if dtype == torch.float64:
        assert report.unexplained > 1e-6
    assert bool(report.imbalances) == (dtype == torch.float64)


def test_a_layer_rule_that_loses_relevance_is_named(monkeypatch):
    model, x = Twice().double(), torch.randn(3, 4, dtype=torch.float64)
    from lrphooks.layers.linear_map import Dense

    right = Dense.transpose
    monkeypatch.setattr(
        Dense, "transpose", lambda self, g, a, w: right(self, g, a, w) * (1.5 if a.shape[-1] == 6 else 1)
    )
    report = audit(model, x, 0)
    assert report.unexplained > 0.01
    assert [(row.operation, row.module) for row in report.imbalances] == [("linear", "last")]


class Unheard(nn.Module):
    def forward(self, x):
        return torch.cholesky_inverse(x @ x.mT + 4 * torch.eye(4, dtype=x.dtype)).flatten(1)


def test_an_operation_without_a_rule_is_listed():
    x = torch.randn(2, 4, 4, dtype=torch.float64)
    report = audit(Unheard(), x, 0, Composite([(AnyLinear, Epsilon(0))], unmatched="gradient"))
    assert [(row.name, row.count) for row in report.fallbacks] == [("cholesky_inverse", 1)]
    assert report.unexplained < 1e-12
    assert "unruled" in report.sinks
    assert "no rule: plain gradient" in str(report)


def test_a_target_that_is_not_linear_keeps_its_part():
    model, x = Twice().double(), torch.randn(3, 4, dtype=torch.float64)
    report = audit(model, x, lambda output: output[:, 0] - 7.0)
    assert report.sinks["target"] == pytest.approx(-21.0, rel=1e-12)
    assert report.unexplained < 1e-14


def test_residual_blocks_hand_on_what_they_do_not_absorb():
    model, x = network("residual")
    report = audit(model, x, 0, composites.EpsilonGammaBox(-4.0, 4.0))
    for row in report.layers:
        assert row.arrived == pytest.approx(row.handed + row.absorbed, abs=1e-12), row
    assert {row.name for row in report.layers} >= {"", "stem", "conv1", "fc"}


def test_the_report_is_plain_data_and_prints_as_a_table():
    model, x = network("tokens")
    report = audit(model, x, 0)
    assert json.loads(json.dumps(report.to_dict()))["unexplained"] == report.unexplained
    text = str(report)
    for part in (
        "f(x)",
        "relevance of the inputs",
        "absorbed: bias",
        "unexplained",
        "module",
        "operation",
        "layer_norm",
    ):
        assert part in text


def test_the_model_is_left_as_it_was():
    model, x = network("residual")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    audit(model, x, 0)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_nothing_is_kept_after_it():
    """The graph of an explanation and the records of it refer to each other."""
    made = []

    class Counted(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            made.append(weakref.ref(out))
            return out

    model = nn.Sequential(Counted(4, 4), nn.ReLU(), Counted(4, 4), nn.ReLU(), Counted(4, 2))
    gc.disable()
    try:
        audit(model, torch.randn(2, 4), 0, Composite([(AnyLinear, Flat())]))
        lrp(model, torch.randn(2, 4), 0)
        assert len(made) == 6
        assert not [ref for ref in made if ref() is not None]
    finally:
        gc.enable()


def test_a_gradient_has_no_books():
    with pytest.raises(LRPError, match=r"audit: .*GuidedReLU.*no books to balance"):
        audit(*network("vgg"), 0, composites.GuidedBackprop())
    assert audit(*network("vgg"), 0, Composite([(AnyLinear, Gradient())])).unexplained < 1e-12


def test_it_is_public():
    assert lrphooks.audit is audit


@pytest.mark.parametrize("carrying", ["query key value", "value", "query key"])
def test_fused_attention_with_constant_weights(carrying):
    """softmax(q k^T) v is linear in v: all that arrives goes there, or to the rule where v carries none."""

    class Model(nn.Module):
        def forward(self, x):
            q, k, v = (x * scale if name in carrying else x.detach() * scale for name, scale in scales.items())
            return F.scaled_dot_product_attention(q, k, v).flatten(1) + x.flatten(1)

    scales = {"query": 1, "key": 2, "value": 3}
    x = torch.linspace(-1, 1.5, 24, dtype=torch.float64).reshape(2, 3, 4)
    report = audit(Model(), x, 5, composites.CPLRP(epsilon=0))
    attended = F.scaled_dot_product_attention(x, 2 * x, 3 * x).flatten(1)[:, 5].sum()
    assert report.unexplained < 1e-14
    assert not report.imbalances
    assert report.sinks.get("rule", 0.0) == pytest.approx(0.0 if "value" in carrying else float(attended), abs=1e-14)


# --- what it holds ---


def held_by(recorder):
    """The bytes of all tensors that a recorder holds by itself, those of the graph left out."""
    waiting, seen, storages = [recorder.records, recorder.result], set(), {}
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            if thing.grad_fn is None:
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        elif type(thing).__name__ in ("list", "tuple", "dict", "Record", "Flow", "Seen", "Call", "function", "cell"):
            waiting += gc.get_referents(thing)
    return sum(storages.values())


class Chain(nn.Module):
    """Ten results, each of which two operations take."""

    def forward(self, x):
        for _ in range(5):
            x = x.tanh() * x
        return x.sum(-1, keepdim=True)


def test_each_activation_is_kept_once_and_so_is_each_gradient(monkeypatch):
    """The operations that make and take an activation share its copy; what an operand receives is summed up."""
    found = []
    report = sys.modules["lrphooks.audit"]._report
    monkeypatch.setattr(
        sys.modules["lrphooks.audit"], "_report", lambda r, *a: found.append(held_by(r)) or report(r, *a)
    )
    x = torch.linspace(0.5, 1.5, 1000, dtype=torch.float64)[None]
    audit(Chain(), x, 0, EXACT)
    activations, gradients, one = 11, 10, x.untyped_storage().nbytes()
    assert (activations + gradients - 1) * one < found[0] <= (activations + gradients) * one + 200


class Modulated(nn.Module):
    """A layer whose output is multiplied by a value of the input that has left the graph."""

    def __init__(self, take):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.take = nn.Linear(4, 3).double(), take

    def forward(self, x):
        z = self.layer(x)
        return z * self.take(z)


TAKES = {
    "detach": lambda z: z.detach().abs(),
    "data": lambda z: z.data.abs(),
    "item": lambda z: z.sum().item(),
    "numpy": lambda z: torch.from_numpy(z.detach().numpy().copy()),
    "tolist": lambda z: torch.tensor(z.tolist(), dtype=z.dtype),
}


@pytest.mark.parametrize("name", TAKES)
def test_where_values_leave_the_graph_is_listed(name):
    """As a constant factor they absorb nothing, so the books balance without them."""
    x = torch.randn(2, 4, dtype=torch.float64)
    report = audit(Modulated(TAKES[name]), x, 0, Composite([(AnyLinear, Epsilon(0))]))
    assert report.unexplained < 1e-14
    how = "detach" if name == "numpy" else name
    line = TAKES[name].__code__.co_firstlineno
    assert report.taken_out == {f"{how} in the model (Modulated) ({__file__}:{line})": 1}
    assert f"constant from there on: {how} in the model" in str(report)
    assert report.to_dict()["taken_out"] == report.taken_out


def test_where_gradients_are_disabled_is_listed():
    def take(z):
        with torch.no_grad():
            return z * 2.0

    x = torch.randn(2, 4, dtype=torch.float64)
    with pytest.warns(UserWarning, match="runs under"):
        report = audit(Modulated(take), x, 0, Composite([(AnyLinear, Epsilon(0))]))
    (where,) = report.taken_out
    assert where.startswith("torch.no_grad() in the model (Modulated) (")


def test_values_that_do_not_depend_on_the_input_are_not_listed():
    report = audit(Modulated(lambda z: torch.ones(3, dtype=z.dtype).detach()), torch.randn(2, 4).double(), 0)
    assert report.taken_out == {}


ODD = {
    "written in place behind a checkpointed layer": lambda m, t: _zeroed(checkpoint(m.layer, t, use_reentrant=False)),
    "an operation that has nothing to do": lambda m, t: F.alpha_dropout(m.layer(t), 0.5, training=False),
    "a derivative within": lambda m, t: _differentiated(m, torch.relu(t)),
}


def _differentiated(model, y):
    z = model.layer(y)
    return z * torch.autograd.grad(z.sum(), y, retain_graph=True)[0].sum()


def _zeroed(y):
    y[:, 0] = 0.0
    return y


class Odd(nn.Module):
    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.function = nn.Linear(4, 3).double(), function

    def forward(self, x):
        return self.function(self, x)


@pytest.mark.parametrize("name", ODD)
def test_what_can_be_explained_can_be_audited(name):
    x = torch.randn(2, 4, dtype=torch.float64)
    composite = Composite([(AnyLinear, Epsilon(0.1))])
    report = audit(Odd(ODD[name]), x, 1, composite)
    torch.testing.assert_close(report.relevance, float(lrp(Odd(ODD[name]), x, 1, composite).sum()), rtol=1e-12, atol=0)
    assert report.unexplained < 1e-13
