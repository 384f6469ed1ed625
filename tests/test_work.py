"""What relevance costs, counted: products with weights against the floor of each rule, and saved tensors.

A plain input gradient takes one product a layer forward and one backward. Time on a shared machine is noisy; these
numbers are not, so that a regression fails every time.
"""

from contextlib import nullcontext

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from counting import Work, cost, held, passes
from lrphooks import Composite
from lrphooks.matching import AnyLinear
from lrphooks.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from small_networks import NETWORKS, PRESETS, every_layer, network, on_first

#: Products forward and backward beyond those of the gradient, by what is known of a layer: whether its input is known
#: not to be negative, and whether a ReLU follows.
FLOORS = {
    "LRP-0": (Epsilon(0), lambda known, relu: (0, 0)),
    "Epsilon": (Epsilon(1e-6), lambda known, relu: (0, 0)),
    "ZPlus": (ZPlus(), lambda known, relu: (1, 0) if known else (1, 1)),
    "Gamma": (Gamma(0.25), lambda known, relu: (1, 0) if known and relu else (1, 1)),
    "AlphaBeta": (AlphaBeta(2, 1), lambda known, relu: (1, 1)),
    "AlphaBeta(1, 0)": (AlphaBeta(1, 0), lambda known, relu: (1, 0) if known else (1, 1)),
}

LAYERS = {
    "conv": (lambda: [nn.Conv2d(4, 6, 3, padding=1)], (2, 4, 5, 5)),
    "conv and norm": (lambda: [nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6)], (2, 4, 5, 5)),
    "grouped conv": (lambda: [nn.Conv2d(4, 6, 3, groups=2)], (2, 4, 5, 5)),
    "transposed conv": (lambda: [nn.ConvTranspose2d(4, 6, 3, stride=2)], (2, 4, 5, 5)),
    "conv of one dimension": (lambda: [nn.Conv1d(4, 6, 3)], (2, 4, 9)),
    "dense": (lambda: [nn.Linear(6, 8)], (3, 6)),
    "dense on sequences": (lambda: [nn.Linear(6, 8)], (2, 3, 6)),
}


class Flat1(nn.Module):
    """All outputs of a row, whatever their shape, without a ReLU."""

    def forward(self, x):
        return x.flatten(1)


def single(layer, *, known, relu, frozen=True):
    """A model of one layer, and its input."""
    make, shape = LAYERS[layer]
    around = [nn.ReLU()] if known else [], [nn.ReLU()] if relu else []
    model = nn.Sequential(*around[0], *make(), *around[1], Flat1()).eval()
    return model.requires_grad_(not frozen), torch.randn(shape)


@pytest.mark.parametrize("relu", [False, True], ids=["", "relu-follows"])
@pytest.mark.parametrize("known", [False, True], ids=["any-sign", "nonnegative"])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rule", FLOORS)
def test_no_product_more_than_the_floor(rule, layer, known, relu):
    made, floor = FLOORS[rule]
    model, x = single(layer, known=known, relu=relu)
    plain, ruled = cost(model, x), cost(model, x, every_layer(made))
    assert (plain.forward, plain.backward) == (1, 1), "this case counts nothing"
    assert (ruled.forward - plain.forward, ruled.backward - plain.backward) == floor(known, relu)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("rule", FLOORS)
def test_parameters_with_gradients_cost_nothing(rule, layer):
    """A relevance pass computes no gradient of a parameter, though ``requires_grad`` asks for it."""
    made, _ = FLOORS[rule]
    frozen, learning = (single(layer, known=True, relu=True, frozen=frozen) for frozen in (True, False))
    expected, found = (cost(model, x, every_layer(made)) for model, x in (frozen, learning))
    assert (found.forward, found.backward) == (expected.forward, expected.backward)


@pytest.mark.parametrize("rule", [ZBox(-3.0, 3.0), WSquare(), Flat()], ids=lambda rule: type(rule).__name__)
@pytest.mark.parametrize("others", [Epsilon(0), Epsilon(), ZPlus()], ids=["LRP-0", "Epsilon", "ZPlus"])
def test_rules_of_first_layers(rule, others):
    """At most two products more, and none of them in the layers above."""
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)
    model, x = nn.Sequential(*layers).eval().requires_grad_(False), torch.randn(2, 3, 8, 8)
    above = cost(nn.Sequential(*layers[1:]), torch.rand(2, 4, 6, 6), every_layer(others))
    found = cost(model, x, on_first(rule, others))
    assert found.forward + found.backward <= above.forward + above.backward + 4


def linear_layers(model):
    """How many linear layers a model has."""
    return sum(isinstance(m, nn.Linear | nn.Conv2d) for m in model.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_whole_networks_with_lrp0_or_epsilon_cost_no_product_more(name):
    model, x = network(name)
    model.requires_grad_(False)
    plain = cost(model, x)
    for epsilon in (0, 1e-6):
        ruled = cost(model, x, every_layer(Epsilon(epsilon)))
        assert ruled.forward == plain.forward
        # Fewer where a gate, which counts as constant, has a layer of its own.
        assert 0 < ruled.backward <= plain.backward


@pytest.mark.parametrize("inplace", [False, True])
def test_a_network_of_relus_costs_three_halves(inplace):
    """z-plus and gamma: one product more a layer, and in the first one, whose input has any sign, two."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace), nn.MaxPool2d(2),
        nn.Conv2d(4, 4, 1), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(1), nn.Dropout(), nn.Flatten(),
        nn.Linear(4, 5), nn.ReLU(inplace),
    ).eval().requires_grad_(False)  # fmt: skip
    x = torch.randn(2, 3, 9, 9)
    plain = cost(model, x)
    for rule in (ZPlus(), Gamma(0.25)):
        ruled = cost(model, x, every_layer(rule))
        assert ruled.forward - plain.forward == linear_layers(model)
        assert ruled.backward - plain.backward == 1


class Residual(nn.Module):
    """A residual block as torchvision writes it: the last normalisation is followed by a sum, written in place."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        x = F.relu(x)
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out).flatten(1)


def test_a_residual_block():
    """What adds to a skip may be negative: gamma takes two products more there, z-plus one."""
    model, x = Residual().eval().requires_grad_(False), torch.randn(2, 4, 5, 5)
    plain = cost(model, x.exp())
    for rule, more in ((ZPlus(), 2), (Gamma(0.25), 3), (AlphaBeta(2, 1), 4), (Epsilon(), 0)):
        ruled = cost(model, x.exp(), every_layer(rule))
        assert ruled.forward + ruled.backward - plain.forward - plain.backward == more


# --- memory --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True], ids=["any-sign", "nonnegative"])
@pytest.mark.parametrize("layer", ["conv", "grouped conv", "transposed conv", "conv of one dimension"])
@pytest.mark.parametrize("rule", FLOORS)
def test_saved_tensors_of_a_layer(rule, layer, known):
    """LRP-0 none, epsilon the output, others their factor, alpha-beta on inputs of any sign two.

    The input is kept once, for R = a G.
    """
    made, _ = FLOORS[rule]
    model, x = single(layer, known=known, relu=True)
    more = cost(model, x, every_layer(made)).saved - cost(model, x).saved
    assert more == 1 + {"LRP-0": 0, "AlphaBeta": 1 if known else 2}.get(rule, 1)


@pytest.mark.parametrize("rule", FLOORS)
def test_a_merged_norm_saves_what_its_rule_needs(rule):
    """The input of an evaluated BatchNorm need not be kept: relevance goes past it."""
    made, _ = FLOORS[rule]
    model, x = single("conv and norm", known=True, relu=True)
    more = cost(model, x, every_layer(made)).saved - cost(model, x).saved
    # torch keeps the input of a BatchNorm, and two empty tensors for what training would save. Epsilon keeps the output
    # of the layer until it is known that a BatchNorm follows.
    assert more <= {"LRP-0": -1, "Epsilon": 1}.get(rule, 0)


@pytest.mark.parametrize("name", ["AttnLRP", "CPLRP"])
def test_presets_for_attention_cost_no_product_more(name):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True, activation="gelu")
    model = nn.Sequential(layer, Flat1()).eval().requires_grad_(False)
    x = torch.randn(2, 5, 8)
    plain, ruled = cost(model, x), cost(model, x, PRESETS[name]())
    assert ruled.forward == plain.forward
    assert ruled.backward <= plain.backward


def test_two_consumers_of_a_layer_share_its_rule():
    """A residual branch that starts before its activation: the layer's factor is computed once."""

    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            z = self.first(x)
            return (z + self.second(torch.tanh(z))).flatten(1)

    model, x = Branching().requires_grad_(False), torch.randn(2, 3, 4, 4)
    plain = cost(model, x)
    ruled = cost(model, x, Composite([(AnyLinear, ZPlus())]))
    assert (ruled.forward - plain.forward, ruled.backward - plain.backward) == (2, 2)


class Windowed(nn.Module):
    """Attention written out, of a query that is scaled, between norms and in residual blocks."""

    def __init__(self):
        super().__init__()
        self.first, self.qkv, self.out = nn.Linear(8, 8), nn.Linear(8, 24), nn.Linear(8, 8)
        self.requires_grad_(requires_grad=False)

    def forward(self, x):
        x = self.first(x)
        qkv = self.qkv(F.layer_norm(x, (8,))).view(-1, 9, 3, 2, 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = ((q * 0.5) @ k.transpose(-2, -1)).softmax(-1)
        x = x + self.out((weights @ v).transpose(1, 2).flatten(2))
        return F.layer_norm(x, (8,)).flatten(1)


@pytest.mark.parametrize(("name", "fewer"), [("AttnLRP", 0), ("CPLRP", 3)])
def test_attention_that_is_written_out(name, fewer):
    """The rule keeps nothing and copies nothing, and what receives nothing is not multiplied."""
    model, x = Windowed(), torch.randn(4, 9, 8)
    plain, ruled = cost(model, x), cost(model, x, PRESETS[name]())
    assert ruled.forward == plain.forward
    assert ruled.backward == plain.backward - fewer
    counts, bytes_ = [], []
    for context in (Plain.context(model), PRESETS[name]().context(model)):
        with context:
            held(model, x)
            bytes_.append(held(model, x))
            with Work() as work:
                model(x.clone().requires_grad_())[:, 0].sum().backward()
        counts.append(work.operations)
    # The input is copied, as is the output. Query, key and value are moved back together.
    assert bytes_[1] - bytes_[0] <= 1.1 * x.nbytes
    assert counts[1]["clone"] <= counts[0]["clone"] + 2


@pytest.mark.parametrize(
    "activation", [nn.GELU(), nn.GELU("tanh"), nn.SiLU(), nn.Mish(), nn.Hardswish(), nn.Tanh()], ids=repr
)
def test_usual_activations_cost_one_share(activation):
    """The share f(a) / a of what arrives, without the derivative that the gradient takes."""
    leaf = torch.randn(2, 3, requires_grad=True)
    with every_layer(Epsilon(0)).context(activation):
        out = activation(leaf)
    with Work() as work:
        out.sum().backward()
    assert not [name for name in work.operations if name.endswith("_backward")]


# --- short ways ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
@pytest.mark.parametrize("relu", [False, True], ids=["", "relu-follows"])
@pytest.mark.parametrize("known", [False, True], ids=["any-sign", "nonnegative"])
@pytest.mark.parametrize(
    "rule", [Epsilon(0.1), ZPlus(0.1), Gamma(0.5, 0.1), AlphaBeta(2, 1, 0.1), AlphaBeta(1, 0, 0.1)]
)
def test_the_short_way_to_a_factor_gives_what_the_terms_say(rule, known, relu, bias, close):
    """Relevance that may be differentiated is computed from the terms; other relevance from kept factors."""
    layers = [nn.ReLU()] * known + [nn.Conv2d(3, 5, 3, bias=bias)] + [nn.ReLU()] * relu + [nn.Conv2d(5, 4, 3)]
    model, x = nn.Sequential(*layers, nn.Flatten()).double(), torch.randn(2, 3, 7, 7).double()
    found = []
    for create in (False, True):
        leaf = x.clone().requires_grad_()
        with every_layer(rule).context(model):
            out = model(leaf)
            found.append(torch.autograd.grad(out[:, 0].sum(), leaf, create_graph=create)[0])
    close(found[0], found[1], tol=1e-12)


#: How many passes over the output or the input, beyond those of the gradient, a rule takes.
PASSES = {
    "Epsilon": (Epsilon(), 3, 3),
    "ZPlus": (ZPlus(), 9, 2),
    "Gamma": (Gamma(), 8, 4),
    "AlphaBeta": (AlphaBeta(2, 1), 15, 7),
}


#: What a model may do with the output of a dense layer: epsilon takes three passes over it whatever that is.
CONSUMERS = {
    "gelu": F.gelu,
    "norm": lambda z: F.layer_norm(z, (8,)),
    "attention": lambda z: F.scaled_dot_product_attention(*[z.view(-1, 9, 2, 4).transpose(1, 2)] * 3).flatten(1),
    "sum": lambda z: z + 1,
    "two sums": lambda z: (z + 1).flatten(1) + z.flatten(1),
    "norm of what was laid out anew": lambda z: F.layer_norm(z.unflatten(2, (2, 4)).mT.flatten(1), (72,)),
    "product of what was scaled": lambda z: (z * 0.5) @ (z / 2).transpose(-2, -1),
    "scaled, then added to in place": lambda z: (z * 0.5).add_(1),
}


class Consumed(nn.Module):
    """A dense layer and what consumes it."""

    def __init__(self, consume):
        super().__init__()
        self.layer, self.consume = nn.Linear(8, 8), consume
        self.requires_grad_(requires_grad=False)

    def forward(self, x):
        return self.consume(self.layer(x)).flatten(1)


@pytest.mark.parametrize("name", CONSUMERS)
def test_elementwise_passes_of_epsilon_on_dense_layers(name):
    model, x = Consumed(CONSUMERS[name]), torch.randn(4, 9, 8)
    found = passes(model, x, every_layer(Epsilon())) - passes(model, x, every_layer(Epsilon(0)))
    assert 0 < found <= 3


def test_an_output_that_is_overwritten_is_copied_once():
    x = torch.randn(4, 9, 8)
    inplace, outside = (passes(Consumed(consume), x, every_layer(Epsilon())) for consume in (F.relu_, F.relu))
    assert inplace - outside == 1


class Plain:
    """Stands for a composite where the plain gradient is counted."""

    @staticmethod
    def context(_):
        return nullcontext()


class Multiplies(nn.Module):
    def __init__(self, multiply):
        super().__init__()
        self.multiply = multiply

    def forward(self, x):
        return self.multiply(x).flatten(1)


@pytest.mark.parametrize(
    ("multiply", "more"),
    [
        # A gate receives nothing: torch multiplies for it, spreads what the mean receives, and adds that at x.
        (lambda x: x * x.mean((-2, -1), keepdim=True).sigmoid(), -3),
        # Here also the derivative of the square, of two.
        (lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1), -5),
        # The halves of a product are one pass over it.
        (lambda x: (3 * x) * (2 * x), 1),
        # Its factors are smaller than the product of the first two, and larger than that of the third.
        (lambda x: (x @ (x + 1).transpose(-2, -1)) @ (2 * x), 3),
    ],
    ids=["gate", "norm", "two signals", "attention"],
)
def test_elementwise_passes_of_products(multiply, more):
    x = torch.randn(2, 3, 16, 8)

    def beyond(model):
        return passes(model, x, every_layer(Epsilon(0))) - passes(model, x, Plain())

    # What input and output take is that of a product with a number.
    assert beyond(Multiplies(multiply)) - beyond(Multiplies(lambda x: 2 * x)) <= more


class Gated(nn.Module):
    """A gate that a layer computes, and a BatchNorm between a layer and an activation."""

    def __init__(self):
        super().__init__()
        self.gate, self.conv, self.norm = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, x):
        return (x * self.gate(x).sigmoid()).flatten(1)


@pytest.mark.parametrize("rule", FLOORS)
def test_a_layer_that_gates_costs_its_forward_pass(rule):
    leaf = torch.randn(2, 4, 5, 5, requires_grad=True)
    with every_layer(FLOORS[rule][0]).context(model := Gated()), Work() as work:
        model(leaf).sum().backward()
    assert work.products == 1
    assert not any(name in work.operations for name in ("abs", "clamp"))


def test_epsilon_goes_past_a_frozen_norm():
    """The rule of the layer and the norm is set once, behind both."""

    class Normed(Gated):
        def forward(self, x):
            return F.silu(self.norm(self.conv(x))).flatten(1)

    model, x = Normed(), torch.randn(8, 4, 9, 9)
    assert passes(model, x, every_layer(Epsilon())) - passes(model, x, every_layer(Epsilon(0))) == 3


@pytest.mark.parametrize("rule", PASSES)
def test_elementwise_passes(rule):
    """Over activations, each costs a CPU as much as a small convolution."""
    made, any_sign, nonnegative = PASSES[rule]
    for known, most in ((False, any_sign), (True, nonnegative)):
        model, _ = single("conv", known=known, relu=True)
        x = torch.randn(8, 4, 9, 9)
        found = passes(model, x, every_layer(made)) - passes(model, x, every_layer(Epsilon(0)))
        assert 0 < found <= most
