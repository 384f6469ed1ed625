"""Every rule on every linear layer against the dense reference, in float64, to 1e-10 of the largest relevance."""

import functools
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from references import dense, run
from references.cases import LAYERS, RULES, SIGNS, STABILIZED, RuleCase, generic, layer, randomize, sample

pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
HEAD = 0.05
EXTRA = [
    RuleCase("zbox-decimal", "ZBox", {"low": -3.1, "high": 4.3}),  # not representable in float32
    RuleCase("alpha-decimal", "AlphaBeta", {"alpha": 2.3, "beta": 1.3}),
]
BY_INPUT = [case for case in RULES if case.by_input]
NOT_BY_INPUT = [case for case in RULES if not case.by_input]


def ids(case):
    """The parameter name of a case."""
    return case.id


def head_for(model, shape, out=3, seed=7):
    """A linear layer with generic weights on the flattened output of ``model``."""
    with torch.no_grad():
        size = model(torch.zeros(1, *shape, dtype=torch.float64)).numel()
    torch.manual_seed(seed)
    return randomize(nn.Linear(size, out))


def build(layer_name, structure):
    """A chain around the layer (the module ``layer``) such that the relevance at its output is generic."""
    ruled, shape = layer(layer_name)
    parts = OrderedDict()
    if structure in ("after-relu", "between-relus"):
        parts["before"] = nn.ReLU()
    parts["layer"] = ruled
    if structure in ("then-relu", "between-relus", "deep"):
        parts["act"] = nn.ReLU()
    if structure != "single":
        parts["flat"] = nn.Flatten()
        parts["head"] = head_for(nn.Sequential(parts), shape, out=5)
    if structure == "deep":
        parts["act2"] = nn.ReLU()
        parts["head2"] = head_for(nn.Sequential(parts), shape, seed=10)
    return nn.Sequential(parts), shape


def expected_chain(model, case, x, seed, everywhere=False):
    """The dense reference for a chain whose module ``layer`` (or every linear layer) has the case's rule."""
    upper = case.reference() if everywhere else functools.partial(dense.epsilon, epsilon=HEAD)
    reference = {"layer": case.reference()}
    output, relevance = dense.chain(model, lambda name, _: reference.get(name, upper), x, seed)
    np.testing.assert_allclose(output, model(x).detach().numpy(), rtol=1e-11, atol=1e-11)
    return relevance


@pytest.mark.parametrize("structure", ["single", "then-linear", "then-relu", "after-relu", "between-relus"])
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_every_rule_on_every_layer(case, layer_name, sign, structure, close):
    """Generic relevance at the output of the layer: signed, not one-hot, with and without ReLUs around it."""
    model, shape = build(layer_name, structure)
    x = sample(shape, sign)
    seed = generic(model(x).shape)
    close(run.relevance(run.ruled(case, head=HEAD), model, x, seed), expected_chain(model, case, x, seed))


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("layer_name", LAYERS)
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_the_same_rule_in_three_layers(case, layer_name, sign, close):
    """Stacks, those of z^B, w^2 and flat included: activations that are exactly zero carry relevance there."""
    model, shape = build(layer_name, "deep")
    x = sample(shape, sign)
    seed = generic(model(x).shape)
    close(run.relevance(run.everywhere(case), model, x, seed), expected_chain(model, case, x, seed, everywhere=True))


@pytest.mark.parametrize("structure", ["single", "then-relu"])
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("layer_name", ["linear", "linear-tokens", "conv2d-dilation-groups", "convtranspose2d"])
@pytest.mark.parametrize("case", STABILIZED + EXTRA, ids=ids)
def test_stabilizers(case, layer_name, sign, structure, close):
    """Large shifts and clips, scaled by the norm of z on request, over the dimensions that were asked for."""
    model, shape = build(layer_name, structure)
    x = sample(shape, sign, batch=3)
    seed = generic(model(x).shape)
    close(run.relevance(run.ruled(case, head=HEAD), model, x, seed), expected_chain(model, case, x, seed))


@pytest.mark.parametrize("case", RULES, ids=ids)
def test_a_layer_that_is_the_whole_model(case, close):
    """The model may be the layer itself, and the output may be selected by row and target."""
    from lrphooks import Composite
    from lrphooks.matching import Linear

    model, shape = layer("linear")
    x = sample(shape, "signed").requires_grad_()
    with Composite([(Linear, run.rule(case))]).context(model):
        model(x)[range(len(x)), [1, 3]].sum().backward()
    seed = F.one_hot(torch.tensor([1, 3]), 5).double()
    close(x.grad, dense.chain(nn.Sequential(model), lambda *_: case.reference(), x, seed)[1])


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_padding_modes(case, mode, close):
    """Other paddings copy pixels: the rule acts on the padded input, and each copy hands its relevance back."""
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(layer=randomize(nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode=mode))))
    x = sample((2, 4, 5), "signed")
    seed = generic(model(x).shape)
    places = torch.arange(x[0].numel(), dtype=torch.float64).reshape(1, *x[0].shape)
    places = F.pad(places, (2, 2, 1, 1), mode=mode)[0].long().numpy()  # which pixel each padded place shows
    padded = x.reshape(len(x), -1).numpy()[:, places]
    inner = nn.Conv2d(2, 3, 3).double()
    inner.load_state_dict(model[0].state_dict())
    layer_map = dense.DenseMap.of(inner, padded.shape[1:])
    there = case.reference()(layer_map, padded, model(x).detach().numpy() * seed.numpy())
    expected = np.zeros((len(x), x[0].numel()))
    for row, values in zip(expected, there, strict=True):
        np.add.at(row, places.reshape(-1), values.reshape(-1))
    close(run.relevance(run.only(case), model, x, seed), expected.reshape(x.shape))


@pytest.mark.parametrize("how", ["parametrization", "weight_norm", "subclass"])
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_weights_that_are_computed_in_the_forward_pass(case, how, close):
    """The rule must see the weight that was used, not the parameter it was computed from."""

    class Halved(nn.Module):
        def forward(self, weight):
            return weight - 0.5 * weight.mean()

    class Standardized(nn.Linear):
        def forward(self, input):
            return F.linear(input, self.weight - self.weight.mean(1, keepdim=True), self.bias)

    plain, shape = layer("linear")
    ruled = Standardized(6, 5).double()
    ruled.load_state_dict(plain.state_dict())
    if how == "parametrization":
        ruled = nn.utils.parametrize.register_parametrization(layer("linear")[0], "weight", Halved())
    elif how == "weight_norm":
        ruled = nn.utils.parametrizations.weight_norm(layer("linear")[0])
        ruled.parametrizations.weight.original0.data.mul_(1.7)
    basis = torch.eye(6, dtype=torch.float64)
    plain.weight.data.copy_((ruled(basis) - ruled.bias).T)
    model = nn.Sequential(OrderedDict(layer=ruled))
    x = sample(shape, "signed")
    seed = generic(model(x).shape)
    twin = nn.Sequential(OrderedDict(layer=plain))
    close(run.relevance(run.only(case), model, x, seed), expected_chain(twin, case, x, seed))


# Inputs that hold exact zeros


@pytest.mark.parametrize("structure", ["single", "then-relu", "after-relu", "deep"])
@pytest.mark.parametrize("layer_name", ["linear", "conv2d-nobias-stride", "convtranspose2d", "conv3d"])
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_inputs_with_exact_zeros(case, layer_name, structure, close):
    """A zero pixel has no relevance by rules that multiply by the input, and its share by the other ones."""
    model, shape = build(layer_name, structure)
    x = sample(shape, "signed") * (torch.rand(2, *shape) < 0.5)
    seed = generic(model(x).shape)
    composite = run.everywhere(case) if structure == "deep" else run.ruled(case, head=HEAD)
    expected = expected_chain(model, case, x, seed, everywhere=structure == "deep")
    assert case.by_input == (not expected[x.numpy() == 0].any())
    close(run.relevance(composite, model, x, seed), expected)


@pytest.mark.parametrize("structure", ["single", "then-relu", "deep"])
@pytest.mark.parametrize("layer_name", ["linear", "conv2d"])
@pytest.mark.parametrize("case", NOT_BY_INPUT, ids=ids)
def test_an_input_that_is_zero_everywhere(case, layer_name, structure, close):
    """A black image: z^B, w^2 and flat still distribute what the biases made of it."""
    model, shape = build(layer_name, structure)
    x = torch.zeros(2, *shape, dtype=torch.float64)
    seed = generic(model(x).shape)
    composite = run.everywhere(case) if structure == "deep" else run.ruled(case, head=HEAD)
    close(
        run.relevance(composite, model, x, seed),
        expected_chain(model, case, x, seed, everywhere=structure == "deep"),
    )


@pytest.mark.parametrize("top", NOT_BY_INPUT, ids=ids)
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_relevance_of_dead_units_reaches_the_layer_below(case, top, close):
    """A flat layer gives relevance to units whose ReLU is off; Pass hands it on to any rule below."""
    from lrphooks import Composite
    from lrphooks.matching import Activation
    from lrphooks.rules import Pass

    model, shape = build("conv2d", "then-relu")
    x = sample(shape, "signed")
    seed = generic(model(x).shape)
    composite = Composite(
        [(Activation, Pass()), ("layer", run.rule(case)), ("head", run.rule(top))], unmatched="gradient"
    )
    rules = {"layer": case.reference(), "head": top.reference()}
    expected = dense.chain(model, lambda name, _: rules[name], x, seed)[1]
    close(run.relevance(composite, model, x, seed), expected)


# z^B bounds


@pytest.mark.parametrize(
    "shape", [(), (2, 1, 1), (1, 2, 1, 1), (2, 5, 4), (1, 2, 5, 4)], ids=lambda shape: "x".join(map(str, shape)) or "0d"
)
@pytest.mark.parametrize("structure", ["single", "then-relu"])
def test_zbox_bounds_broadcast(shape, structure, close):
    """Bounds may be tensors: one number, one per channel, or one per pixel."""
    model, in_shape = build("conv2d", structure)
    generator = torch.Generator().manual_seed(3)
    low = -2 - torch.rand(shape, dtype=torch.float64, generator=generator)
    high = 2 + torch.rand(shape, dtype=torch.float64, generator=generator)
    case = RuleCase("zbox", "ZBox", {"low": low, "high": high})
    x = sample(in_shape, "signed")
    seed = generic(model(x).shape)
    close(run.relevance(run.ruled(case, head=HEAD), model, x, seed), expected_chain(model, case, x, seed))


def test_zbox_bounds_per_feature(close):
    """Bounds of a fully connected layer: one per feature."""
    model, shape = build("linear", "then-relu")
    case = RuleCase("zbox", "ZBox", {"low": -torch.arange(1.0, 7), "high": torch.arange(2.0, 8)})
    x = sample(shape, "signed")
    seed = generic(model(x).shape)
    close(run.relevance(run.ruled(case, head=HEAD), model, x, seed), expected_chain(model, case, x, seed))


# Cancellation: contributions of one sign only, and sums that almost vanish


def _one_sided(layer_name, sign):
    """A layer and a non-negative input whose contributions all have one sign in half of the outputs."""
    model, shape = build(layer_name, "single")
    with torch.no_grad():
        weight, bias = model.layer.weight, model.layer.bias
        outputs = weight if isinstance(model.layer, nn.Linear) else weight.flatten(1)
        outputs[::2] = sign * outputs[::2].abs()
        bias[::2] = 0.0
        bias[2] = -sign * 0.3
    return model, shape


@pytest.mark.parametrize("negate", [False, True], ids=["nonnegative", "nonpositive"])
@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("layer_name", ["linear", "conv2d", "conv1d"])
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_contributions_of_one_sign_only(case, layer_name, sign, negate, close):
    """Where no positive (negative) contribution exists the sum of them is exactly zero, not a rounding error."""
    model, shape = _one_sided(layer_name, sign)
    x = sample(shape, "nonnegative") * (-1 if negate else 1)
    seed = generic(model(x).shape)
    close(run.relevance(run.ruled(case), model, x, seed), expected_chain(model, case, x, seed))


@pytest.mark.parametrize("negate", [False, True], ids=["nonnegative", "nonpositive"])
def test_no_positive_contribution_at_all(negate, close):
    """z+ finds nothing to distribute: the relevance is zero (to 1e-10 of what arrived)."""
    torch.manual_seed(0)
    model = nn.Sequential(OrderedDict(layer=randomize(nn.Linear(40, 10))))
    x = sample((40,), "nonnegative")
    x, model.layer.weight.data = (-x, model.layer.weight.data.abs()) if negate else (x, -model.layer.weight.data.abs())
    seed = generic((2, 10))
    arrived = (model(x) * seed).abs().max().item()
    case = RuleCase("zplus", "ZPlus")
    expected = expected_chain(model, case, x, seed)
    assert not expected.any()
    close(run.relevance(run.only(case), model, x, seed), expected, scale=arrived)


@pytest.mark.parametrize("ratio", [2.0**-8, 2.0**-20, 2.0**-32], ids=["8bits", "20bits", "32bits"])
@pytest.mark.parametrize("side", [1, -1], ids=["few-positive", "few-negative"])
@pytest.mark.parametrize("case", BY_INPUT, ids=ids)
def test_small_sums_beside_large_ones(case, side, ratio, close, request):
    """Positive contributions that are tiny beside the negative ones (or the reverse) still get their relevance.

    All numbers are small multiples of powers of two, so every sum is exact in any order.
    """
    if case.id == "alpha2beta1" and ratio == 2.0**-32:
        reason = "alpha and beta on signed inputs share two transposed maps, whose difference cancels; four would not"
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    generator = torch.Generator().manual_seed(5)
    whole = torch.randint(1, 8, (4, 8), generator=generator).double()
    weight = torch.cat([side * ratio * whole[:, :4], -side * whole[:, 4:]], 1)
    model = nn.Sequential(OrderedDict(layer=nn.Linear(8, 4).double()))
    model.layer.weight.data.copy_(weight)
    model.layer.bias.data.zero_()
    x = torch.randint(1, 8, (3, 8), generator=generator).double()
    x[1] *= -1  # the same with the signs of input and weight exchanged
    model.layer.weight.data[1] *= -1
    seed = torch.tensor([1.0, -2, 3, 1]).double().expand(3, 4).contiguous()
    close(run.relevance(run.only(case), model, x, seed), expected_chain(model, case, x, seed))


@pytest.mark.parametrize("case", BY_INPUT, ids=ids)
def test_large_contributions_that_cancel(case, close):
    """z is small beside its contributions; all sums are exact in any order."""
    generator = torch.Generator().manual_seed(6)
    weight = torch.randint(-8, 9, (5, 4), generator=generator).double()
    model = nn.Sequential(OrderedDict(layer=nn.Linear(9, 5).double()))
    model.layer.weight.data.copy_(torch.cat([weight, -weight, torch.full((5, 1), 0.5).double()], 1))
    model.layer.bias.data.copy_(torch.tensor([0.25, -0.875, 0.125, 2, -0.75]))
    x = torch.randint(-(2**20), 2**20, (3, 4), generator=generator).double()
    x = torch.cat([x, x, torch.tensor([[1.0], [-3], [2]]).double()], 1)
    seed = generic((3, 5))
    close(run.relevance(run.only(case), model, x, seed), expected_chain(model, case, x, seed))


@pytest.mark.parametrize("case", [case for case in BY_INPUT if case.id != "epsilon0"], ids=ids)
def test_outputs_that_are_exactly_zero(case, close):
    """An output at zero carries no relevance, whatever gradient reaches it (LRP-0 divides zero by zero there)."""
    model, shape = build("linear", "single")
    x = sample(shape, "signed")
    x[:, 1] = -x[:, 0]
    model.layer.weight.data[2] = torch.tensor([1.0, 1, 0, 0, 0, 0])
    model.layer.bias.data[2] = 0
    assert not model(x)[:, 2].any()
    seed = generic((2, 5))
    close(run.relevance(run.only(case), model, x, seed), expected_chain(model, case, x, seed))


# What surrounds the layer. Shortcuts are allowed where the input is known to be non-negative or where a ReLU
# decides about the relevance, and only there.


class LeakyInDisguise(nn.ReLU):
    """A subclass of ReLU that lets negative values through."""

    def forward(self, input):
        """Leaky ReLU."""
        return F.leaky_relu(input, 0.3)


def hooked_relu():
    """A ReLU whose forward hook adds a part of the input back."""
    relu = nn.ReLU()
    relu.register_forward_hook(lambda module, args, output: output + 0.4 * args[0])
    return relu


class Around(nn.Module):
    """``after(layer(before(x)))`` and a flattening; a module class is instantiated, a function is called."""

    def __init__(self, ruled, before=nn.Identity, after=nn.Identity):
        super().__init__()
        self.before = before() if isinstance(before, type) else before
        self.layer = ruled
        self.after = after() if isinstance(after, type) else after

    def forward(self, x):
        """One tensor of features."""
        return self.after(self.layer(self.before(x))).flatten(1)


def in_place_relu(z):
    return z.relu_()


def half_rectified(z):
    half = z.shape[1] // 2
    return torch.cat([z[:, :half].relu(), z[:, half:]], 1)


def relu_and_raw(z):
    return torch.cat([z.relu(), z], 1)


def raw_and_relu(z):
    kept = 0.7 * z
    return kept + F.relu(z)


def chunks(z):
    first, second = z.split([1, z.shape[1] - 1], 1)
    return torch.cat([F.relu(first), second * 2], 1)


def relu_then_raw_in_place(z):
    copy = z.clone()
    return torch.cat([copy.relu_(), z], 1)


def relu_of_a_view_then_raw(z):
    rectified = z.view(len(z), -1).relu()
    return torch.cat([rectified, z.reshape(len(z), -1)], 1)


AFTER = {
    "nothing": nn.Identity,
    "relu-module": nn.ReLU,
    "relu-module-inplace": nn.ReLU(inplace=True),
    "relu-functional": F.relu,
    "relu-method": torch.Tensor.relu,
    "relu-in-place": in_place_relu,
    "clamp": lambda z: z.clamp(min=0),
    "leaky": nn.LeakyReLU(0.2),
    "leaky-functional": lambda z: F.leaky_relu(z, 0.2),
    "leaky-subclass-of-relu": LeakyInDisguise,
    "relu-with-a-hook": hooked_relu(),
    "relu-of-negated": lambda z: F.relu(-z),
    "negated-relu-of-negated": lambda z: -F.relu(-z),
    "relu-of-shifted": lambda z: F.relu(z + 0.7),
    "relu-of-scaled": lambda z: F.relu(z * -0.5),
    "relu-of-shifted-in-place": lambda z: F.relu(z.add_(0.7)),
    "relu-of-flattened": lambda z: z.flatten(1).relu(),
    "relu-of-rolled-difference": lambda z: F.relu(z - z.roll(1, 1)),
    "relu-of-mean": lambda z: F.relu(z - z.mean(1, keepdim=True)),
    "relu-and-raw": relu_and_raw,
    "raw-and-relu": raw_and_relu,
    "relu-then-raw": relu_then_raw_in_place,
    "relu-of-view-then-raw": relu_of_a_view_then_raw,
    "relu-on-half": half_rectified,
    "relu-on-chunk": chunks,
    "abs": torch.abs,
    "where": lambda z: torch.where(z > -0.4, z, torch.zeros_like(z)),
    "masked": lambda z: z * (z > -0.4),
    "dropout-relu": nn.Sequential(nn.Dropout(), nn.ReLU()),
    "max-of-two-halves": lambda z: torch.maximum(z, 0.5 * z),
    "relu-twice": lambda z: torch.cat([F.relu(z), F.relu(-2 * z)], 1),
}


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("layer_name", ["linear", "conv2d"])
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("case", BY_INPUT + NOT_BY_INPUT[1:2], ids=ids)
def test_what_follows_the_layer(case, after, layer_name, sign, close):
    """The relevance at z is z times the gradient of whatever follows, of either sign at either sign of z."""
    ruled, shape = layer(layer_name)
    model = Around(ruled, after=AFTER[after]).double().eval()
    x = sample(shape, sign)
    z = ruled(x).detach().requires_grad_()
    features = model.after(z.clone()).flatten(1)
    seed = generic(features.shape)
    (gradient,) = torch.autograd.grad(features, z, seed)
    expected = case.reference()(dense.DenseMap.of(ruled, shape), x.numpy(), z.detach().numpy() * gradient.numpy())
    close(run.relevance(run.only(case), model, x, seed), expected)


def clamp_then_shift_in_place(x):
    return x.clamp(min=0).sub_(0.3)


def clamp_then_shift_a_part(x):
    y = x.clamp(min=0)
    y[:, 0] -= 0.5
    return y


def cat_then_shift_in_place(x):
    return torch.cat([F.relu(x[:, :1]), F.relu(x[:, 1:])], 1).sub_(0.3)


def pool_then_shift_in_place(x):
    return F.max_pool1d(F.relu(x.flatten(1)), 1).sub_(0.3).view_as(x)


def shift_through_a_view(x):
    y = x.clamp(min=0)
    y.view(-1).sub_(0.3)
    return y


BEFORE = {
    "nothing": nn.Identity,
    "relu-module": nn.ReLU,
    "relu-functional": F.relu,
    "clamp": lambda x: x.clamp(min=0),
    "relu-minus": lambda x: F.relu(x) - 0.3,
    "relu-negated": lambda x: -F.relu(x),
    "relu-scaled": lambda x: F.relu(x) * torch.linspace(-1, 1, x.shape[-1], dtype=x.dtype),
    "relu-difference": lambda x: F.relu(x) - F.relu(x).roll(1, 1),
    "relu-residual": lambda x: F.relu(x) + 0.5 * x,
    "leaky": nn.LeakyReLU(0.2),
    "leaky-subclass-of-relu": LeakyInDisguise,
    "relu-with-a-hook": hooked_relu(),
    "half-rectified": half_rectified,
    "clamp-then-in-place": clamp_then_shift_in_place,
    "clamp-then-a-part": clamp_then_shift_a_part,
    "clamp-then-a-view": shift_through_a_view,
    "cat-then-in-place": cat_then_shift_in_place,
    "pool-then-in-place": pool_then_shift_in_place,
    "where-from-below-zero": lambda x: torch.where(x > -0.6, x, torch.zeros_like(x)),
    "abs": torch.abs,
    "relu-dropout": nn.Sequential(nn.ReLU(), nn.Dropout()),
    "relu-sorted": lambda x: F.relu(x).flip(-1),
    "relu-clone-in-place": lambda x: F.relu(x).clone().mul_(-1.0),
    "relu-where": lambda x: torch.where(x > 0.2, F.relu(x), -torch.ones_like(x)),
    "relu-filled": lambda x: F.relu(x).masked_fill(x < 0.1, -0.7),
    "relu-lerp": lambda x: torch.lerp(F.relu(x), x, 0.5),
}


@pytest.mark.parametrize("layer_name", ["linear", "conv2d"])
@pytest.mark.parametrize("before", BEFORE)
@pytest.mark.parametrize("after", ["relu-module", "nothing"])
@pytest.mark.parametrize("case", BY_INPUT, ids=ids)
def test_what_precedes_the_layer(case, after, before, layer_name, close):
    """The rule sees the sign of every input as it is when the layer runs, whatever made it."""
    ruled, shape = layer(layer_name)
    model = Around(ruled, before=BEFORE[before], after=AFTER[after]).double().eval()
    x = sample(shape, "signed").requires_grad_()
    a = model.before(x.clone())
    z = ruled(a)
    seed = generic(z.flatten(1).shape)
    keep = (z > 0).double() if after == "relu-module" else torch.ones_like(z)
    there = case.reference()(
        dense.DenseMap.of(ruled, shape), a.detach().numpy(), (z * keep).detach().numpy() * seed.view_as(z).numpy()
    )
    # below the layer: relevance is activation times modified gradient, which goes on as a plain gradient
    there = torch.from_numpy(there)
    modified = torch.where(a == 0, torch.zeros_like(a), there / torch.where(a == 0, torch.ones_like(a), a)).detach()
    (gradient,) = torch.autograd.grad(a, x, modified)
    close(run.relevance(run.only(case), model, x, seed), (x * gradient).detach())


class Branches(nn.Module):
    """One linear map feeds a rectified branch and a raw one, each with its own head."""

    def __init__(self, ruled, shape):
        super().__init__()
        self.layer = ruled
        self.relu = nn.ReLU()
        self.rectified = head_for(nn.Sequential(ruled), shape)
        self.raw = head_for(nn.Sequential(ruled), shape, seed=9)

    def forward(self, x):
        """The sum of both heads."""
        z = self.layer(x)
        return self.rectified(self.relu(z).flatten(1)) + self.raw(z.flatten(1))


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("layer_name", ["linear", "conv2d", "convtranspose2d", "conv1d-options"])
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_two_consumers_of_one_output(case, layer_name, sign, close):
    """Relevance from a rectified and from a raw consumer adds up before the rule is applied."""
    ruled, shape = layer(layer_name)
    model = Branches(ruled, shape)
    x = sample(shape, sign)
    seed = generic((2, 3))
    a = x.numpy()
    first = dense.DenseMap.of(ruled, shape)
    z = first.forward(a)
    arrived = np.zeros((2, z[0].size))
    for head, inner in ((model.rectified, np.maximum(z, 0)), (model.raw, z)):
        inner = inner.reshape(2, -1)
        upper = dense.DenseMap.of(head, inner.shape[1:])
        arrived += dense.epsilon(upper, inner, upper.forward(inner) * seed.numpy(), HEAD)
    expected = case.reference()(first, a, arrived.reshape(z.shape))
    close(run.relevance(run.ruled(case, head=HEAD), model, x, seed), expected)


@pytest.mark.parametrize("case", RULES, ids=ids)
def test_one_layer_called_twice(case, close):
    """Two calls of one module, one rectified and one not, equal two modules."""

    class Twice(nn.Module):
        def __init__(self, ruled):
            super().__init__()
            self.layer = ruled

        def forward(self, x):
            return torch.cat([F.relu(self.layer(x)), self.layer(0.5 * x - 0.2)], 1)

    ruled, shape = layer("linear")
    model = Twice(ruled)
    x = sample(shape, "signed")
    seed = generic(model(x).shape)
    layer_map, a = dense.DenseMap.of(ruled, shape), x.numpy()
    first, second = (layer_map.forward(v) for v in (a, 0.5 * a - 0.2))
    rectified = np.maximum(first, 0) * seed[:, :5].numpy()
    expected = case.reference()(layer_map, a, rectified)
    there = case.reference()(layer_map, 0.5 * a - 0.2, second * seed[:, 5:].numpy())
    expected = expected + 0.5 * a * there / (0.5 * a - 0.2)
    close(run.relevance(run.only(case), model, x, seed), expected)


# Pass


@pytest.mark.parametrize(
    "inner", [nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU, nn.Softplus, nn.LeakyReLU, nn.Hardtanh, nn.ReLU6]
)
def test_pass_through_an_activation(inner, close):
    """Relevance is the same before and after the layer, even where the activation does not vanish at zero."""
    from lrphooks import Composite
    from lrphooks.rules import Epsilon, Pass

    model = nn.Sequential(OrderedDict(first=nn.Linear(6, 5), act=inner(), last=nn.Linear(5, 3)))
    randomize(model, 4)
    x = sample((6,), "signed")
    seed = generic((2, 3))
    first = dense.DenseMap.of(model.first, (6,))
    last = dense.DenseMap.of(model.last, (5,))
    z = first.forward(x.numpy())
    a = model.act(torch.from_numpy(z)).numpy()
    expected = dense.epsilon(last, a, last.forward(a) * seed.numpy(), HEAD)
    expected = dense.epsilon(first, x.numpy(), expected, HEAD)
    composite = Composite([("act", Pass()), (nn.Linear, Epsilon(HEAD))])
    close(run.relevance(composite, model, x, seed), expected)


@pytest.mark.parametrize("inner", ["linear", "conv", "batchnorm", "layernorm", "sigmoid"])
def test_pass_at_the_input(inner, close):
    """Pass on the first layer: the relevance of the input is that of its output, at zero inputs too."""
    from lrphooks import Composite
    from lrphooks.rules import Pass

    layers = {
        "linear": lambda: nn.Linear(4, 4),
        "conv": lambda: nn.Conv1d(3, 3, 3, padding=1),
        "batchnorm": lambda: nn.BatchNorm1d(3),
        "layernorm": lambda: nn.LayerNorm(4),
        "sigmoid": nn.Sigmoid,
    }
    model = nn.Sequential(OrderedDict(layer=randomize(layers[inner](), 5)))
    x = sample((3, 4), "signed")
    x[0, 1] = 0.0
    output = model(x).detach()
    seed = generic(output.shape)
    close(run.relevance(Composite([("layer", Pass())]), model, x, seed), output * seed)
