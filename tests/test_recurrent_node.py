"""Whole recurrent layers served by one node: the relevance of the cells run one by one, its derivatives, its cost."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import lrphooks
from counting import Work, cost
from lrphooks import Composite, composites, explain
from lrphooks.engine.handlers import recurrent as handler
from lrphooks.matching import AnyLinear, First, Gate, Linear, Sum
from lrphooks.rules import (
    AlphaBeta,
    Epsilon,
    Flat,
    Gamma,
    Gradient,
    Identity,
    Proportional,
    Stabilizer,
    TopRelevance,
    Uniform,
    ZPlus,
)
from lrphooks.rules.linear_rule import LinearRule
from small_networks import equal, every_layer, relevance, weighting
from test_derivatives import check as check_derivatives

KINDS = {
    "lstm": lambda **o: nn.LSTM(3, 4, **o),
    "gru": lambda **o: nn.GRU(3, 4, **o),
    "tanh": lambda **o: nn.RNN(3, 4, **o),
    "relu": lambda **o: nn.RNN(3, 4, nonlinearity="relu", **o),
}
RULES = {
    "gradient": Gradient(),
    "LRP-0": Epsilon(0),
    "epsilon": Epsilon(0.1),
    "clipped epsilon": Epsilon(Stabilizer(0.1, clip=True)),
    "gamma": Gamma(0.5, 0.1),
    "z-plus": ZPlus(0.1),
    "alpha 2 beta 1": AlphaBeta(2, 1, 0.1),
    "alpha 1 beta 0": AlphaBeta(1, 0, 0.1),
}
FORMS = [
    {},
    {"bias": False, "batch_first": True},
    {"num_layers": 2, "batch_first": True},
    {"bidirectional": True, "bias": False},
    {"num_layers": 3, "bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
]


class Reader(nn.Module):
    """A recurrent layer over (batch, time, features), its outputs and last states in one vector a row.

    ``start`` tells what its first states are: not given, learned, or made of the input.
    """

    def __init__(self, layer, start="zero"):
        super().__init__()
        self.layer, self.start = layer, start
        self.learned = nn.Parameter(torch.randn(layer.num_layers * (1 + layer.bidirectional), 1, layer.hidden_size))

    def states(self, x):
        if self.start == "zero":
            return None
        shape = (len(self.learned), len(x), self.layer.hidden_size)
        made = x[:, 0, :1] * 0.3 if self.start == "input" else 1.0
        states = tuple((self.learned * made * k).expand(shape).contiguous() for k in (1.0, -0.7))
        return states if isinstance(self.layer, nn.LSTM) else states[0]

    def read(self, x):
        hx = self.states(x)
        out, last = self.layer(x if self.layer.batch_first else x.transpose(0, 1), hx)
        return out if self.layer.batch_first else out.transpose(0, 1), last if isinstance(last, tuple) else (last,)

    def forward(self, x):
        out, last = self.read(x)
        return torch.cat((out.flatten(1), *(t.transpose(0, 1).flatten(1) for t in last)), 1)


def reader(kind, start="zero", dtype=torch.float64, **options):
    """A reader with weights large enough for the gates to matter."""
    torch.manual_seed(0)
    model = Reader(KINDS[kind](**options), start).to(dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)
    return model


def sequences(rows=2, steps=4, dtype=torch.float64):
    torch.manual_seed(1)
    return torch.randn(rows, steps, 3, dtype=dtype)


@pytest.fixture
def cells(monkeypatch):
    """Returns what a function returns with all cells run one by one."""

    def run(function):
        with monkeypatch.context() as patch:
            patch.setattr(handler, "_stack", lambda *_: None)
            return function()

    return run


def node_of(composite, model, x):
    """The name of the node behind the outputs of the model's recurrent layer."""
    found = []
    hook = model.layer.register_forward_hook(lambda _, __, out: found.append(type(out[0].grad_fn).__name__))
    with composite.context(model):
        model(x.clone().requires_grad_())
    hook.remove()
    return found[0]


def check(model, x, composite, cells, tol=1e-10):
    assert node_of(composite, model, x) == "RecurrentNodeBackward"
    with composite.context(model):
        inside = model(x.clone().requires_grad_())
    with torch.no_grad():
        assert torch.equal(inside, model(x)), "another value inside the context"
    equal(relevance(composite, model, x), cells(lambda: relevance(composite, model, x)), tol)


# --- the relevance of the cells -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_the_cells(kind, rule, cells):
    for form in FORMS:
        check(reader(kind, **form), sequences(), every_layer(rule), cells)


@pytest.mark.parametrize("start", ["learned", "input"])
@pytest.mark.parametrize("kind", KINDS)
def test_equal_to_the_cells_from_given_states(kind, start, cells):
    """States that depend on the input receive relevance, learned ones do not."""
    for rule in ("LRP-0", "epsilon", "z-plus", "gamma"):
        for form in ({}, {"num_layers": 2, "bidirectional": True, "batch_first": True}):
            check(reader(kind, start, **form), sequences(), every_layer(RULES[rule]), cells)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_of_one_step_and_one_row(kind, cells):
    check(reader(kind, "input", bidirectional=True), sequences(1, 1), every_layer(Epsilon(0.1)), cells)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_outputs_alone_and_states_alone(kind, cells):
    """Whatever part of what the layer returns the model goes on with."""
    for take in (lambda out, last: out[:, -1], lambda out, last: last[0][0], lambda out, last: last[-1][1]):
        model, x = reader(kind, num_layers=2), sequences()
        model.forward = lambda x, m=model, take=take: take(*m.read(x))
        check(model, x, every_layer(Epsilon(0.1)), cells)


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_are_exactly_zero(kind, cells):
    """Rows of zeros, as padding has, and a bias of zero: tanh(0) / 0 is its slope."""
    model, x = reader(kind, bias=False, num_layers=2), sequences(3)
    x[1] = 0
    x[2, 2:] = 0
    check(model, x, every_layer(Epsilon(0)), cells)
    assert torch.isfinite(relevance(every_layer(Epsilon(0)), model, x)).all()


class Seeded(nn.Module):
    """A state made of the input, and a sequence that is not."""

    def __init__(self, kind):
        super().__init__()
        self.layer = reader(kind).layer
        self.sequence = nn.Parameter(sequences().transpose(0, 1).contiguous())

    def forward(self, x):
        h = x[None, :, 0, :1].expand(1, len(x), 4) * torch.arange(1.0, 5.0, dtype=x.dtype)
        out, _ = self.layer(self.sequence, (h.contiguous(), h * 0.5) if isinstance(self.layer, nn.LSTM) else h)
        return out.transpose(0, 1).flatten(1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_that_is_constant(kind, cells):
    check(Seeded(kind), sequences(), every_layer(Gamma(0.5, 0.1)), cells)


def test_first_is_the_recurrent_layer():
    """Also for its own linear maps: what comes after is not first."""

    class Tagger(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.head = reader("gru", num_layers=2, batch_first=True).layer, nn.Linear(4, 2).double()

        def forward(self, x):
            return self.head(self.layer(x)[0])

    model, x = Tagger(), sequences()
    found = relevance(Composite([(First(AnyLinear), ZPlus(0.1)), (AnyLinear, Epsilon(0.1))]), model, x)
    equal(found, relevance(Composite([("layer", ZPlus(0.1)), (AnyLinear, Epsilon(0.1))]), model, x))
    equal(found, relevance(Composite([(nn.GRU, ZPlus(0.1)), (AnyLinear, Epsilon(0.1))]), model, x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_other_precisions(kind, dtype, cells):
    x = sequences(dtype=dtype)
    model = reader(kind, dtype=dtype, num_layers=2, bidirectional=True)
    check(model, x, every_layer(Epsilon(0.1)), cells, 1e-5 if dtype == torch.float32 else 0.1)


# --- what takes the cells ------------------------------------------------------------------------------------------


class Other(Epsilon):
    """A rule that does not say that its outputs may be computed apart."""

    @property
    def separable(self):
        return LinearRule.separable.fget(self)


CELL_BY_CELL = {
    "gates": Composite([(Gate, Identity()), (torch.mul, Uniform()), (AnyLinear, Epsilon(0))]),
    "products": Composite([(torch.mul, Proportional()), (AnyLinear, Epsilon(0))]),
    "tanh": Composite([(torch.tanh, Gradient()), (AnyLinear, Epsilon(0))]),
    "sums": Composite([(Sum, Epsilon(0.1)), (AnyLinear, Epsilon(0))]),
    "delivery": Composite([(First(Linear), Flat()), (AnyLinear, Epsilon(0))]),
    "norms": every_layer(Epsilon(Stabilizer(0.1, norm_scale=True))),
    "norms of z-plus": every_layer(ZPlus(Stabilizer(0.1, norm_scale=True))),
    "another rule": every_layer(Other(0.1)),
    "filter": every_layer(TopRelevance(Epsilon(0.1), 50)),
    "no relevance": Composite([(AnyLinear, Gradient())], attribution="gradient"),
}


@pytest.mark.parametrize("composite", CELL_BY_CELL.values(), ids=CELL_BY_CELL)
def test_rules_inside_of_cells_have_the_cells_run(composite):
    model, x = reader("lstm"), sequences()
    if composite is CELL_BY_CELL["delivery"]:
        model.front = nn.Linear(3, 3).double()
        model.read = lambda x, read=model.read: read(model.front(x))
    assert node_of(composite, model, x) == "TwinNodeBackward"


def test_projections_packed_sequences_and_autocast_have_the_cells_run():
    composite, x = every_layer(Epsilon(0.1)), sequences()
    assert node_of(composite, reader("lstm", proj_size=2), x) == "TwinNodeBackward"
    with torch.autocast("cpu", torch.bfloat16):
        assert node_of(composite, reader("gru", dtype=torch.float32), x.float()) == "TwinNodeBackward"


def test_what_is_recorded_inside_stays():
    """An observer sees the cells, and parameters that are asked for receive theirs."""
    model, x = reader("lstm"), sequences()
    found = explain(model, x, 1, every_layer(Epsilon(0.1)), record="layer")
    equal(found.relevance, lrphooks.lrp(model, x, 1, every_layer(Epsilon(0.1))))
    assert "layer" in found.recorded


# --- as autograd runs it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_several_backward_passes_and_batched_gradients(kind):
    composite, x = every_layer(Gamma(0.5, 0.1)), sequences()
    model = reader(kind, "input", num_layers=2, bidirectional=True)
    leaf, twice = x.clone().requires_grad_(), (x * 2).requires_grad_()
    with composite.context(model):
        output, other = model(leaf), model(twice)
        seeds = torch.randn(3, *output.shape, dtype=x.dtype)
        single = [torch.autograd.grad(output, leaf, seed, retain_graph=True)[0] for seed in seeds]
        (batched,) = torch.autograd.grad(output, leaf, seeds, is_grads_batched=True, retain_graph=True)
        last = torch.autograd.grad(output, leaf, seeds[0])[0]
        (of_other,) = torch.autograd.grad(other, twice, weighting(other))
    equal(batched, torch.stack(single))
    equal(last, single[0])
    equal(single[1], relevance(composite, model, x, seeds[1]))
    equal(of_other, relevance(composite, model, x * 2))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_model_may_write_to_what_the_layer_returned(kind, batch_first):
    """In place, where the node keeps what it needs."""
    model, x = reader(kind, num_layers=2, batch_first=batch_first), sequences()
    read, composite = model.read, every_layer(Epsilon(0.1))
    model.read = lambda x: (read(x)[0].relu(), ())
    expected = relevance(composite, model, x)
    model.read = lambda x: (read(x)[0].relu_(), ())
    equal(relevance(composite, model, x), expected)


class Residual(nn.Module):
    """A recurrent layer whose output is added to its input, in place or not."""

    def __init__(self, kind, *, in_place):
        super().__init__()
        self.layer, self.head, self.in_place = KINDS[kind](batch_first=True), nn.Linear(4, 2), in_place
        self.widen = nn.Linear(4, 3)
        self.double().requires_grad_(requires_grad=False)

    def forward(self, x):
        x = x * 1.0
        out = self.widen(self.layer(x)[0])
        x = x.add_(out) if self.in_place else x + out
        return self.head(torch.cat((x[:, 1], x[:, 2, :1]), 1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_may_write_to_what_it_gave_the_layer(kind):
    found = []
    for in_place in (False, True):
        torch.manual_seed(0)
        model, x = Residual(kind, in_place=in_place), sequences()
        found.append(lrphooks.lrp(model, x, 1, every_layer(Epsilon(0.1))))
    equal(found[1], found[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_without_rows(kind):
    found = lrphooks.lrp(Residual(kind, in_place=False), sequences(rows=0), 1, every_layer(Epsilon(0.1)))
    assert found.shape == (0, *sequences().shape[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_checkpoints(kind):
    composite, x, model = every_layer(ZPlus(0.1)), sequences(), reader(kind, num_layers=2)
    expected = relevance(composite, model, x)
    read = model.read
    model.read = lambda x: checkpoint(read, x, use_reentrant=False)
    equal(relevance(composite, model, x), expected)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_one_graph(kind):
    """A compiled explanation is traced through the node, and is the same."""
    model, x = reader(kind, num_layers=2), sequences()
    explainer = lrphooks.compiled(model, every_layer(ZPlus(0.1)), dynamic=True)
    torch.compiler.set_stance("force_eager")
    try:
        for rows in (x, torch.cat((x, -x, x + 1))):
            equal(explainer(rows, 1), lrphooks.lrp(model, rows, 1, every_layer(ZPlus(0.1))))
    finally:
        torch.compiler.set_stance("default")
    assert len(explainer.graphs) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_constants_and_parameters_receive_nothing(kind):
    model, x = reader(kind, "learned", num_layers=2, bidirectional=True), sequences()
    relevance(every_layer(Epsilon(0.1)), model, x)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == []


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_node_returns_is_an_ordinary_tensor(kind):
    """For hooks to keep and to overwrite, though it was made in inference mode."""
    model, found = reader(kind, "input", batch_first=True), []
    read, states = model.read, model.states

    def hooked(tensor):
        tensor.register_hook(lambda gradient: found.append(gradient))
        return tensor

    model.read = lambda x: read(hooked(x * 1.0))
    model.states = lambda x: tuple(map(hooked, states(x))) if kind == "lstm" else hooked(states(x))
    relevance(every_layer(Epsilon(0.1)), model, sequences())
    assert len(found) == (3 if kind == "lstm" else 2)
    assert not any(gradient.is_inference() for gradient in found)


# --- derivatives of relevance --------------------------------------------------------------------------------------


def second(composite, model, x):
    """The derivatives of a function of relevance, of a loss with the output in it too."""
    leaf = x.clone().requires_grad_()
    with composite.context(model):
        output = model(leaf)
        (found,) = torch.autograd.grad(output, leaf, weighting(output), create_graph=True)
    value = (found.square() * weighting(found)).sum() + output.square().sum()
    return torch.autograd.grad(value, [leaf, *model.parameters()], allow_unused=True)


@pytest.mark.parametrize("rule", [k for k in RULES if k != "gradient"])
@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_equal_those_of_the_cells(kind, rule, cells):
    composite = every_layer(RULES[rule])
    for form in ({}, {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False}):
        for start in ("zero", "input"):
            model, x = reader(kind, start, **form), sequences()
            expected = cells(lambda m=model, x=x: second(composite, m, x))
            for found, other in zip(second(composite, model, x), expected, strict=True):
                assert (found is None) == (other is None)
                if other is not None and other.any():
                    equal(found, other, 1e-9)


@pytest.mark.parametrize("rule", ["LRP-0", "epsilon", "gamma", "z-plus", "alpha 2 beta 1"])
@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh"])
def test_second_derivatives_equal_finite_differences(kind, rule):
    check_derivatives(every_layer(RULES[rule]), reader(kind, "input", num_layers=2), sequences(1, 3))


# --- what it costs -------------------------------------------------------------------------------------------------


def operations(composite, model, x):
    with Work() as work:
        relevance(composite, model, x)
    views = ("select", "slice", "unbind", "detach", "view", "alias", "as_strided", "_unsafe_view", "expand", "t")
    return sum(n for name, n in work.operations.items() if name not in views), work.products


#: Operations and products a step of a layer, backward and forward; gates and factors of all steps are made at once.
STEP = {"lstm": (4, 1), "gru": (3, 1), "tanh": (2, 1), "relu": (2, 1)}


@pytest.mark.parametrize("rule", ["LRP-0", "epsilon", "z-plus", "gamma"])
@pytest.mark.parametrize("kind", ["gru", "lstm", "tanh", "relu"])
def test_few_operations_a_step(kind, rule):
    """Those of the fused call itself, which on a CPU may be seen too, are taken off."""
    composite, model = every_layer(RULES[rule]), reader(kind).requires_grad_(False)

    def fused(x):
        with Work() as work, torch.no_grad():
            model(x)
        return sum(work.operations.values()), work.products

    short, long = sequences(2, 10), sequences(2, 30)
    found = [
        b - a for a, b in zip(operations(composite, model, short), operations(composite, model, long), strict=True)
    ]
    own = [b - a for a, b in zip(fused(short), fused(long), strict=True)]
    ways = 2 if rule in ("z-plus", "gamma") else 1
    each, products = STEP[kind]
    assert found[1] - own[1] <= 20 * products * ways
    assert found[0] - max(own[0], own[1]) <= 20 * (each + 2 * (ways - 1) + (rule == "z-plus"))


@pytest.mark.parametrize("kind", KINDS)
def test_the_steps_make_no_tensors(kind):
    """What a step computes takes the place of what it was computed from, but for the products of several ways."""
    model = reader(kind).requires_grad_(False)

    class Made(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            found = out if isinstance(out, tuple | list) else (out,)
            storages.update((t.untyped_storage().data_ptr(), t.untyped_storage()) for t in found)
            return out

    made = []
    for steps in (10, 30):
        storages, x = {}, sequences(2, steps).requires_grad_()
        with every_layer(Epsilon(0.1)).context(model):
            output = model(x).sum()
            with Made():
                output.backward()
        made.append(len(storages))
    assert made[1] == made[0]


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_no_more_is_kept_than_for_the_gradient(kind):
    model = reader(kind, num_layers=2, dtype=torch.float32).requires_grad_(False)
    x = sequences(2, 20, torch.float32)
    for preset in (every_layer(Epsilon(0)), composites.AttnLRP()):
        assert cost(model, x, preset).bytes <= 1.1 * cost(model, x).bytes
