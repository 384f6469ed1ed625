"""The epsilon rule of outputs that go into sums: where the sum is kept they are its difference, elsewhere a copy.

The reference is that of test_epsilon_kept: layers written out, with the derivative that the rule says, in float64.
"""

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from counting import held
from lrphooks.engine.sum_node import Summed
from lrphooks.rules import Epsilon
from small_networks import every_layer
from test_epsilon_kept import (
    COMPOSITE,
    InCheckpoint,
    Model,
    Reference,
    Unseen,
    Written,
    expected,
    gelu,
    loses,
    relevance,
    then,
)


def norm(t):
    """LayerNorm, whose standard deviation is a constant."""
    if not isinstance(t, Reference):
        return F.layer_norm(t, (8,))
    centred = t - t.mean(-1, keepdim=True)
    return centred / (t.var(-1, correction=0, keepdim=True) + 1e-5).sqrt().detach()


def rms(t):
    """A root mean square normalisation that the model writes out."""
    scale = torch.rsqrt(t.pow(2).mean(-1, keepdim=True) + 1e-5)
    return t * (scale.detach() if isinstance(t, Reference) else scale)


def checked(function, t):
    return function(t) if isinstance(t, Reference) else checkpoint(function, t, use_reentrant=False)


#: What a model does with the output of its first layer and the tensor x that it adds to it, which a norm keeps, or with
#: y, the output of a norm. Those named "copied" have a sum that nobody keeps.
BODIES = {
    "before a norm": lambda z, x, y: norm(z + x),
    "before a norm, the other way round": lambda z, x, y: norm(x + z),
    "after a norm": lambda z, x, y: norm(z + y),
    "before a norm, and added on": lambda z, x, y: residual(z + x),
    "before a norm that is written out": lambda z, x, y: rms(z + x),
    "after a view": lambda z, x, y: norm(z.view(-1, 2, 4).flatten(1) + x),
    "after no dropout": lambda z, x, y: norm(F.dropout(z, training=False) + y),
    "before no dropout": lambda z, x, y: norm(F.dropout(z + y, training=False)),
    "z lost": lambda z, x, y: then(s := z + x, z.zero_(), norm(s)),
    "y lost": lambda z, x, y: then(s := z + y, y.zero_(), norm(s)),
    "z used elsewhere too": lambda z, x, y: norm(z + x) + F.relu(z),
    "z added twice": lambda z, x, y: norm(z + x) + norm(z + y),
    "a checkpoint behind": lambda z, x, y: checked(norm, z + x),
    "a checkpoint behind, and added on": lambda z, x, y: then(s := z + x, checked(norm, s) + s),
    "out of sight": lambda z, x, y: Unseen.apply(z + x),
    "copied: ReLU": lambda z, x, y: F.relu(z + x),
    "copied: nothing": lambda z, x, y: z + y,
    "copied: ReLU, then a norm": lambda z, x, y: then(s := z + y, r := F.relu(s), norm(s) + r),
    "copied: scaled in place": lambda z, x, y: (z + x).mul_(2),
    "copied: scaled in place, y lost": lambda z, x, y: then(s := z + y, y.mul_(0), s.mul_(2)),
    "copied: a view scaled in place": lambda z, x, y: then(s := z + x, s.view(-1).mul_(2), s),
    "copied: lost after it was read": lambda z, x, y: loses(z + x, lambda s: 2 * s),
    "copied: a row set": lambda z, x, y: then(s := z + x, s.__setitem__(0, 1.0), s),
    "not kept: in place": lambda z, x, y: then(z.add_(x), norm(z)),
    "not kept: two outputs": lambda z, x, y: norm(z * 2 + z),
    "not kept: of other shape": lambda z, x, y: norm(z + x[:1]),
    "not kept: a checkpoint behind a product, which is set elsewhere": lambda z, x, y: then(
        s := z * 0.5, c := checked(rolled, s), t := x.clone(), t.__setitem__(slice(None), s), c + t
    ),
    "not kept: y lost before": lambda z, x, y: then(y.mul_(2), norm(z + y)),
}


def residual(s):
    return norm(s) + s


def rolled(s):
    return norm(s[torch.tensor([1, 2, 3, 4, 0])[: len(s)].clamp(max=len(s) - 1)])


def body(name):
    def run(z, x):
        # The norm keeps x, and its output y is made of that.
        y = norm(x)
        z = z.as_subclass(Reference) if isinstance(x, Reference) else z
        return BODIES[name](z, x, y) + x.sum(-1, keepdim=True)

    return run


@pytest.fixture
def decided(monkeypatch):
    """Whether sums that waited were kept by their consumer, in order."""
    found = []
    settle = Summed.settle

    def spy(self, run, total, *, kept):
        found.append(kept)
        return settle(self, run, total, kept=kept)

    monkeypatch.setattr(Summed, "settle", spy)
    return found


@pytest.mark.parametrize("create", [False, True], ids=["", "differentiable"])
@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
@pytest.mark.parametrize("name", BODIES)
def test_sums(name, learned, create, close, decided):
    x = torch.randn(5, 8, dtype=torch.float64)
    model = Model(body(name), learned=learned)
    value, wanted = expected(model, x)
    out, found = relevance(model, x, create=create)
    close(out, value, tol=1e-14)
    close(found, wanted, tol=1e-11)
    if name != "out of sight":
        assert bool(decided) is not name.startswith("not kept")
        assert all(decided) is not name.startswith("copied")


@pytest.mark.parametrize("name", [name for name in BODIES if "checkpoint" not in name])
def test_targets_in_one_batch(name, close):
    x = torch.randn(5, 8, dtype=torch.float64)
    model = Model(body(name))
    leaf = x.clone().requires_grad_()
    seeds = torch.eye(3, dtype=torch.float64).unsqueeze(1).expand(3, 5, 3)
    with COMPOSITE.context(model):
        out = model(leaf)
        once = [torch.autograd.grad(out, leaf, seed, retain_graph=True)[0] for seed in seeds]
        if "sight" not in name:
            close(torch.autograd.grad(out, leaf, seeds, is_grads_batched=True)[0], torch.stack(once), tol=1e-12)
    for target in range(3):
        close(once[target], expected(model, x, target)[1], tol=1e-11)


@pytest.mark.parametrize("name", BODIES)
def test_inside_of_a_checkpoint(name, close):
    x = torch.randn(5, 8, dtype=torch.float64)
    model = Model(body(name))
    close(relevance(InCheckpoint(model), x)[1], expected(model, x)[1], tol=1e-11)


@pytest.mark.parametrize("name", BODIES)
def test_derivatives_of_relevance(name):
    """Against finite differences, and those of weights too."""
    torch.manual_seed(2)
    model = Model(body(name), learned=True)
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    weights = [model.first.weight, model.first.bias]

    def found(leaf, *_):
        with COMPOSITE.context(model):
            out = model(leaf)
            return torch.autograd.grad(out[:, 1].sum(), leaf, create_graph=True)[0]

    # The weights are those of the model, which gradcheck moves in place.
    assert torch.autograd.gradcheck(found, (x, *weights), atol=1e-6, rtol=1e-4)


class Twice(Model):
    """Adds the outputs of two layers, of which the first goes to a norm too, or an activation, that keeps it."""

    def __init__(self, body, keep, *, learned=False):
        super().__init__(body, learned=learned)
        self.middle, self.keep = torch.nn.Linear(8, 8).double().requires_grad_(learned), keep

    def forward(self, x):
        y = self.first(x * 2)
        return self.second(self.body(self.middle(self.keep(y)), y))


class PlainTwice(torch.nn.Module):
    """The model of layers that are written out."""

    def __init__(self, model):
        super().__init__()
        self.first, self.middle, self.second = map(Written, (model.first, model.middle, model.second))
        self.model = model

    def forward(self, x):
        y = self.first(x * 2).as_subclass(Reference)
        z = self.middle(self.model.keep(y).as_subclass(torch.Tensor)).as_subclass(Reference)
        return self.second(self.model.body(z, y).as_subclass(torch.Tensor))


def activated(t):
    return gelu(t) if isinstance(t, Reference) else F.gelu(t)


#: What a model does with both outputs, z and y, of which a consumer keeps y.
BOTH = {
    "before a norm": lambda z, y: norm(z + y),
    "before a norm, the other way round": lambda z, y: norm(y + z),
    "and used again": lambda z, y: norm(z + y) + y * 2,
    "and used before": lambda z, y: then(a := y * 2 + y, norm(z + y) + a),
    "and z used again": lambda z, y: norm(z + y) + norm(z),
    "z moved": lambda z, y: norm(z.view(-1, 2, 4).flatten(1) + y),
    "z scaled": lambda z, y: norm(z * 0.5 + y),
    "y scaled": lambda z, y: norm(z + y / 4),
    "before nothing": lambda z, y: z + y,
    "before a ReLU": lambda z, y: F.relu(z + y),
    "scaled in place": lambda z, y: (z + y).mul_(2),
    "added to in place": lambda z, y: then(s := z + y, s.__iadd__(y), norm(s)),
}


@pytest.mark.parametrize("create", [False, True], ids=["", "differentiable"])
@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
@pytest.mark.parametrize("keep", [norm, activated], ids=["norm", "gelu"])
@pytest.mark.parametrize("name", BOTH)
def test_sums_of_two_outputs(name, keep, learned, create, close):
    x = torch.randn(5, 8, dtype=torch.float64)
    model = Twice(BOTH[name], keep, learned=learned)
    leaf = x.clone().requires_grad_()
    out = PlainTwice(model)(leaf)
    wanted = x * torch.autograd.grad(out[:, 1].sum(), leaf)[0]
    value, found = relevance(model, x, create=create)
    close(value, out, tol=1e-14)
    close(found, wanted, tol=1e-11)
    close(relevance(InCheckpoint(model), x)[1], wanted, tol=1e-11)


@pytest.mark.parametrize("keep", [norm, activated], ids=["norm", "gelu"])
@pytest.mark.parametrize("name", BOTH)
def test_derivatives_of_relevance_of_two_outputs(name, keep):
    torch.manual_seed(2)
    model = Twice(BOTH[name], keep, learned=True)
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)

    def found(leaf, *_):
        with COMPOSITE.context(model):
            return torch.autograd.grad(model(leaf)[:, 1].sum(), leaf, create_graph=True)[0]

    weights = [model.first.weight, model.middle.weight, model.middle.bias]
    assert torch.autograd.gradcheck(found, (x, *weights), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("kept", [True, False])
def test_what_sums_of_two_outputs_keep(kept):
    """Nothing where the sum is kept, else a copy of z; and neither the sum nor a copy of y."""
    model = Twice(BOTH["before a norm" if kept else "before nothing"], norm).requires_grad_(requires_grad=False)
    x = torch.randn(64, 8, dtype=torch.float64)
    with COMPOSITE.context(model):
        held(model, x)
        ruled = held(model, x)
    # The input as the model sees it, and the output of the last layer.
    most = x.nbytes + 64 * 3 * 8 + (0 if kept else x.nbytes)
    assert 0 < ruled - held(model, x) <= most + 64


@pytest.mark.parametrize("watch", ["retain_grad", "hook"])
def test_the_gradient_at_a_sum_itself(watch, close):
    seen = []

    def run(z, x):
        norm(x)
        s = z + x
        if watch == "hook":
            s.register_hook(seen.append)
        else:
            s.retain_grad()
            seen.append(s)
        return F.relu(s)

    model = Model(run)
    x = torch.randn(5, 8, dtype=torch.float64)
    close(relevance(model, x)[1], expected(model, x)[1], tol=1e-11)
    (of_gradient, of_relevance) = (t if watch == "hook" else t.grad for t in seen)
    close(of_relevance.as_subclass(torch.Tensor), of_gradient.as_subclass(torch.Tensor), tol=1e-11)


def test_a_sum_that_is_kept_cannot_be_overwritten():
    """The gradient says so, and relevance must not be wrong in silence."""

    def run(z, x):
        norm(x)
        s = z + x
        return then(n := norm(s), s.zero_(), n)

    model = Model(run)
    leaf = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(leaf).sum().backward()
    with COMPOSITE.context(model), pytest.raises(RuntimeError, match="modified by an inplace"):
        model(leaf).sum().backward()


@pytest.mark.parametrize("aside", [norm, F.gelu, rms], ids=["norm", "gelu", "rms"])
def test_what_keeps_a_sum_may_have_no_part_in_what_is_explained(aside, close):
    """As a head for training alone: the model may overwrite the sum, and its gradient stands that."""

    def run(z, x):
        norm(x)
        s = z + x
        if not isinstance(x, Reference):
            aside(s)
        return s.mul_(2)

    model = Model(run)
    x = torch.randn(5, 8, dtype=torch.float64)
    close(relevance(model, x)[1], expected(model, x)[1], tol=1e-11)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_types_of_few_digits_keep_a_copy(dtype, decided):
    model = Model(body("before a norm")).to(dtype)
    with COMPOSITE.context(model):
        model(torch.randn(5, 8, dtype=dtype, requires_grad=True)).sum().backward()
    assert not decided


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_the_rounding_of_large_sums(size):
    """Of what a sum has digits for, z keeps as many as it had any effect by."""
    torch.manual_seed(0)
    model = Model(body("before a norm")).float()
    precise = Model(body("before a norm"))
    precise.load_state_dict(model.state_dict())
    x = torch.randn(64, 8) * size
    with torch.no_grad():
        for each in (model, precise):
            each.first.weight.div_(size)
    composite = every_layer(Epsilon(1e-6))
    found = []
    for each, leaf in ((model, x), (precise, x.double())):
        leaf.requires_grad_()
        with composite.context(each):
            (r,) = torch.autograd.grad(each(leaf)[:, 1].sum(), leaf)
        found.append(r.double())
    assert (found[0] - found[1]).abs().max() <= 1e-5 * found[1].abs().max()
