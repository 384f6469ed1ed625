"""Second derivatives: relevance differentiated by inputs and weights equals central finite differences in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import Composite, composites
from lrphooks.matching import AnyLinear
from lrphooks.rules import AlphaBeta, Epsilon, Flat, Gamma, Pass, Stabilizer, ZPlus
from small_networks import NETWORKS, PRESETS, SMOOTH, every_layer, network, on_first, relevance, weighting

#: Small, because rules have kinks where an output changes sign.
STEP = 1e-7
#: Stabilisers so large that a division by a small number does not spoil the finite differences.
COMPOSITES = {**{name: make(0.25, 0.25) for name, make in PRESETS.items()}, **SMOOTH}


def explained(composite, model, x, *, create_graph=False):
    """The relevance of x for a fixed weighting of the outputs."""
    with composite.context(model):
        output = model(x)
        return torch.autograd.grad(output, x, weighting(output), create_graph=create_graph)[0]


def check(composite, model, x, measure=None, tol=1e-6, explain=explained):
    """Every derivative of a function of relevance along a random direction, for the input and each parameter."""
    leaf = x.clone().requires_grad_()
    found = explain(composite, model, leaf, create_graph=True)
    generator = torch.Generator().manual_seed(5)
    mixture = torch.randn(found.shape, generator=generator, dtype=found.dtype)
    measure = measure or (lambda r: (r * mixture).sum())
    value = measure(found)
    wanted = {"x": leaf, **{k: p for k, p in model.named_parameters() if p.requires_grad}}
    if value.requires_grad:
        gradients = torch.autograd.grad(value, list(wanted.values()), allow_unused=True)
    else:
        gradients = [None] * len(wanted)
    directions = [torch.randn(t.shape, generator=generator, dtype=t.dtype) for t in wanted.values()]
    largest, scale, failures = 0.0, abs(float(value.detach())), []
    for (name, tensor), gradient, direction in zip(wanted.items(), gradients, directions, strict=True):
        values = []
        for sign in (1, -1):
            before = tensor.detach().clone()
            with torch.no_grad():
                tensor.add_(direction, alpha=sign * STEP)
            values.append(float(measure(explain(composite, model, leaf.detach().clone().requires_grad_()))))
            with torch.no_grad():
                tensor.copy_(before)
        difference = (values[0] - values[1]) / (2 * STEP)
        derivative = 0.0 if gradient is None else float((gradient * direction).sum())
        largest, scale = max(largest, abs(difference)), max(scale, abs(difference))
        failures.append((name, derivative, difference))
    assert largest > 0, "every derivative is zero: this case tests nothing"
    wrong = [f"{n}: {d:.8g}, not {e:.8g}" for n, d, e in failures if abs(d - e) > tol * scale]
    assert not wrong, "; ".join(wrong)


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
@pytest.mark.parametrize("name", NETWORKS)
def test_second_derivatives(name, composite):
    """In-place ReLU, ``out += identity``, BatchNorm, gates, LayerNorm, attention, under every composite."""
    model, x = network(name)
    check(composite, model, x)


@pytest.mark.parametrize("name", ["residual", "strange"])
@pytest.mark.parametrize("rule", ["Epsilon", "Gamma", "ZPlus", "AlphaBeta", "Flat"])
def test_second_derivatives_with_batch_statistics(name, rule):
    model, x = network(name, train=True)
    check(SMOOTH[rule], model, torch.cat((x, x.flip(-1) * 0.7 + 0.1)))


def test_batch_statistics_are_recorded_once():
    """A derivative of relevance runs nothing that would update running statistics again."""
    model, x = network("residual", train=True)
    twin = copy.deepcopy(model)
    twin(x.clone().requires_grad_())
    leaf = x.clone().requires_grad_()
    found = explained(SMOOTH["Epsilon"], model, leaf, create_graph=True)
    found.square().sum().backward()
    for (key, buffer), other in zip(model.named_buffers(), twin.buffers(), strict=True):
        assert torch.equal(buffer, other), key


STABILIZERS = [Stabilizer(0.3, clip=True), Stabilizer(0.3, norm_scale=True), Stabilizer(0.3, True, True)]


@pytest.mark.parametrize("stabilizer", STABILIZERS, ids=repr)
@pytest.mark.parametrize("rule", [Epsilon, ZPlus, lambda s: Gamma(0.5, s), lambda s: AlphaBeta(2, 1, s), Flat])
def test_second_derivatives_of_stabilizers(rule, stabilizer):
    """Clipping, and a scale that is itself a function of the weights."""
    model, x = network("residual")
    made = rule(stabilizer)
    check(on_first(made, ZPlus(0.25)) if isinstance(made, Flat) else every_layer(made), model, x)


class Every(nn.Module):
    """One activation or normalisation between two dense layers."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.fc2, self.function = nn.Linear(6, 8), nn.Linear(8, 3), function
        self.slope = nn.Parameter(torch.tensor([0.3]))
        self.gain, self.shift = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("variance", torch.rand(8) + 0.5)
        self.double()

    def forward(self, x):
        return self.fc2(self.function(self, self.fc1(x)))


OPERATIONS = {
    "relu": lambda m, z: F.relu(z),
    "relu_": lambda m, z: z.relu_(),
    "leaky_relu": lambda m, z: F.leaky_relu(z, 0.2, inplace=True),
    "prelu": lambda m, z: F.prelu(z, m.slope),
    "elu": lambda m, z: F.elu(z),
    "elu in place": lambda m, z: F.elu(z, inplace=True),
    "gelu": lambda m, z: F.gelu(z),
    "gelu tanh": lambda m, z: F.gelu(z, approximate="tanh"),
    "silu": lambda m, z: F.silu(z),
    "silu in place": lambda m, z: F.silu(z, inplace=True),
    "mish": lambda m, z: F.mish(z),
    "tanh": lambda m, z: torch.tanh(z),
    "tanh_": lambda m, z: z.tanh_(),
    "hardswish": lambda m, z: F.hardswish(z),
    "softshrink": lambda m, z: F.softshrink(z, 0.1),
    "sigmoid gate": lambda m, z: z * torch.sigmoid(m.slope * z),
    "sigmoid gate in place": lambda m, z: z.mul_(torch.sigmoid(z)),
    "glu": lambda m, z: F.glu(torch.cat((z, z * m.gain), -1)),
    "softplus gate": lambda m, z: z * torch.tanh(F.softplus(z)),
    "product": lambda m, z: z * (z + m.shift),
    "product in place": lambda m, z: z.mul_(z.flip(-1) + m.shift),
    "square": lambda m, z: z.square(),
    "cube": lambda m, z: z**3,
    "learned power": lambda m, z: z.abs().add(0.1).pow(m.slope + 1.5),
    "division": lambda m, z: z / (z.square().mean(-1, keepdim=True) + m.slope).sqrt(),
    "layer_norm": lambda m, z: F.layer_norm(z, (8,), m.gain, m.shift),
    "group_norm": lambda m, z: F.group_norm(z, 2, m.gain, m.shift),
    "rms_norm": lambda m, z: F.rms_norm(z, (8,), m.gain, 1e-3),
    "instance_norm": lambda m, z: F.instance_norm(z.unsqueeze(1)).squeeze(1),
    "batch_norm": lambda m, z: F.batch_norm(z, None, None, m.gain, m.shift, training=True),
    "batch_norm eval": lambda m, z: F.batch_norm(z, m.mean, m.variance, m.gain, m.shift),
    "softmax": lambda m, z: z.softmax(-1) * m.gain,
    "log_softmax": lambda m, z: z.log_softmax(-1) * m.gain,
    "max": lambda m, z: torch.cat((z[:, :4].amax(-1, keepdim=True), z[:, 1:]), -1),
    "attention": lambda m, z: F.scaled_dot_product_attention(
        z.view(1, -1, 8), (z * m.gain).view(1, -1, 8), z.view(1, -1, 8)
    ).view_as(z),
    "matmul": lambda m, z: (z.t() @ z).softmax(-1).mul(m.gain)[: z.shape[0]],
    "normalize": lambda m, z: F.normalize(z, dim=-1),
    "variance": lambda m, z: (z - z.mean(-1, keepdim=True)) * (z.var(-1, keepdim=True) + 0.1).rsqrt() * m.gain,
}


@pytest.mark.parametrize("rule", [Epsilon(0.25), ZPlus(0.25), Gamma(0.5, 0.25)], ids=repr)
@pytest.mark.parametrize("name", OPERATIONS)
def test_second_derivatives_of_operations(name, rule):
    """Each operation's own parameters included."""
    check(every_layer(rule), Every(OPERATIONS[name]), torch.randn(4, 6, dtype=torch.float64))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.norm, self.head = nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.double().eval()

    def forward(self, x):
        for _ in range(3):
            x = F.relu(self.norm(self.layer(x)), inplace=True)
        return self.head(x)


@pytest.mark.parametrize("composite", SMOOTH.values(), ids=SMOOTH)
def test_second_derivatives_of_a_shared_layer(composite):
    check(composite, Shared(), torch.randn(3, 6, dtype=torch.float64))


def test_second_derivatives_through_a_module_that_passes_relevance():
    middle = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    twin = nn.Sequential(nn.Linear(6, 8), middle, nn.ReLU(), nn.Linear(8, 3)).double()
    check(Composite([("1", Pass()), (AnyLinear, ZPlus(0.25))]), twin, torch.randn(3, 6, dtype=torch.float64))


class Passing(nn.Module):
    """A module behind a product, past which no relevance travels as such."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.head = nn.Sequential(nn.Linear(6, 6), nn.Tanh()).double(), nn.Linear(6, 3).double()

    def forward(self, x):
        return self.head(self.inner(x * x.roll(1, -1)))


def test_second_derivatives_of_relevance_that_is_divided_by_what_a_module_was_given():
    check(Composite([("inner", Pass()), (AnyLinear, Epsilon(0))]), Passing(), torch.randn(3, 6, dtype=torch.float64))


# --- training by explanations -----------------------------------------------------------------------------------


def fraction_outside(found):
    """A right-for-the-right-reasons loss: the share of relevance outside of the first columns."""
    return found[..., 2:].abs().sum() / found.abs().sum()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_training_step_by_explanations(name):
    """``loss.backward()`` fills ``p.grad`` with the derivative of the loss, and only then."""
    composite = composites.EpsilonPlus(0.25, 0.25)
    model, x = network(name)
    leaf = x.clone().requires_grad_()
    found = explained(composite, model, leaf, create_graph=True)
    assert all(p.grad is None for p in model.parameters())
    fraction_outside(found).backward()
    wanted = torch.autograd.grad(
        fraction_outside(explained(composite, model, x.clone().requires_grad_(), create_graph=True)),
        list(model.parameters()),
        allow_unused=True,
    )
    for (key, parameter), gradient in zip(model.named_parameters(), wanted, strict=True):
        if gradient is None or parameter.grad is None:
            assert parameter.grad is None, key
            assert gradient is None, key
        else:
            torch.testing.assert_close(parameter.grad, gradient)
    check(composite, model, x, fraction_outside)
    loss = float(fraction_outside(found.detach()))
    torch.optim.SGD(model.parameters(), lr=1e-4).step()
    assert float(fraction_outside(relevance(composite, model, x))) < loss


@pytest.mark.parametrize("where", ["inside", "after"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_loss_of_the_prediction_and_its_relevance(name, where):
    """One forward pass for both, as explanation-guided training is written: each part has its own derivative."""
    composite, target = composites.EpsilonPlus(0.25, 0.25), torch.tensor([0, 1])
    model, x = network(name)
    twin = copy.deepcopy(model)
    F.cross_entropy(twin(x), target).backward()
    fraction_outside(explained(composite, twin, x.clone().requires_grad_(), create_graph=True)).backward()
    leaf = x.clone().requires_grad_()
    with composite.context(model):
        output = model(leaf)
        found = torch.autograd.grad(output, leaf, weighting(output), create_graph=True)[0]
        loss = F.cross_entropy(output, target) + fraction_outside(found)
        if where == "inside":
            loss.backward()
    if where == "after":
        loss.backward()
    for (key, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert (p.grad is None) == (q.grad is None), key
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, msg=key)


@pytest.mark.parametrize("name", ["vgg", "residual", "gates"])
def test_an_explained_value_that_is_no_linear_function_of_the_output(name):
    """Of a probability, or of a squared output: the weighting at the output is itself differentiated."""

    def probability(composite, model, x, *, create_graph=False):
        with composite.context(model):
            value = model(x).log_softmax(-1)[:, 1].exp().sum()
            return torch.autograd.grad(value, x, create_graph=create_graph)[0]

    model, x = network(name)
    check(SMOOTH["ZPlus"], model, x, explain=probability)


def test_a_third_derivative():
    """The curvature of relevance along a direction, as a derivative of a derivative."""
    model = nn.Sequential(nn.Linear(4, 6), nn.GELU(), nn.Linear(6, 2)).double()
    composite = every_layer(Gamma(0.5, 0.5))
    x, direction = torch.randn(2, 4, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)

    def slope(point):
        found = explained(composite, model, point, create_graph=True)
        return torch.autograd.grad((found * direction).sum(), point, create_graph=True)[0]

    leaf = x.clone().requires_grad_()
    (curvature,) = torch.autograd.grad((slope(leaf) * direction).sum(), leaf)
    ends = [(slope((x + s * STEP * direction).requires_grad_()) * direction).sum().detach() for s in (1, -1)]
    torch.testing.assert_close((curvature * direction).sum(), (ends[0] - ends[1]) / (2 * STEP), rtol=1e-5, atol=1e-7)
