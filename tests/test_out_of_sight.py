"""What a model computes where no function mode looks: served, refused, or named by the audit; never silent."""

import threading
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lrphooks import Composite, LRPError, UnmatchedWarning, audit, lrp
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, Gamma, Gradient, ZPlus
from small_networks import equal, every_layer, relevance, weighting

ZPLUS = every_layer(ZPlus())
EXACT = Composite([(AnyLinear, Epsilon(0))])
X = torch.linspace(-1, 1.5, 12, dtype=torch.float64).reshape(3, 4)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)).double()


class Calls(nn.Module):
    """A network and a function after it."""

    def __init__(self, function):
        super().__init__()
        self.net, self.function = net(), function

    def forward(self, x):
        return self.function(self.net(x))


def gated(z):
    return z * z.sigmoid()


@pytest.mark.parametrize("warm", [True, False])
def test_compiled_functions_run_as_they_are_written(warm):
    """Around the model and inside of it; what they were compiled to before has no hooks and no rules."""
    torch._dynamo.reset()
    inside = torch.compile(gated, backend="eager")
    equal(relevance(ZPLUS, Calls(inside), X), relevance(ZPLUS, Calls(gated), X))
    model = net()
    around = torch.compile(lambda z: model(z).relu(), backend="eager")
    leaf = X.clone().requires_grad_()
    if warm:
        around(leaf)
    with ZPLUS.context(model):
        output = around(leaf)
        output.backward(weighting(output))
    twin = X.clone().requires_grad_()
    with ZPLUS.context(model):
        output = model(twin).relu()
        output.backward(weighting(output))
    equal(leaf.grad, twin.grad)


def test_compiled_functions_are_compiled_again_after_the_last_context():
    from torch._dynamo.eval_frame import _stance

    before = _stance.stance
    contexts = [ZPLUS.context(net()) for _ in range(2)]
    for context in contexts:
        context.__enter__()
    with pytest.warns(UserWarning, match="without a forward pass"):
        contexts[0].__exit__(None, None, None)
    from torch._dynamo import eval_frame

    assert eval_frame._stance.stance == "force_eager"
    with pytest.warns(UserWarning, match="without a forward pass"):
        contexts[1].__exit__(None, None, None)
    assert eval_frame._stance.stance == before


class Mapped(nn.Module):
    def __init__(self, transform):
        super().__init__()
        self.net, self.transform = net(), transform

    def forward(self, x):
        return self.transform(self.net, x)


@pytest.mark.parametrize(
    "transform",
    [
        lambda f, x: torch.func.vmap(f)(x),
        lambda f, x: torch.func.grad(lambda t: f(t).square().sum())(x),
        lambda f, x: torch.func.jvp(f, (x,), (x,))[1],
    ],
    ids=["vmap", "grad", "jvp"],
)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")  # jvp uses it
def test_transforms_of_functions_are_refused(transform):
    with pytest.raises(LRPError, match=r"transform of torch\.func \(vmap.*is_grads_batched=True"):
        lrp(Mapped(transform), X, lambda output: output[:, 0], ZPLUS)


def test_transforms_around_the_model_are_refused():
    with ZPLUS.context(model := net()), pytest.raises(LRPError, match=r"transform of torch\.func"):
        torch.func.vmap(model)(X.clone().requires_grad_())


def test_a_transform_of_what_carries_no_relevance_is_none_of_our_business():
    """Masks of transformers are made by vmap, of indices alone."""

    def masked(z):
        mask = torch.func.vmap(lambda i: i % 2)(torch.arange(3))
        return z * mask

    equal(relevance(EXACT, Calls(masked), X), relevance(EXACT, Calls(lambda z: z * (torch.arange(3) % 2)), X))


class Ensemble(nn.Module):
    """Stacked weights of several networks on one input, which the transform does not hold itself."""

    def __init__(self):
        super().__init__()
        self.nets = nn.ModuleList(net() for _ in range(2))

    def forward(self, x):
        parameters, _ = torch.func.stack_module_state(self.nets)
        run = torch.func.vmap(lambda p: torch.func.functional_call(self.nets[0], p, (x,)))
        return run(parameters).mean(0)


def test_a_transform_over_weights_is_refused():
    with pytest.raises(LRPError, match=r"transform of torch\.func \(vmap"):
        lrp(Ensemble(), X, 0, ZPLUS)


def test_a_transform_that_only_moves_values_runs():
    try:
        torch.func.vmap(lambda i: X[i])(torch.arange(2))
    except RuntimeError:
        pytest.skip("the vmap of this torch takes no index")

    def picked(z):
        return torch.func.vmap(lambda i: z[i])(torch.arange(2).flip(0))

    equal(relevance(EXACT, Calls(picked), X), relevance(EXACT, Calls(lambda z: z[:2].flip(0)), X))


class Force(nn.Module):
    """The derivative of an energy, as models of molecules return it."""

    def __init__(self, create_graph):
        super().__init__()
        self.net, self.create_graph = net(), create_graph

    def forward(self, x):
        energy = self.net(x).square().sum()
        return x * torch.autograd.grad(energy, x, create_graph=self.create_graph)[0]


def test_derivatives_within_the_model_are_refused_and_constants_where_they_have_no_graph():
    with pytest.raises(LRPError, match=r"differentiates .* in the model \(Force\).*create_graph=True.*Explain what it"):
        lrp(Force(create_graph=True), X, 0, EXACT)
    found = lrp(Force(create_graph=False), X, 0, EXACT)
    leaf = X.clone().requires_grad_()
    wanted = leaf.detach() * torch.autograd.grad(net()(leaf).square().sum(), leaf)[0]
    wanted[:, 1:] = 0.0
    equal(found, wanted)


class ByActivation(nn.Module):
    """A model that adds a derivative by an activation, which counts as a constant."""

    def __init__(self, *, written):
        super().__init__()
        self.net, self.written = net(), written

    def forward(self, x):
        z = self.net(x.relu())
        if self.written:
            return z + 2 * z.detach().relu()
        return z + torch.autograd.grad(z.relu().square().sum(), z, retain_graph=True)[0]


def test_derivatives_by_an_activation_are_constants_or_refused(close):
    torch.manual_seed(0)
    model, written = ByActivation(written=False), ByActivation(written=True)
    written.load_state_dict(model.state_dict())
    epsilon = Composite([(AnyLinear, Epsilon(1e-3))])
    close(lrp(model, X, 0, epsilon), lrp(written, X, 0, epsilon), 1e-12)
    # What a rule knows of the ReLU stands in front of the activation there.
    message = r"differentiates .* in the model \(ByActivation\).*by an activation.*detach\(\)\.requires_grad_"
    with pytest.raises(LRPError, match=message):
        lrp(model, X, 0, Composite([(AnyLinear, Gamma())]))


class Threaded(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x):
        found = []
        thread = threading.Thread(target=lambda: found.append(self.net(x)))
        thread.start()
        thread.join()
        return found[0] * 1.0


def scripted(function):
    """A function in TorchScript, which is deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(function)


def traced(function):
    """A function in TorchScript by another way."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.trace(function, torch.ones(3, 3, dtype=torch.float64))


def swish(z: torch.Tensor) -> torch.Tensor:
    return z * torch.sigmoid(z)


def gate(z: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    return z * torch.sigmoid(g)


def joined(z: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    """Its plain gradient is what the rules ask for, in sight as well."""
    return torch.cat((z.flip(-1), torch.relu(z + g)), -1)[:, :3].clone()


def in_thread(function):
    def run(*operands):
        found = []
        thread = threading.Thread(target=lambda: found.append(function(*operands)))
        thread.start()
        thread.join()
        return found[0]

    return run


HIDDEN = {
    "script": (lambda: scripted(swish), r"Mul|DifferentiableGraph"),
    "trace": (lambda: traced(swish), r"Mul|DifferentiableGraph"),
    "thread": (lambda: in_thread(swish), "Mul, Sigmoid"),
    "layer in a thread": (lambda: in_thread(nn.Linear(3, 3).double()), "Addmm"),
}
USED = {
    "at the end": lambda f: f,
    "by an operation": lambda f: lambda z: f(z) * 1.0,
    "twice": lambda f: lambda z: (y := f(z)) + y * 2.0,
    "by a function of its own": lambda f: lambda z: Straight.apply(f(z)) + 1.0,
    "written to": lambda f: lambda z: f(z).add_(1.0),
    "in a checkpoint": lambda f: lambda z: checkpoint(lambda t: f(t) * 1.0, z, use_reentrant=False),
    "with a backward hook": lambda f: hooked(f),
}


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * 1.0

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def hooked(function):
    """A module that runs a function, and has a backward hook."""
    module = Calls(function)
    module.net = nn.Identity()
    module.register_full_backward_hook(lambda *_: None)
    return module


def kept(policy, rule):
    return Composite([(Straight, Gradient()), (AnyLinear, rule)], unmatched=policy)


@pytest.mark.parametrize(
    ("how", "use"),
    # torch cannot run TorchScript in a checkpoint.
    [(how, use) for how in HIDDEN for use in USED if not (use == "in a checkpoint" and how in ("script", "trace"))],
)
def test_what_runs_out_of_sight_is_reported(how, use):
    make, nodes = HIDDEN[how]
    message = rf"operations out of sight in the model.*\.py:\d+.*on shape \(3, 3\).* node.* ({nodes})"
    model = Calls(USED[use](make()))
    for _ in range(3):  # TorchScript compiles anew, and has other nodes then
        with pytest.raises(LRPError, match=message + ".* PYTORCH_JIT=0"):
            lrp(model, X, 0, kept("error", Epsilon(0)))
    with pytest.warns(UnmatchedWarning, match=message):
        found = lrp(model, X, 0, kept("warn", Epsilon(0)))
    leaf = X.clone().requires_grad_()
    (plain,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    equal(found, plain * X)
    equal(lrp(model, X, 0, kept("gradient", Epsilon(0))), plain * X)


@pytest.mark.parametrize("rule", [Epsilon(0), ZPlus()], ids=repr)
def test_what_has_its_gradient_by_the_rules_too_is_not_reported(rule):
    equal(
        relevance(kept("error", rule), Calls(lambda z: in_thread(joined)(z, z * 2.0)), X),
        relevance(kept("error", rule), Calls(lambda z: joined(z, z * 2.0)), X),
    )


def test_a_gate_out_of_sight_is_reported_and_its_operands_have_their_rules():
    hidden = scripted(gate)
    with pytest.raises(LRPError, match="operations out of sight"):
        lrp(Calls(lambda z: hidden(z, z.flip(1))), X, 0, ZPLUS)


def test_what_counts_as_a_constant_may_be_made_out_of_sight():
    hidden = scripted(swish)
    found = lrp(Calls(lambda z: z * hidden(torch.sigmoid(z))), X, 0, EXACT)
    equal(found, lrp(Calls(lambda z: z * swish(torch.sigmoid(z)).detach()), X, 0, EXACT))


@pytest.mark.parametrize(
    ("model", "name"),
    [(Threaded(), "Addmm"), (Calls(lambda z: in_thread(lambda t: t.sigmoid() + 1.0)(z) * 1.0), "Add")],
    ids=["thread", "operations in a thread"],
)
def test_what_runs_out_of_sight_is_named_by_the_audit(model, name):
    report = audit(model, X, 0, Composite(EXACT.entries if name == "Add" else ZPLUS.entries, unmatched="gradient"))
    assert report.unexplained > 1e-3
    assert report.hidden == {name: 1}


def test_what_runs_in_torchscript_is_named_by_the_audit():
    hidden = scripted(swish)
    report = audit(Calls(lambda z: hidden(z) * 1.0), X, 0, Composite(EXACT.entries, unmatched="gradient"))
    assert report.unexplained > 1e-3
    assert list(report.hidden.values()) == [1]


# --- numbers that are not real, or not there ---


@pytest.mark.parametrize(
    "function",
    [lambda c: c * c, lambda c: c**2, lambda c: c @ torch.full((2, 2), 1.0 + 2.0j, dtype=torch.complex128)],
    ids=["product", "power", "matmul"],
)
def test_complex_activations_conserve(function):
    """|c|, a power of 1/2 of a sum of squares, keeps zero; its relevance is all of f."""
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    model = Calls(lambda c: c)
    model.net = nn.Identity()
    model.function = lambda z: function(torch.view_as_complex(z)).abs()
    found = lrp(model, x, lambda output: output[:, 0], EXACT)
    torch.testing.assert_close(found.sum(), model(x)[:, 0].sum(), rtol=1e-12, atol=0)


class Weighted(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight = nn.Parameter(torch.randn(2, 2, dtype=torch.complex128))

    def forward(self, x):
        return torch.view_as_real(torch.view_as_complex(x) @ self.weight).sum(-1)


def test_complex_layers_have_the_gradient_or_are_refused():
    x = torch.randn(3, 2, 2, dtype=torch.float64)
    found = lrp(Weighted(), x, 0, EXACT)
    torch.testing.assert_close(found.sum(), Weighted()(x)[:, 0].sum().detach(), rtol=1e-12, atol=0)
    with pytest.raises(LRPError, match=r"ZPlus\(.*matmul.*complex numbers.*Epsilon\(0\)"):
        lrp(Weighted(), x, 0, ZPLUS)


def test_complex_and_sparse_inputs_are_refused():
    with pytest.raises(LRPError, match=r"complex \(torch\.complex64\).*view_as_real"), EXACT.context(model := net()):
        model(torch.zeros(1, 4, dtype=torch.complex64, requires_grad=True))
    with pytest.raises(LRPError, match=r"sparse \(torch\.sparse_coo\).*x\.to_dense\(\)"):
        lrp(net(), X.to_sparse(), 0, EXACT)


@pytest.mark.parametrize("missing", [float("nan"), float("inf"), -float("inf")])
def test_missing_inputs_that_the_model_replaces_have_no_relevance(missing):
    class Filled(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(torch.where(torch.isfinite(x), x, 0.0))

    x, filled = X.clone(), X.clone()
    x[0, 1], filled[0, 1] = missing, 0.0
    equal(lrp(Filled(), x, 0, ZPLUS), lrp(net(), filled, 0, ZPLUS))
    assert audit(Filled(), x, 0, ZPLUS).unexplained < 1e-14


def test_a_bias_that_takes_everything_is_the_sink():
    """Where z-plus finds no positive contribution, the positive bias takes all, not the stabilizer."""
    model = nn.Sequential(nn.Linear(1, 1)).double()
    model[0].weight.data.fill_(-1.0)
    model[0].bias.data.fill_(3.0)
    report = audit(model, torch.ones(1, 1, dtype=torch.float64), 0, every_layer(ZPlus(0.0)))
    assert report.sinks == {"bias": 2.0}
