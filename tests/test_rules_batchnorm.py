"""Linear maps followed by BatchNorm: every rule acts on the merged map, in execution order, without names."""

import copy
import functools
from collections import OrderedDict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import Composite
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon
from references import dense, run
from references.cases import LAYERS, RULES, SIGNS, STABILIZED, generic, layer, randomize, sample

HEAD = 0.05
NORMED = {
    "linear": nn.BatchNorm1d,
    "linear-nobias": nn.BatchNorm1d,
    "conv1d": nn.BatchNorm1d,
    "conv2d": nn.BatchNorm2d,
    "conv2d-nobias-stride": nn.BatchNorm2d,
    "conv2d-dilation-groups": nn.BatchNorm2d,
    "conv3d-groups": nn.BatchNorm3d,
    "convtranspose1d": nn.BatchNorm1d,
    "convtranspose2d-options": nn.BatchNorm2d,
    "convtranspose3d": nn.BatchNorm3d,
}


def ids(case):
    """The parameter name of a case."""
    return case.id


def normed(layer_name, seed=3, **options):
    """A layer, a BatchNorm for its output with generic statistics and scales of both signs, and the input's shape."""
    ruled, shape = layer(layer_name)
    channels = ruled.out_features if isinstance(ruled, nn.Linear) else ruled.out_channels
    return ruled, randomize(NORMED[layer_name](channels, **options), seed), shape


def head_for(features, out=3, seed=7):
    """A linear layer with generic weights on flattened features."""
    torch.manual_seed(seed)
    return randomize(nn.Linear(features.flatten(1).shape[1], out))


def chain(ruled, norm, shape, structure):
    """The layer (module ``layer``), its norm, and what follows."""
    parts = OrderedDict(layer=ruled, norm=norm)
    if structure == "then-relu":
        parts["act"] = nn.ReLU()
    if structure != "single":
        parts["flat"] = nn.Flatten()
        parts["head"] = head_for(norm(ruled(torch.zeros(1, *shape, dtype=torch.float64))))
    return nn.Sequential(parts).eval()


def expected_chain(model, case, x, seed, everywhere=False):
    """The dense reference, which merges a BatchNorm into the linear map right before it."""
    upper = case.reference() if everywhere else functools.partial(dense.epsilon, epsilon=HEAD)
    output, relevance = dense.chain(model, lambda name, _: case.reference() if name == "layer" else upper, x, seed)
    np.testing.assert_allclose(output, model(x).detach().numpy(), rtol=1e-11, atol=1e-11)
    return relevance


@pytest.mark.parametrize("structure", ["single", "then-linear", "then-relu"])
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("layer_name", NORMED)
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_every_rule_on_every_merged_layer(case, layer_name, sign, structure, close):
    """Scales of both signs, with and without a bias in the layer, with and without a ReLU after the norm."""
    ruled, norm, shape = normed(layer_name)
    model = chain(ruled, norm, shape, structure)
    x = sample(shape, sign)
    seed = generic(model(x).shape)
    close(run.relevance(run.ruled(case, head=HEAD), model, x, seed), expected_chain(model, case, x, seed))


@pytest.mark.parametrize("layer_name", ["linear", "conv2d-dilation-groups"])
@pytest.mark.parametrize("case", STABILIZED, ids=ids)
def test_stabilizers_act_on_the_merged_output(case, layer_name, close):
    """A large stabiliser compares itself with the output of the merged map, not with the layer's own."""
    ruled, norm, shape = normed(layer_name)
    model = chain(ruled, norm, shape, "then-relu")
    x = sample(shape, "signed", batch=3)
    seed = generic(model(x).shape)
    close(run.relevance(run.ruled(case, head=HEAD), model, x, seed), expected_chain(model, case, x, seed))


@pytest.mark.parametrize("variant", ["no-affine", "large-eps", "sync"])
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_variants_of_the_norm(case, variant, close):
    """Norms without scale and shift, with an eps that matters, and the synchronised one."""
    options = {"no-affine": {"affine": False}, "large-eps": {"eps": 0.5}, "sync": {}}[variant]
    ruled, norm, shape = normed("conv2d", **options)
    if variant == "sync":
        norm = nn.SyncBatchNorm.convert_sync_batchnorm(norm).eval()
    model = chain(ruled, norm, shape, "then-relu")
    x = sample(shape, "signed")
    seed = generic(model(x).shape)
    close(run.relevance(run.ruled(case, head=HEAD), model, x, seed), expected_chain(model, case, x, seed))


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_a_stack(case, sign, close):
    """Convolution, norm, ReLU, twice, then a linear layer with a norm, the same rule in all of them."""
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 3, 2, stride=2), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)),
    )
    randomize(model, 4)
    x = sample((2, 4, 4), sign)
    seed = generic((2, 3))
    close(run.relevance(run.everywhere(case), model, x, seed), expected_chain(model, case, x, seed, everywhere=True))


class Registered(nn.Module):
    """Runs layer, norm, ReLU and head, but registers them in another order and calls the ReLU as a function."""

    def __init__(self, ruled, norm, head):
        super().__init__()
        self.norm = norm
        self.head = head
        self.layer = ruled

    def forward(self, x):
        """The head's output."""
        return self.head(F.relu(self.norm(self.layer(x))).flatten(1))


class NormAct(nn.BatchNorm2d):
    """A BatchNorm that holds an activation."""

    def __init__(self, *args):
        super().__init__(*args)
        self.act = nn.ReLU(inplace=True)

    def forward(self, input):
        """Norm, then activation."""
        return self.act(super().forward(input))


class FunctionalNormAct(NormAct):
    """The same, calling the functional BatchNorm itself."""

    def forward(self, input):
        """Norm, then activation."""
        x = F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, False, self.momentum, self.eps
        )
        return self.act(x)


class Called(nn.Module):
    """Calls a function of its modules."""

    def __init__(self, function, **modules):
        super().__init__()
        self.function = function
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        """The function's result."""
        return self.function(self, x)


def norm_of(ruled, kind):
    torch.manual_seed(3)
    norm = kind(ruled.out_channels)
    plain = randomize(nn.BatchNorm2d(ruled.out_channels), 3)
    norm.double().load_state_dict(plain.state_dict())
    return norm.eval(), plain


@pytest.mark.parametrize("kind", ["registered", "method", "functional", "timm", "functional-norm"])
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_ways_to_write_it(case, kind, close):
    """Any order of registration, functional calls, and BatchNorm subclasses that hold an activation."""
    ruled, shape = layer("conv2d")
    x = sample(shape, "signed")
    if kind == "timm":
        import torchvision_shim  # noqa: F401

        kinds = {"timm": pytest.importorskip("timm.layers").BatchNormAct2d}
    else:
        kinds = {"method": NormAct, "functional": FunctionalNormAct}
    norm, plain = norm_of(ruled, kinds.get(kind, nn.BatchNorm2d))
    head = head_for(ruled(x))
    if kind == "registered":
        model = Registered(ruled, norm, head)
    elif kind == "functional-norm":
        model = Called(
            lambda m, v: m.head(
                F.batch_norm(
                    m.layer(v), m.norm.running_mean, m.norm.running_var, m.norm.weight, m.norm.bias, eps=m.norm.eps
                )
                .relu()
                .flatten(1)
            ),
            layer=ruled,
            norm=norm,
            head=head,
        )
    else:
        model = nn.Sequential(OrderedDict(layer=ruled, norm=norm, flat=nn.Flatten(), head=head))
    model.eval()
    twin = nn.Sequential(OrderedDict(layer=ruled, norm=plain, act=nn.ReLU(), flat=nn.Flatten(), head=head))
    seed = generic((2, 3))
    expected = expected_chain(twin, case, x, seed)
    np.testing.assert_allclose(model(x).detach().numpy(), twin(x).detach().numpy(), rtol=1e-12)
    close(run.relevance(run.ruled(case, head=HEAD), model, x, seed), expected)


def _merged(ruled, norm, shape):
    return dense.DenseMap.of(ruled, shape).merged(norm)


def _from_head(head, features, seed):
    """Relevance at the features below a head with the epsilon rule."""
    flat = features.reshape(len(features), -1)
    upper = dense.DenseMap.of(head, flat.shape[1:])
    return dense.epsilon(upper, flat, upper.forward(flat) * seed.numpy(), HEAD).reshape(features.shape)


@pytest.mark.parametrize("first", ["norm", "raw"])
@pytest.mark.parametrize("layer_name", ["linear", "conv2d", "convtranspose2d-options"])
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_a_norm_and_another_consumer(case, layer_name, first, close):
    """The norm's share goes through the merged map, the other consumer's through the layer as it is."""

    def both(m, x):
        z = m.layer(x)
        if first == "norm":
            return m.head(F.relu(m.norm(z)).flatten(1)) + m.raw(z.flatten(1))
        return m.raw(z.flatten(1)) + m.head(F.relu(m.norm(z)).flatten(1))

    ruled, norm, shape = normed(layer_name)
    x = sample(shape, "signed")
    head, raw = head_for(ruled(x)), head_for(ruled(x), seed=8)
    model = Called(both, layer=ruled, norm=norm, head=head, raw=raw).eval()
    seed = generic((2, 3))
    plain, merged = dense.DenseMap.of(ruled, shape), _merged(ruled, norm, shape)
    a, rule = x.numpy(), case.reference()
    expected = rule(merged, a, _from_head(head, np.maximum(merged.forward(a), 0), seed))
    expected = expected + rule(plain, a, _from_head(raw, plain.forward(a), seed))
    close(run.relevance(run.ruled(case, head=HEAD), model, x, seed), expected)


@pytest.mark.parametrize("how", ["two norms", "two calls"])
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_two_norms_of_one_layer(case, how, close):
    """One output under two norms, or one layer called twice with a norm each: two merged maps."""

    def run_both(m, x):
        z = m.layer(x)
        other = m.layer(0.5 * x) if how == "two calls" else z
        return m.head(F.relu(m.norm(z)).flatten(1)) + m.head2(m.norm2(other).flatten(1))

    ruled, norm, shape = normed("conv2d")
    norm2 = normed("conv2d", seed=5)[1]
    x = sample(shape, "signed")
    head, head2 = head_for(ruled(x)), head_for(ruled(x), seed=8)
    model = Called(run_both, layer=ruled, norm=norm, norm2=norm2, head=head, head2=head2).eval()
    seed = generic((2, 3))
    rule, a = case.reference(), x.numpy()
    first, second = _merged(ruled, norm, shape), _merged(ruled, norm2, shape)
    b = 0.5 * a if how == "two calls" else a
    expected = rule(first, a, _from_head(head, np.maximum(first.forward(a), 0), seed))
    expected = expected + rule(second, b, _from_head(head2, second.forward(b), seed))
    close(run.relevance(run.ruled(case, head=HEAD), model, x, seed), expected)


BETWEEN = {
    "relu": F.relu,
    "relu-in-place": lambda z: z.relu_(),
    "shifted-in-place": lambda z: z.add_(0.4),
    "residual": lambda z: z + z.flip(1),
    "residual-in-place": lambda z: z.add_(z.flip(1)),
    "pooled": lambda z: F.max_pool2d(z, 2),
    "a part": lambda z: torch.cat([z[:, :1], z[:, 1:].relu()], 1),
    "a part in place": lambda z: _relu_first(z),
}


def _relu_first(z):
    z[:, 0].relu_()
    return z


def _contiguous(z):
    return z.to(memory_format=torch.channels_last).contiguous()


MOVED = {
    "copied": lambda z: z.clone(),
    "laid out anew": _contiguous,
    "dimensions put in and taken out": lambda z: z.unsqueeze(0).squeeze(0),
    "turned twice": lambda z: z.transpose(1, 3).transpose(1, 3),
    "reshaped twice": lambda z: z.flatten(2).view_as(z),
    "scaled": lambda z: z * 2,
    "scaled in place": lambda z: z.mul_(2),
    "divided and its sign turned": lambda z: (z / 3) * -1,
}


@pytest.mark.parametrize("how", MOVED)
@pytest.mark.parametrize("case", RULES, ids=ids)
def test_a_norm_behind_moves_and_a_scale(case, how, close):
    """What only moves or scales all elements of the layer leaves it one with the norm: a layer with scaled weights."""
    ruled, norm, shape = normed("conv2d")
    x, seed = sample(shape, "signed"), None
    scale = {"scaled": 2.0, "scaled in place": 2.0, "divided and its sign turned": -1 / 3}.get(how, 1.0)
    model = Called(lambda m, x: m.norm(MOVED[how](m.layer(x))).flatten(1), layer=ruled, norm=norm).eval()
    other = copy.deepcopy(ruled)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(scale)
    plain = Called(lambda m, x: m.norm(m.layer(x)).flatten(1), layer=other, norm=norm).eval()
    close(run.relevance(run.only(case), model, x, seed), run.relevance(run.only(case), plain, x, seed).numpy())


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("case", [case for case in RULES if case.id != "epsilon0"], ids=ids)
def test_a_norm_that_does_not_follow_right_after(case, between, close):
    """With another operation in between, the layer keeps its own weight and the norm is a plain linear operation."""

    def run_all(m, x):
        return m.norm(BETWEEN[between](m.layer(x))).flatten(1)

    ruled, norm, shape = normed("conv2d")
    x = sample(shape, "signed")
    model = Called(run_all, layer=ruled, norm=norm).eval()
    z = ruled(x).detach().requires_grad_()
    output = norm(BETWEEN[between](z.clone())).flatten(1)
    seed = generic(output.shape)
    (gradient,) = torch.autograd.grad(output, z, seed)
    arrived = (z * gradient).detach().numpy()
    expected = case.reference()(dense.DenseMap.of(ruled, shape), x.numpy(), arrived)
    close(run.relevance(run.only(case), model, x, seed), expected)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("case", [case for case in RULES if case.by_input], ids=ids)
def test_a_residual_block(case, sign, close):
    """Norm after both convolutions of the body and after the skip's, a functional sum, a ReLU, a head.

    Not for flat, w^2 and z^B: what they give to a sum whose ReLU is off is shared by no rule that all agree on.
    """

    def run_all(m, x):
        out = F.relu(m.norm1(m.conv1(x)))
        out = m.norm2(m.conv2(out))
        out += m.norm3(m.conv3(x))
        return m.head(F.relu(out).flatten(1))

    model = Called(
        run_all,
        conv1=nn.Conv2d(2, 3, 3, padding=1, bias=False),
        norm1=nn.BatchNorm2d(3),
        conv2=nn.Conv2d(3, 3, 3, padding=1),
        norm2=nn.BatchNorm2d(3),
        conv3=nn.Conv2d(2, 3, 1),
        norm3=nn.BatchNorm2d(3),
        head=nn.Linear(48, 3),
    )
    randomize(model, 6)
    x = sample((2, 4, 4), sign)
    seed = generic((2, 3))
    rule, a = case.reference(), x.numpy()
    first = _merged(model.conv1, model.norm1, (2, 4, 4))
    second = _merged(model.conv2, model.norm2, (3, 4, 4))
    third = _merged(model.conv3, model.norm3, (2, 4, 4))
    inner = np.maximum(first.forward(a), 0)
    body, skip = second.forward(inner), third.forward(a)
    features = np.maximum(body + skip, 0)
    flat = features.reshape(2, -1)
    head = dense.DenseMap.of(model.head, (48,))
    there = rule(head, flat, head.forward(flat) * seed.numpy()).reshape(features.shape)
    alive = np.where(body + skip > 0, there / (body + skip), 0)  # a sum shares in proportion to its terms
    expected = rule(first, a, rule(second, inner, body * alive)) + rule(third, a, skip * alive)
    close(run.relevance(run.everywhere(case), model, x, seed), expected)


assert set(NORMED) <= set(LAYERS)


OTHER_DIMENSIONS = {
    "rows of another number": (lambda: nn.Linear(4, 4), 6, (3, 6, 4)),
    "as many rows": (lambda: nn.Linear(4, 4), 4, (3, 4, 4)),
    "a convolution without a batch": (lambda: nn.Conv1d(4, 4, 3, padding=1), 4, (4, 4)),
}


@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
@pytest.mark.parametrize("name", OTHER_DIMENSIONS)
def test_a_norm_of_another_dimension_is_not_merged(name, learned, close):
    """It stays a factor for each of its own channels, behind the rule of the layer."""
    make, channels, shape = OTHER_DIMENSIONS[name]
    torch.manual_seed(0)
    layer, norm = make(), randomize(nn.BatchNorm1d(channels), 3)
    model = nn.Sequential(layer, norm).double().eval().requires_grad_(learned)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    with Composite([(AnyLinear, Epsilon(0.25))]).context(model):
        (found,) = torch.autograd.grad(model(x).square().sum(), x)
    z = layer(x)
    y = norm(z)
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach().reshape(-1, *(1,) * (z.dim() - 2))
    received = (2 * y * scale * z / (z + 0.25 * z.sign())).detach()
    (gradient,) = torch.autograd.grad(z, x, received)
    close(found, x * gradient, tol=1e-12)
