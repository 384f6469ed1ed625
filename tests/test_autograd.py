"""Relevance is a gradient: checkpointing, autocast, batched gradients and the like work on it as on any other."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from lrphooks import Composite, LRPError, composites, lrp
from lrphooks.matching import AnyLinear, First
from lrphooks.rules import Constant, Epsilon, Flat, Gamma, Gradient, Identity, Pass, WSquare, ZPlus
from small_networks import NETWORKS, PRESETS, SMOOTH, equal, every_layer, network, on_first, relevance, weighting

ZPLUS = every_layer(ZPlus())
COMPOSITES = {**{name: make(0.1, 0.1) for name, make in PRESETS.items()}, **SMOOTH}


# --- several backward passes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_several_targets_of_one_forward_pass(name):
    """With ``retain_graph``, one after another, equal as many forward passes; so do batched gradients."""
    for preset, composite in COMPOSITES.items():
        model, x = network(name)
        leaf = x.clone().requires_grad_()
        with composite.context(model):
            output = model(leaf)
            seeds = torch.eye(output.shape[1], dtype=x.dtype).unsqueeze(1).expand(-1, output.shape[0], -1)
            single = [torch.autograd.grad(output, leaf, seed, retain_graph=True)[0] for seed in seeds]
            (batched,) = torch.autograd.grad(output, leaf, seeds, is_grads_batched=True, retain_graph=True)
            (last,) = torch.autograd.grad(output, leaf, seeds[0])
        for target, grad in enumerate(single):
            expected = relevance(composite, model, x, seeds[target])
            if not expected.any():
                assert not grad.any()
                continue
            equal(grad, expected)
            equal(batched[target], expected, 1e-10)
        assert torch.equal(last, single[0]), preset


def test_a_graph_that_was_freed_says_so():
    model, x = network("vgg")
    leaf = x.clone().requires_grad_()
    with ZPLUS.context(model):
        output = model(leaf)
        output.sum().backward()
        with pytest.raises(RuntimeError, match="retain_graph=True"):
            output.sum().backward()


def test_the_backward_pass_may_come_after_the_context():
    for name in NETWORKS:
        model, x = network(name)
        leaf = x.clone().requires_grad_()
        with ZPLUS.context(model):
            output = model(leaf)
        output.backward(weighting(output))
        equal(leaf.grad, relevance(ZPLUS, model, x))


@pytest.mark.parametrize("name", NETWORKS)
def test_no_parameter_receives_a_gradient(name):
    """Nor does a gradient that is already there change."""
    for preset, composite in COMPOSITES.items():
        model, x = network(name)
        kept = next(model.parameters())
        kept.grad = torch.ones_like(kept)
        relevance(composite, model, x)
        assert torch.equal(kept.grad, torch.ones_like(kept)), preset
        assert [k for k, p in model.named_parameters() if p.grad is not None and p is not kept] == [], preset


class Dynamic(nn.Module):
    """Linear maps whose weight or bias is computed from the input, or that have but one output."""

    def __init__(self, kind):
        super().__init__()
        self.kind, self.make = kind, nn.Linear(6, 18)
        self.weight, self.bias = nn.Parameter(torch.randn(3, 6)), nn.Parameter(torch.randn(3))
        self.single = nn.Parameter(torch.randn(6))
        self.lstm, self.bilinear = nn.LSTM(6, 3, batch_first=True), nn.Bilinear(6, 6, 3)

    def forward(self, x):
        made = self.make(x).mean(0)
        if self.kind == "weight":
            return F.linear(x, made.reshape(3, 6), self.bias)
        if self.kind == "bias":
            return F.linear(x, self.weight, made[:3])
        if self.kind == "single":
            return F.linear(x, self.single).unsqueeze(1)
        if self.kind == "bilinear":
            return self.bilinear(x, x)
        return self.lstm(x.unsqueeze(1))[0][:, 0]


@pytest.mark.parametrize("kind", ["weight", "bias", "single", "lstm", "bilinear"])
def test_no_parameter_of_an_unusual_layer_receives_a_gradient(kind):
    """Whatever policy serves what has no rule."""
    model = Dynamic(kind)
    composite = Composite([(AnyLinear, Epsilon())], unmatched="gradient")
    relevance(composite, model, torch.randn(4, 6))
    assert [k for k, p in model.named_parameters() if p.grad is not None] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_rules_that_are_the_gradient_give_the_gradient(name):
    """As the modified gradient itself, or times the input as relevance where no convention says otherwise."""
    model, x = network(name)
    plain = x.clone().requires_grad_()
    output = copy.deepcopy(model)(plain)
    output.backward(weighting(output))
    equal(relevance(Composite([(AnyLinear, Gradient())], attribution="gradient"), model, x), plain.grad)
    if name in ("vgg", "residual", "functional"):
        equal(relevance(every_layer(Epsilon(0)), model, x), plain.grad * x)


@pytest.mark.parametrize("tool", ["anomaly", "cpu", "hooks"])
def test_autograd_tools_change_nothing(tool):
    """Anomaly detection, saved tensors offloaded or packed."""
    model, x = network("residual")
    context = {
        "anomaly": lambda: torch.autograd.set_detect_anomaly(True),
        "cpu": torch.autograd.graph.save_on_cpu,
        "hooks": lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t),
    }[tool]
    for composite in COMPOSITES.values():
        expected = relevance(composite, model, x)
        with context():
            found = relevance(composite, model, x)
        equal(found, expected)


@pytest.mark.parametrize("device", ["cpu", None])
def test_a_default_device_around_it_changes_nothing(device):
    model, x = network("tokens")
    expected = relevance(ZPLUS, model, x)
    with torch.device(device or torch.get_default_device()):
        equal(relevance(ZPLUS, model, x), expected)
        assert torch.zeros(1).device.type == "cpu"


# --- checkpointing ------------------------------------------------------------------------------------------------


def plainly(function, *args):
    return function(*args)


def checkpointed(function, *args):
    return checkpoint(function, *args, use_reentrant=False)


def reentrant(function, *args):
    return checkpoint(function, *args, use_reentrant=True)


class Block(nn.Module):
    def __init__(self, call, inside):
        super().__init__()
        self.fc1, self.act, self.fc2, self.norm = nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 6), nn.BatchNorm1d(6)
        self.call, self.inside = call, inside

    def body(self, x):
        return self.norm(self.fc2(F.silu(self.act(self.fc1(x)))))

    def forward(self, x):
        return F.relu((self.call(self.body, x) if self.inside else self.body(x)) + x, inplace=True)


class Blocks(nn.Module):
    """Two blocks, each as a whole or its body run by ``call``."""

    def __init__(self, call, inside):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Linear(6, 6)
        self.one, self.two, self.head = Block(call, inside), Block(call, inside), nn.Linear(6, 3)
        self.call, self.inside = call, inside
        self.double().eval()

    def forward(self, x):
        x = self.stem(x)
        if self.inside:
            return self.head(self.two(self.one(x)))
        return self.head(self.call(self.two, self.call(self.one, x)))


CHECKPOINTED = {
    **COMPOSITES,
    "named": Composite([("one", Gradient()), ("two.act", Constant()), (AnyLinear, ZPlus())]),
    "functions": Composite([(F.silu, Gradient()), (nn.GELU, Identity()), (AnyLinear, WSquare())]),
    "pass": Composite([("one", Pass()), (AnyLinear, ZPlus())]),
    "first": Composite([(First("one.*"), Flat()), (AnyLinear, ZPlus())]),
}


@pytest.mark.parametrize("inside", [True, False], ids=["function", "module"])
@pytest.mark.parametrize("composite", CHECKPOINTED.values(), ids=CHECKPOINTED)
def test_checkpointing_changes_nothing(composite, inside):
    """Of parts of the model, or of the whole model as one checkpoint."""
    x = torch.randn(3, 6, dtype=torch.float64)
    expected = relevance(composite, Blocks(plainly, inside), x)
    equal(relevance(composite, Blocks(checkpointed, inside), x), expected)
    leaf = x.clone().requires_grad_()
    plain = Blocks(plainly, inside)
    with composite.context(plain):
        output = checkpointed(plain, leaf)
        output.backward(weighting(output))
    equal(leaf.grad, expected)


@pytest.mark.parametrize("inside", [True, False], ids=["function", "module"])
@pytest.mark.parametrize("composite", CHECKPOINTED.values(), ids=CHECKPOINTED)
def test_a_checkpoint_may_run_again_after_the_context(composite, inside):
    """Where the modules have no hooks any more: the same relevance, or an error that says where to run backward."""
    x = torch.randn(3, 6, dtype=torch.float64)
    model, leaf = Blocks(checkpointed, inside), x.clone().requires_grad_()
    with composite.context(model):
        output = model(leaf)
    try:
        output.backward(weighting(output))
    except LRPError as error:
        told = str(error)
    else:
        told = ""
        equal(leaf.grad, relevance(composite, Blocks(plainly, inside), x))
    assert not told or "context" in told


@pytest.mark.parametrize("inside", [True, False], ids=["function", "module"])
@pytest.mark.parametrize("composite", CHECKPOINTED.values(), ids=CHECKPOINTED)
def test_a_checkpoint_may_run_again_in_another_thread(composite, inside):
    """As it does on a GPU, where autograd has a thread for each device."""
    x = torch.randn(3, 6, dtype=torch.float64)
    model, leaf = Blocks(checkpointed, inside), x.clone().requires_grad_()
    with composite.context(model), ThreadPoolExecutor(1) as pool:
        output = model(leaf)
        pool.submit(output.backward, weighting(output)).result()
    equal(leaf.grad, relevance(composite, Blocks(plainly, inside), x))


@pytest.mark.parametrize("inside", [True, False], ids=["function", "module"])
def test_second_derivatives_pass_checkpoints(inside):
    x = torch.randn(3, 6, dtype=torch.float64)

    def trained(model):
        leaf = x.clone().requires_grad_()
        with SMOOTH["ZPlus"].context(model):
            output = model(leaf)
            (found,) = torch.autograd.grad(output, leaf, weighting(output), create_graph=True)
            found.square().sum().backward()
        return [leaf.grad, *(p.grad for p in model.parameters())]

    for found, expected in zip(trained(Blocks(checkpointed, inside)), trained(Blocks(plainly, inside)), strict=True):
        if expected is None or not expected.any():
            assert found is None or not found.any()
        else:
            equal(found, expected)


def test_checkpoint_sequential():
    torch.manual_seed(0)
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(True)) for _ in range(4)))
    layers.double().eval()

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return checkpoint_sequential(self.layers, 2, x, use_reentrant=False)

    x = torch.randn(3, 6, dtype=torch.float64)
    for composite in COMPOSITES.values():
        equal(relevance(composite, Whole(), x), relevance(composite, layers, x))


@pytest.mark.parametrize("inside", [True, False], ids=["function", "module"])
def test_reentrant_checkpointing_is_refused(inside):
    x = torch.randn(3, 6, dtype=torch.float64)
    with pytest.raises(LRPError, match=r"reentrant checkpointing.*use_reentrant=False"):
        relevance(ZPLUS, Blocks(reentrant, inside), x)


class FunctionalCheckpoint(nn.Module):
    """A reentrant checkpoint around functions alone, in which no module hook is called."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(6, 6))

    def forward(self, x):
        return reentrant(lambda v: F.relu(v @ self.w), x * 1.0)


def test_reentrant_checkpointing_of_functions_is_refused_too():
    with pytest.raises(LRPError, match=r"reentrant checkpointing.*use_reentrant=False"):
        relevance(ZPLUS, FunctionalCheckpoint(), torch.randn(3, 6))


# --- precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_is_finite_and_close(composite, dtype):
    """To the relevance in float32, as far as that precision goes; the forward value is that of plain autocast."""
    for name in NETWORKS:
        model, x = network(name, dtype=torch.float32)
        expected = relevance(composite, model, x)
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype):
            plain = model(x.clone().requires_grad_())
            with composite.context(model):
                output = model(leaf)
        output.backward(weighting(output))
        assert output.dtype == plain.dtype, name
        assert torch.equal(output, plain), name
        assert leaf.grad.dtype == torch.float32
        assert leaf.grad.isfinite().all(), name
        similarity = float(F.cosine_similarity(leaf.grad.flatten(), expected.flatten(), 0))
        assert similarity > (0.97 if dtype == torch.bfloat16 else 0.995), (name, similarity)


@pytest.mark.parametrize(("dtype", "size", "stabilizer"), [(torch.float16, 10, 1e-6), (torch.float32, 10, 1e-38)])
def test_gamma_stays_finite_where_a_relu_lets_nothing_back(dtype, size, stabilizer):
    """Whatever the quotient is there, it is multiplied by 0."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1)).to(dtype)
    for parameter, values in zip(model.parameters(), ([[1.0], [-1.0]], [0, 0], [[1.0, 1.0]], [0]), strict=True):
        parameter.data[:] = torch.tensor(values)
    x = torch.full((1, 1), size, dtype=dtype, requires_grad=True)
    with every_layer(Gamma(0.25, stabilizer)).context(model):
        model(x).sum().backward()
    assert x.grad.item() == size


@pytest.mark.parametrize("rule", [ZPlus(), Epsilon(), Flat(), WSquare()], ids=repr)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_default_stabilizers_stay_finite_in_half_precision(dtype, rule):
    """1e-6 is no normal number in float16; dead and tiny activations must not become infinite relevance."""
    model, x = network("vgg", dtype=torch.float32)
    composite = on_first(rule, rule)
    for scale in (1e-4, 1.0, 10.0):
        with torch.autocast("cpu", dtype):
            found = relevance(composite, model, x * scale)
        assert found.isfinite().all(), scale
        assert relevance(composite, copy.deepcopy(model).to(dtype), (x * scale).to(dtype)).isfinite().all(), scale


@pytest.mark.parametrize("name", ["vgg", "residual", "tokens", "gates"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_half_precision_model(name, dtype):
    model, x = network(name, dtype=torch.float32)
    half = copy.deepcopy(model).to(dtype)
    for preset, composite in COMPOSITES.items():
        expected = relevance(composite, model, x)
        found = relevance(composite, half, x.to(dtype))
        assert found.dtype == dtype
        assert found.isfinite().all(), preset
        similarity = float(F.cosine_similarity(found.float().flatten(), expected.flatten(), 0))
        assert similarity > (0.9 if dtype == torch.bfloat16 else 0.99), (preset, similarity)


def test_lrp_inside_autocast():
    model, x = network("vgg", dtype=torch.float32)
    expected = lrp(model, x, 1, composites.EpsilonPlus(0.1, 0.1))
    with torch.autocast("cpu", torch.bfloat16):
        found = lrp(model, x, 1, composites.EpsilonPlus(0.1, 0.1))
    assert F.cosine_similarity(found.flatten(), expected.flatten(), 0) > 0.97
