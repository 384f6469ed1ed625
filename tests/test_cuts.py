"""Where relevance ends inside of a model, with gradients disabled or in kernels without a derivative: never silent."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import Composite, LRPError, UnmatchedError, UnmatchedWarning, audit, compiled, explain, lrp, lrp_targets
from lrphooks.matching import AnyLinear
from lrphooks.rules import Constant, Epsilon, Gradient, ZPlus
from small_networks import equal

EXACT = Composite([(AnyLinear, Epsilon(0))])
X = torch.linspace(-1, 1.5, 12, dtype=torch.float64).reshape(3, 4)
Y = torch.linspace(2, -1, 12, dtype=torch.float64).reshape(3, 4)


def switched(function):
    torch.set_grad_enabled(False)
    try:
        return function()
    finally:
        torch.set_grad_enabled(True)


#: How gradients are disabled, by what the message says of it.
DISABLED = {
    "no_grad": r"torch\.no_grad\(\)",
    "set_grad_enabled": r"torch\.no_grad\(\)",
    "inference_mode": r"torch\.inference_mode\(\)",
}


def disabled(how, function, *operands):
    """Run a function with gradients disabled in one of three ways."""
    if how == "set_grad_enabled":
        return switched(lambda: function(*operands))
    with torch.inference_mode() if how == "inference_mode" else torch.no_grad():
        return function(*operands)


class Net(nn.Module):
    """A layer, what is done with its output, and a layer behind that."""

    def __init__(self, function):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.side, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.function = function
        self.double()

    def forward(self, x):
        return self.head(self.function(self, self.stem(x)))


#: What the model makes with gradients disabled and goes on with: its relevance is missing.
CUT = {
    "sum": lambda how: lambda m, z: z + disabled(how, m.side, z).clone(),
    "product": lambda how: lambda m, z: z * disabled(how, lambda t: t * 0.5, z).clone(),
    "after further operations": lambda how: lambda m, z: z + F.relu(m.side(disabled(how, torch.tanh, z).clone()) * 2.0),
    "in a container": lambda how: lambda m, z: torch.cat([z, disabled(how, torch.relu, z).clone()], 1)[:, :4],
    "mean": lambda how: lambda m, z: z - disabled(how, torch.mean, z).clone(),
    "written into a buffer": lambda how: (
        lambda m, z: z + torch.zeros_like(z).index_copy(0, torch.arange(3), disabled(how, torch.abs, z).clone())
    ),
}


@pytest.mark.parametrize("how", DISABLED)
@pytest.mark.parametrize("name", CUT)
def test_what_is_made_with_gradients_disabled_and_used_is_told_of_once(name, how):
    model = Net(CUT[name](how))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = lrp(model, X, 0, EXACT)
        lrp_targets(model, X, [0, 1], EXACT)
    (first, *_) = told = [w for w in caught if "runs under" in str(w.message)]
    assert len(told) == 2, "once for each forward pass"
    assert DISABLED[how].replace("\\", "") in str(first.message)
    assert "on shape (3, 4)" in str(first.message)
    assert f"{first.filename}:{first.lineno}" in str(first.message)
    assert first.filename == __file__
    assert "x.detach()" in str(first.message)
    leaf = X.clone().requires_grad_()
    equal(found, torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)[0] * X)


def test_the_module_that_runs_is_named():
    class Tower(nn.Module):
        def __init__(self):
            super().__init__()
            self.proj = nn.Linear(4, 4)

        @torch.no_grad()
        def forward(self, x):
            return self.proj(x)

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.tower, self.head = Tower(), nn.Linear(4, 3)

        def forward(self, x):
            return self.head(x + self.tower(x))

    with pytest.warns(UserWarning, match=r"operation linear in module 'tower\.proj' \(Linear\) .*on shape \(3, 4\)"):
        lrp(Two().double(), X, 0, EXACT)


class Rotary(nn.Module):
    """As transformers' rotary embeddings: the tensor gives its shape, type and device alone."""

    @torch.no_grad()
    def forward(self, x):
        t = torch.arange(x.shape[-1], device=x.device).to(x).type_as(x)
        return (t.expand_as(x) / 4).cos().to(dtype=x.dtype) + torch.zeros_like(x) + x.new_ones(1)


#: What is no loss, by what makes it: as it is, and with detach in its place where that changes anything.
SILENT = {
    "rotary": lambda m, z: z * Rotary()(z),
    "detach": lambda m, z: z + disabled("no_grad", lambda t: t.detach() * 2.0, z),
    "data": lambda m, z: z + disabled("no_grad", lambda t: t.data * 2.0, z),
    "statistics of detached values": lambda m, z: z * disabled("no_grad", lambda t: t.detach().abs().max(), z),
    "a denominator": lambda m, z: z / disabled("no_grad", lambda t: t.abs().max(), z),
    "a reciprocal": lambda m, z: z * disabled("no_grad", lambda t: 1.0 / t.abs().max(), z),
    "a norm": lambda m, z: z * disabled("no_grad", lambda t: t.norm(), z),
    "a gate": lambda m, z: z * disabled("no_grad", torch.sigmoid, z),
    "a mask": lambda m, z: z * disabled("no_grad", lambda t: (t * 2.0 > 0.5).to(t.dtype), z),
    "indices": lambda m, z: z.gather(1, disabled("no_grad", lambda t: (t * 3.0).argsort(1), z)),
    "indices of values": lambda m, z: z.gather(1, disabled("no_grad", lambda t: t * 3.0, z).topk(4, 1).indices),
    "never used": lambda m, z: (disabled("no_grad", m.side, z), z)[1],
    "used to compare": lambda m, z: torch.where(disabled("no_grad", m.side, z) > 0, z, z * 0.5),
    "printed": lambda m, z: (repr(disabled("no_grad", m.side, z).mean().item()), z)[1],
    "like": lambda m, z: z + torch.ones_like(disabled("no_grad", m.side, z)),
    "parameters": lambda m, z: z @ disabled("no_grad", lambda: m.side.weight * 2.0),
    "a function of its own": lambda m, z: Doubled.apply(z),
    "an argmax that picks": lambda m, z: z[:, disabled("no_grad", lambda t: (t * 2).sum(0).argmax(), z)][:, None] * z,
}


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (x * 4.0) / 2.0

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 2.0


@pytest.mark.parametrize("rule", [Epsilon(0), Epsilon(0.1), ZPlus()], ids=repr)
@pytest.mark.parametrize("name", SILENT)
def test_what_is_no_loss_is_silent(name, rule):
    composite = Composite([(Doubled, Gradient()), (AnyLinear, rule)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        # The biases of these networks may take nearly all, which is another matter.
        warnings.filterwarnings("ignore", message=".* of f.x. arrives at the inputs")
        assert lrp(Net(SILENT[name]), X, 0, composite).abs().max() > 0


class Towers(nn.Module):
    """Two inputs, one of them through a tower that runs with gradients disabled."""

    def __init__(self, how, mixed=False):
        super().__init__()
        torch.manual_seed(0)
        self.tower, self.text, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 3)
        self.how, self.mixed = how, mixed
        self.double()

    def forward(self, picture, text):
        seen = self.tower(picture).detach() if self.how == "detach" else disabled(self.how, self.tower, picture)
        if self.mixed:
            seen = seen + picture
        return self.head(torch.cat([seen.clone(), self.text(text)], 1))


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("how", DISABLED)
def test_a_whole_input_that_gradients_disabled_cut_off_is_refused(how, learning):
    model = Towers(how).requires_grad_(learning)
    message = rf"input of shape \(3, 4\) .*no path.*linear in module 'tower' \(Linear\).*{DISABLED[how]}.* leave that"
    for explanation in (lrp, explain, audit):
        with pytest.warns(UserWarning, match="runs under"), pytest.raises(LRPError, match=message):
            explanation(model, (X, Y), 0, EXACT)
    # In a context the user says what is explained.
    text = Y.clone().requires_grad_()
    with EXACT.context(model):
        model(X, text)[:, 0].sum().backward()
    equal(text.grad, lrp(Towers("detach"), (X, Y), 0, EXACT)[1])


def test_an_input_with_another_path_is_explained_with_a_warning():
    with pytest.warns(UserWarning, match="operation linear in module 'tower'"):
        found, _ = lrp(Towers("no_grad", mixed=True), (X, Y), 0, EXACT)
    equal(found, lrp(Towers("detach", mixed=True), (X, Y), 0, EXACT)[0])


@pytest.mark.parametrize("learning", [True, False])
def test_a_model_that_disables_gradients_altogether_is_refused_by_its_module(learning):
    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            with torch.no_grad():
                z = self.body(x)
            return self.head(F.relu(z))

    model = Frozen().double().requires_grad_(learning)
    message = r"does not depend on the input.*operation linear in module 'body' \(Linear\).*torch\.no_grad\(\)"
    with pytest.raises(LRPError, match=message):
        lrp(model, X, 0, EXACT)
    with pytest.raises(LRPError, match=message), EXACT.context(model):
        model(X.clone().requires_grad_())


# --- kernels without a derivative ---

LIBRARY = torch.library.Library("lrphooks_cuts", "DEF")
LIBRARY.define("double(Tensor x) -> Tensor")
LIBRARY.impl("double", lambda x: x.detach() * 2.0, "CPU")


@torch.library.custom_op("lrphooks_cuts::triple", mutates_args=())
def triple(x: torch.Tensor) -> torch.Tensor:
    return x * 3.0


@torch.library.custom_op("lrphooks_cuts::double_into", mutates_args={"out"})
def double_into(x: torch.Tensor, out: torch.Tensor) -> None:
    out.copy_(x * 2.0)


UNDERIVED = {
    "lrphooks_cuts.double": torch.ops.lrphooks_cuts.double,
    "lrphooks_cuts.triple": torch.ops.lrphooks_cuts.triple,
    "histc": lambda z: torch.histc(z, 4).expand(3, 4),
}


@pytest.mark.parametrize("name", UNDERIVED)
def test_an_operation_without_a_derivative_is_reported_with_a_way_out_that_is_one(name):
    """Its plain gradient is none, so the message does not propose to keep it."""
    operation = UNDERIVED[name]
    model = Net(lambda m, z: z + operation(z))
    named = torch.histc if name == "histc" else operation
    message = (
        rf"operation {name} in the model \(Net\) \(.*test_cuts\.py:\d+\).* no derivative.*, lrphooks\.rules\.Constant"
    )
    with pytest.raises(UnmatchedError, match=message) as error:
        lrp(model, X, 0, EXACT)
    assert "Gradient()" not in str(error.value)
    with pytest.raises(UnmatchedError, match=message):
        lrp(model, X, 0, Composite([(named, Gradient()), *EXACT.entries], unmatched="gradient"))
    found = lrp(model, X, 0, Composite([(named, Constant()), *EXACT.entries]))
    equal(found, lrp(Net(lambda m, z: z + operation(z.detach())), X, 0, EXACT))


@pytest.mark.parametrize("operation", [double_into, torch.ops.lrphooks_cuts.double_into.default])
def test_what_an_operation_without_a_derivative_writes_to_is_reported(operation):
    def into(m, z):
        out = torch.zeros_like(z)
        operation(z, out)
        return z + out

    def constant(m, z):
        return z + 2.0 * z.detach()

    message = r"operation lrphooks_cuts\.double_into in the model \(Net\) \(.*test_cuts\.py:\d+\).* no derivative"
    with pytest.raises(UnmatchedError, match=message):
        lrp(Net(into), X, 0, EXACT)
    with pytest.warns(UnmatchedWarning, match=message):
        found = lrp(Net(into), X, 0, Composite(EXACT.entries, unmatched="warn"))
    equal(found, lrp(Net(constant), X, 0, EXACT))
    named = torch.ops.lrphooks_cuts.double_into
    equal(lrp(Net(into), X, 0, Composite([(named, Constant()), *EXACT.entries])), lrp(Net(constant), X, 0, EXACT))


def test_a_result_without_a_derivative_that_nobody_uses_is_silent():
    equal(lrp(Net(lambda m, z: (torch.histc(z), z)[1]), X, 0, EXACT), lrp(Net(lambda m, z: z), X, 0, EXACT))
    with pytest.warns(UnmatchedWarning, match="histc"):
        lrp(Net(lambda m, z: z * torch.histc(z).max()), X, 0, Composite(EXACT.entries, unmatched="warn"))


@pytest.mark.filterwarnings("ignore")  # quantisation is deprecated
def test_a_quantised_layer_is_refused():
    model = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3)), {nn.Linear}
    )
    for entries in ((), ((nn.Linear, Epsilon(0)),), ((torch.ops.quantized.linear_dynamic, Gradient()),)):
        with pytest.raises(LRPError, match=r"quantized\.linear_dynamic in module '\d' .*no derivative"):
            lrp(model, X.float(), 0, Composite([*entries, *EXACT.entries]))


class Weight(torch.Tensor):
    """A weight with a kernel of its own that has no derivative, as libraries for quantisation define them."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is F.linear:
            x, weight, *bias = args
            with torch.no_grad():
                return F.linear(x, weight.as_subclass(torch.Tensor), *bias)
        return super().__torch_function__(func, types, args, kwargs or {})


@pytest.mark.parametrize("rule", [Epsilon(0), Epsilon(0.1), ZPlus()], ids=repr)
def test_a_layer_with_a_kernel_without_a_derivative_is_refused(rule):
    model = Net(lambda m, z: z).requires_grad_(False)
    model.head.weight = nn.Parameter(model.head.weight.detach().as_subclass(Weight), requires_grad=False)
    with pytest.raises(LRPError, match=r"operation linear in module 'head' \(Linear\) .*no derivative"):
        lrp(model, X, 0, Composite([(AnyLinear, rule)]))


def test_compiled_explanations_refuse_as_well():
    with pytest.raises(LRPError, match=r"no path"), pytest.warns(UserWarning, match="runs under"):
        compiled(Towers("no_grad"), EXACT)((X, Y), 0)


# --- recorded modules that relevance cannot reach ---


class Aside(nn.Module):
    """A module beside the path of the explained input, and gates on it."""

    def __init__(self, how=""):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.side, self.gate, self.head = (nn.Linear(4, 4) for _ in range(4))
        self.how = how
        self.squash = nn.Sigmoid()
        self.double()

    def forward(self, x):
        z = self.stem(x)
        if self.how == "no_grad":
            with torch.no_grad():
                other = self.side(z)
        else:
            other = self.side(z.detach() if self.how == "detach" else torch.ones_like(z))
        return self.head(z * self.squash(self.gate(z)) + other)


@pytest.mark.parametrize("learning", [True, False])
@pytest.mark.parametrize("how", ["detach", "", "no_grad"])
@pytest.mark.filterwarnings("ignore:operation linear")
def test_a_recorded_module_that_the_input_does_not_reach_is_told_of(how, learning):
    model = Aside(how).requires_grad_(learning)
    reason = r"operation linear in module 'side' .*torch\.no_grad" if how == "no_grad" else "detached"
    with pytest.warns(UserWarning, match=rf"recorded of module 'side' is zero.*{reason}"):
        found = explain(model, X, 0, EXACT, record=["side", "stem"])
    assert not found.recorded["side"].any()
    assert found.recorded["stem"].abs().max() > 0


def test_a_recorded_module_that_counts_as_a_constant_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = explain(Aside("detach"), X, 0, EXACT, record=["squash", "gate", "stem"])
    assert not found.recorded["squash"].any()
