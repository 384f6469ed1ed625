"""Recurrent layers: the fused value, the relevance of the cells written out one by one."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from lrphooks import Composite, LRPError, UnmatchedError, composites, lrp
from lrphooks.matching import AnyLinear, First, Gate
from lrphooks.rules import Constant, Epsilon, Flat, Gamma, Gradient, Identity, Pass, Proportional, Uniform
from references import recurrent
from references.operations import gradient_times_input
from small_networks import equal, relevance, weighting

EXACT = (AnyLinear, Epsilon(0))
SHARES = {
    "all": (Composite([EXACT]), recurrent.takes_all),
    "half": (Composite([(Gate, Identity()), (torch.mul, Uniform()), EXACT]), recurrent.half),
    "proportional": (Composite([(Gate, Identity()), (torch.mul, Proportional()), EXACT]), recurrent.proportional),
}
KINDS = {
    "lstm": lambda **o: nn.LSTM(3, 4, **o),
    "gru": lambda **o: nn.GRU(3, 4, **o),
    "tanh": lambda **o: nn.RNN(3, 4, **o),
    "relu": lambda **o: nn.RNN(3, 4, nonlinearity="relu", **o),
}
FORMS = {
    "plain": {},
    "no bias": {"bias": False},
    "stacked": {"num_layers": 3},
    "both ways": {"bidirectional": True},
    "batch first, stacked both ways": {"batch_first": True, "num_layers": 2, "bidirectional": True},
    "dropout, evaluated": {"num_layers": 2, "dropout": 0.4},
}
PROJECTED = {"proj_size": 2, "num_layers": 2, "bidirectional": True, "batch_first": True}


class Last(nn.Module):
    """Outputs and last states of a recurrent layer, in one vector a row; states and lengths where they are given."""

    def __init__(self, layer, *, lengths=None, enforce_sorted=True, stateful=False, unbatched=False):
        super().__init__()
        self.layer, self.lengths, self.sorted, self.stateful = layer, lengths, enforce_sorted, stateful
        self.unbatched = unbatched

    def start(self, x, rows):
        cells, h = self.layer.num_layers * (1 + self.layer.bidirectional), self.layer.hidden_size
        sizes = [self.layer.proj_size or h, h] if isinstance(self.layer, nn.LSTM) else [h]
        if not self.stateful:
            return tuple(x.new_zeros(cells, rows, s) for s in sizes)
        # The state depends on the input as well, as that of a decoder does.
        return tuple((x[:, 0, :1] * 0.3 * (i + 1)).expand(cells, rows, s) for i, s in enumerate(sizes))

    def forward(self, x):
        x = x.transpose(0, 1) if not self.layer.batch_first else x
        rows = x.shape[0 if self.layer.batch_first else 1]
        hx = None
        if self.stateful:
            hx = self.start(x if self.layer.batch_first else x.transpose(0, 1), rows)
            hx = hx if isinstance(self.layer, nn.LSTM) else hx[0]
        if self.lengths is not None:
            x = pack_padded_sequence(x, self.lengths, batch_first=self.layer.batch_first, enforce_sorted=self.sorted)
        if self.unbatched:
            x = x.squeeze(0 if self.layer.batch_first else 1)
        out, last = self.layer(x, hx)
        if self.lengths is not None:
            out, _ = pad_packed_sequence(out, batch_first=self.layer.batch_first)
        last = last if isinstance(last, tuple) else (last,)
        if self.unbatched:
            out, last = out.unsqueeze(0), [t.unsqueeze(1) for t in last]
        elif not self.layer.batch_first:
            out = out.transpose(0, 1)
        return torch.cat((out.flatten(1), *(t.transpose(0, 1).flatten(1) for t in last)), 1)

    def written(self, x, product):
        """The same with the reference cells; rows that end early are padded with zeros."""
        lengths = self.lengths or [x.shape[1]] * len(x)
        outs, last = recurrent.layers(
            self.layer, [row[:n] for row, n in zip(x, lengths, strict=True)], self.start(x, len(x)), product
        )
        out = nn.utils.rnn.pad_sequence(outs, batch_first=True)
        return torch.cat((out.flatten(1), *(t.transpose(0, 1).flatten(1) for t in last)), 1)


def double(module):
    """Parameters large enough for the gates to matter."""
    module = module.double().eval()
    for parameter in module.parameters():
        parameter.data = torch.randn_like(parameter) * 0.8
    return module


def check(model, x, shares):
    composite, product = SHARES[shares]
    plain = model(x)
    torch.testing.assert_close(model.written(x, product), plain, rtol=1e-11, atol=1e-12)
    seed = weighting(plain)
    expected = gradient_times_input(lambda x: model.written(x, product) * seed, x)
    with composite.context(model):
        inside = model(x.clone().requires_grad_())
    assert torch.equal(inside, plain), "another value inside the context"
    equal(relevance(composite, model, x), expected, 1e-10)


CASES = [
    (kind, form, shares)
    for kind in KINDS
    for form in (*FORMS, "projected")
    for shares in SHARES
    if (kind == "lstm" or form != "projected") and (kind in ("lstm", "gru") or shares == "all")
]


@pytest.mark.parametrize(("kind", "form", "shares"), CASES)
def test_cells_written_out(kind, form, shares):
    layer = KINDS[kind](**(PROJECTED if form == "projected" else FORMS[form]))
    check(Last(double(layer)), torch.randn(2, 4, 3, dtype=torch.float64), shares)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("form", ["plain", "batch first, stacked both ways"])
@pytest.mark.parametrize("enforce_sorted", [True, False])
def test_packed_sequences(kind, form, enforce_sorted):
    layer = double(KINDS[kind](**FORMS[form]))
    lengths = [4, 2, 1] if enforce_sorted else [1, 4, 2]
    model = Last(layer, lengths=lengths, enforce_sorted=enforce_sorted)
    x = torch.randn(3, 4, 3, dtype=torch.float64)
    check(model, x, "all")
    found = relevance(SHARES["all"][0], model, x)
    for row, n in enumerate(lengths):
        assert not found[row, n:].any(), "relevance beyond the end of a sequence"


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_packed_sequences_share_by_halves_too(kind):
    model = Last(double(KINDS[kind](bidirectional=True)), lengths=[3, 3, 1])
    for shares in ("half", "proportional"):
        check(model, torch.randn(3, 3, 3, dtype=torch.float64), shares)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lengths", [None, [3, 2]])
def test_a_state_that_depends_on_the_input(kind, lengths):
    model = Last(
        double(KINDS[kind](num_layers=2, bidirectional=True, batch_first=True)), lengths=lengths, stateful=True
    )
    check(model, torch.randn(2, 3, 3, dtype=torch.float64), "all")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_sequence_without_a_batch(kind, batch_first):
    layer = double(KINDS[kind](bidirectional=True, batch_first=batch_first))
    check(Last(layer, unbatched=True), torch.randn(1, 3, 3, dtype=torch.float64), "all")


class Steps(nn.Module):
    """A single cell in a loop of one's own."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state, outputs = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.cat(outputs, 1)

    def written(self, x, product):
        kind = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}.get(type(self.cell))
        step = recurrent.CELLS[kind or f"RNN_{self.cell.nonlinearity.upper()}"]
        p = {k: v.detach() for k, v in self.cell.named_parameters()}
        rows = []
        for row in x:
            state = tuple(x.new_zeros(4) for _ in range(2 if kind == "LSTM" else 1))
            outputs = []
            for value in row:
                state = step(p, value, state, product)
                outputs.append(state[0])
            rows.append(torch.cat(outputs))
        return torch.stack(rows)


SINGLE = {
    "lstm": lambda: nn.LSTMCell(3, 4),
    "lstm without bias": lambda: nn.LSTMCell(3, 4, bias=False),
    "gru": lambda: nn.GRUCell(3, 4),
    "gru without bias": lambda: nn.GRUCell(3, 4, bias=False),
    "tanh": lambda: nn.RNNCell(3, 4),
    "relu": lambda: nn.RNNCell(3, 4, nonlinearity="relu"),
}


@pytest.mark.parametrize("kind", SINGLE)
@pytest.mark.parametrize("shares", SHARES)
def test_single_cells(kind, shares):
    check(Steps(double(SINGLE[kind]())), torch.randn(2, 3, 3, dtype=torch.float64), shares)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shares", SHARES)
@pytest.mark.parametrize("preset", [None, composites.AttnLRP(0), composites.CPLRP(0)])
def test_relevance_sums_to_the_output(kind, shares, preset):
    """Without biases, LRP-0 and each way to share a product conserve."""
    model = Last(double(KINDS[kind](bias=False, num_layers=2, bidirectional=True)))
    x = torch.randn(2, 4, 3, dtype=torch.float64)
    composite = SHARES[shares][0] if preset is None else preset
    total = (model(x) * weighting(model(x))).sum().detach()
    torch.testing.assert_close(relevance(composite, model, x).sum(), total, rtol=1e-10, atol=1e-12)


def test_a_recurrent_layer_follows_the_rule_given_to_it():
    """By its type, its name and its function; Gradient() is the plain gradient of the whole."""
    model = Last(double(nn.LSTM(3, 4)))
    x = torch.randn(2, 3, 3, dtype=torch.float64)
    seed = weighting(model(x))
    plain = gradient_times_input(lambda x: model(x) * seed, x)
    for matcher in (nn.LSTM, "layer", torch.lstm):
        found = relevance(Composite([(matcher, Gradient()), EXACT]), model, x)
        equal(found, plain, 1e-10)


@pytest.mark.parametrize("epsilon", [0.3, 1e-2])
def test_epsilon_stabilizes_the_joint_map_of_input_and_state(epsilon):
    """A neuron is one sum over x and h, so the stabilizer is added once: two steps written out."""
    torch.manual_seed(3)
    layer = double(nn.RNN(3, 4, batch_first=True))
    w, u, b = layer.weight_ih_l0, layer.weight_hh_l0, layer.bias_ih_l0 + layer.bias_hh_l0

    class Second(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)[1][0]

    def share(R, z):
        return R / torch.where(z < 0, z - epsilon, z + epsilon)

    x = torch.randn(2, 2, 3, dtype=torch.float64)
    z0 = x[:, 0] @ w.T + b
    h0 = z0.tanh()
    z1 = x[:, 1] @ w.T + h0 @ u.T + b
    s1 = share(weighting(z1) * z1.tanh(), z1)
    s0 = share(h0 * (s1 @ u), z0)
    expected = torch.stack((x[:, 0] * (s0 @ w), x[:, 1] * (s1 @ w)), 1).detach()
    equal(relevance(Composite([(AnyLinear, Epsilon(epsilon))]), Second(), x), expected, 1e-10)


def test_dropout_between_layers_in_training_is_reported():
    model = Last(double(nn.GRU(3, 4, num_layers=2, dropout=0.5)))
    model.train()
    with (
        Composite([EXACT]).context(model),
        pytest.raises(UnmatchedError, match=r"dropout of 0\.5.*model\.eval\(\)"),
    ):
        model(torch.randn(2, 3, 3, dtype=torch.float64).requires_grad_())


@pytest.mark.parametrize("rule", [Uniform(), Identity(), Proportional()], ids=str)
def test_a_rule_that_cannot_serve_the_whole_is_refused(rule):
    model = Last(double(nn.LSTM(3, 4)))
    with pytest.raises(TypeError, match="cannot serve module 'layer'"):
        Composite([(nn.LSTM, rule), EXACT]).context(model).__enter__()
    with Composite([(torch.lstm, rule), EXACT]).context(model), pytest.raises(LRPError, match="cannot serve lstm"):
        model(torch.randn(2, 3, 3, dtype=torch.float64).requires_grad_())


def test_a_rule_for_inputs_is_refused():
    model = Last(double(nn.GRU(3, 4)))
    with Composite([(AnyLinear, Flat())]).context(model), pytest.raises(LRPError, match="rule for input values"):
        model(torch.randn(2, 3, 3, dtype=torch.float64).requires_grad_())


def test_a_constant_recurrent_layer_leaves_the_rest_everything():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = double(nn.GRU(3, 3, batch_first=True))

        def forward(self, x):
            return x + self.layer(x)[0]

    x = torch.randn(2, 3, 3, dtype=torch.float64)
    found = relevance(Composite([(nn.GRU, Constant()), EXACT]), Sum(), x)
    equal(found, x * weighting(x), 1e-12)


def test_parameters_receive_nothing_and_the_flat_weights_stay():
    model = Last(double(nn.LSTM(3, 4, num_layers=2)))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    relevance(Composite([EXACT]), model, torch.randn(2, 3, 3, dtype=torch.float64))
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@pytest.mark.parametrize("delivers", [False, True])
def test_all_cells_of_a_first_layer_have_its_rule(delivers, close):
    """The cells are one layer, also those that see the hidden state."""

    class Reads(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.lstm, self.head = nn.LSTM(3, 4, num_layers=2, batch_first=True), nn.Linear(4, 2)
            self.double()

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    x = torch.randn(2, 5, 3, dtype=torch.float64)
    # A rule that hands on relevance itself has the cells run one by one.
    others = [(nn.Tanh, Pass())] if delivers else []
    first = Composite([*others, (First(AnyLinear), Gamma(1.0)), (AnyLinear, Epsilon(0))])
    named = Composite([*others, (nn.LSTM, Gamma(1.0)), (AnyLinear, Epsilon(0))])
    close(lrp(Reads(), x, 1, first), lrp(Reads(), x, 1, named), 1e-12)
