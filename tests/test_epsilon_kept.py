"""What the epsilon rule keeps of an output: models that write to it, before and after it was consumed.

The reference is a layer written out: z with the derivative that the rule says, z / (z + epsilon sign z) times the
weight, so that the plain gradient times the input of a model of such layers is the relevance, in float64.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import lrphooks
from lrphooks import Composite, LRPError
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, Gamma, ZPlus
from small_networks import every_layer

EPSILON = 0.1
COMPOSITE = Composite([(AnyLinear, Epsilon(EPSILON))], unmatched="gradient")


class Written(nn.Module):
    """A dense layer whose gradient is the epsilon rule."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, a):
        z = self.layer(a)
        # Its own memory, and nothing keeps it, as with a dense layer.
        return shared(z, EPSILON)


def shared(z, epsilon):
    """z, with the share of the epsilon rule as its derivative."""
    ratio = z / (z + epsilon * (1.0 - 2.0 * (z < 0).double()))
    return z.detach() + ratio.detach() * (z - z.detach())


def gelu(z):
    return z * (0.5 * (1 + torch.erf(z / math.sqrt(2)))).detach()


class Unseen(torch.autograd.Function):
    """Three times the input, out of the engine's sight."""

    @staticmethod
    def forward(ctx, x):
        return 3 * x

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


def then(*steps):
    """Return the last of several results."""
    return steps[-1]


def loses(z, *consume):
    """Consume z, and overwrite it after."""
    results = [each(z) for each in consume]
    z.zero_()
    return sum(results)


def moved(z):
    return z.view(-1, 2, 4).transpose(1, 2).contiguous()


def first_scaled(t):
    t[:, 0].mul_(2)
    return t


def silu(z, x):
    return z * z.sigmoid().detach() if isinstance(x, Reference) else F.silu(z)


def silu_(z, x):
    return silu(z, x) if isinstance(x, Reference) else F.silu(z, inplace=True)


def batches(z, x, *, crossed=True):
    """A product of two activations in batches, of which torch lays out anew those that are crossed."""
    a, b = (t.view(-1, 2, 2, 2).transpose(1, 2 if crossed else 1) for t in (z, x))
    if isinstance(x, Reference):
        a, b = (t.detach() + (t - t.detach()) / 2 for t in (a, b))
    return (a @ b.transpose(-2, -1)).flatten(1)


def gate(t, x):
    return t.sigmoid().detach() if isinstance(x, Reference) else t.sigmoid()


def tanh(z, x):
    return z * (z.tanh() / z).detach() if isinstance(x, Reference) else z.tanh()


def constant(x):
    return torch.full_like(x, 0.5, requires_grad=False).view(-1, 4, 2)


def chunks(z):
    a, b = moved(z).unbind(-1)
    return torch.cat((a * 2, b), -1)


def advancing(z, x):
    """Views whose place a tensor tells, which counts on before they are consumed."""
    i, columns = torch.tensor(0), []
    for _ in range(4):
        columns.append(z[:, i])
        i += 1
    window = z[:, i : i + 4]
    i -= 3
    narrow = z.narrow(1, i, 4)
    i.zero_()
    return torch.cat((torch.stack(columns, 1) * 2, window * 3), 1) + torch.cat((narrow * 4, x[:, :4]), 1)


def cut(z, x):
    at = torch.tensor([2, 4])
    a, b, c = z.tensor_split(at, 1)
    at += 1
    return torch.cat((c * 2, a * 3, b * 4), 1)


def rotated(z, x):
    """A conversion to complex numbers, which have no sign."""
    return (z.view(-1, 4, 2).to(torch.complex128) * 1j ** torch.arange(2)).real.flatten(1)


#: What a model does with the output of its first layer.
BODIES = {
    "nothing": lambda z, x: z,
    "added in place": lambda z, x: z.add_(1),
    "added to itself in place": lambda z, x: z.add_(z.view_as(z)),
    "skip added in place": lambda z, x: z.__iadd__(x),
    "added in place to the skip": lambda z, x: x.clone().add_(z),
    "lost after a sum": lambda z, x: loses(z, lambda z: z + x),
    "lost after two sums": lambda z, x: loses(z, lambda z: z + x, lambda z: 2 * z),
    "lost after a view was added": lambda z, x: loses(z, lambda z: z.view(-1, 2, 4).flatten(1) + x),
    "lost after a copy": lambda z, x: loses(z, lambda z: moved(z).flatten(1)),
    "lost after a ReLU": lambda z, x: loses(z, F.relu),
    "lost after cat": lambda z, x: loses(z, lambda z: torch.cat((z[:, 4:], z[:, :4]), 1)),
    "scaled through a view": lambda z, x: then(z.view(-1).mul_(2), z),
    "scaled through a view that is returned": lambda z, x: z.view(-1, 2, 4).mul_(2).flatten(1),
    "added, then scaled through a view": lambda z, x: (z + x) + then(z.view(-1).mul_(2), z),
    "a column set": lambda z, x: then(z.__setitem__((slice(None), 0), 0.0), z),
    "a column scaled": lambda z, x: then(z[:, 1:3].mul_(2), z) + x,
    "a copy scaled": lambda z, x: moved(z).mul_(2).flatten(1),
    "a part of a copy scaled": lambda z, x: first_scaled(moved(z)).flatten(1),
    "no dropout, then added in place": lambda z, x: F.dropout(z, training=False).add_(x),
    "ReLU": lambda z, x: F.relu(z),
    "ReLU in place": lambda z, x: z.relu_(),
    "ReLU in place, result unused": lambda z, x: then(z.relu_(), z),
    "ReLU in place, both used": lambda z, x: z.relu_() + 2 * z,
    "ReLU in place of a view": lambda z, x: then(z.view(-1).relu_(), z),
    "ReLU and more": lambda z, x: F.relu(z) + z,
    "ReLU of a view": lambda z, x: F.relu(z.view(-1, 2, 4)).flatten(1) + z,
    "ReLU, scaled out of place": lambda z, x: F.relu(z) * 2,
    "in parts": lambda z, x: chunks(z),
    "at places that move on": advancing,
    "cut at places that move on": cut,
    "as complex numbers": rotated,
    "the same part twice": lambda z, x: torch.cat((z[:, :4] * 2, z[:, :4] + x[:, :4]), 1),
    "expanded": lambda z, x: z.unsqueeze(1).expand(-1, 3, -1).sum(1),
    "converted": lambda z, x: z.view(-1, 2, 4).float().double().flatten(1) * 1.0,
    "product of views": lambda z, x: torch.einsum("bij,bij->bi", z.view(-1, 4, 2), constant(x)).repeat(1, 2),
    "out of sight": lambda z, x: Unseen.apply(z),
    "out of sight and in sight": lambda z, x: Unseen.apply(z) + z,
    "out of sight, then lost": lambda z, x: loses(z, Unseen.apply, lambda z: z + x),
    "a part out of sight": lambda z, x: torch.cat((Unseen.apply(z[:, :4]), z[:, 4:]), 1),
    "GELU": lambda z, x: gelu(z) if isinstance(x, Reference) else F.gelu(z),
    "GELU of a view, and a sum": lambda z, x: (gelu if isinstance(x, Reference) else F.gelu)(z.view_as(z)) + z,
    "SiLU in place": lambda z, x: silu_(z, x),
    "SiLU in place, result unused": lambda z, x: then(y := silu_(z, x), z if y is z else y),
    "SiLU in place, twice": lambda z, x: silu_(silu_(z, x), x),
    "SiLU in place of a view": lambda z, x: silu_(z.view(-1, 2, 4), x).flatten(1),
    "SiLU in place, then scaled in place": lambda z, x: silu_(z, x).mul_(2),
    "a copy, then SiLU in place": lambda z, x: z * 2 + silu_(z.clone(), x),
    "SiLU of a part, the rest overwritten": lambda z, x: then(y := silu(z[:, :4], x), torch.cat((y, x[:, 4:]), 1)),
    "GELU, then scaled in place": lambda z, x: (gelu(z) if isinstance(x, Reference) else F.gelu(z)).mul_(2),
    "tanh, then lost": lambda z, x: loses(z, lambda z: tanh(z, x)),
    "tanh and more": lambda z, x: tanh(z, x) + z,
    "product of batches": lambda z, x: batches(z, x),
    "product of batches, then lost": lambda z, x: loses(z, lambda z: batches(z, x)),
    "product of batches that lie as they are kept": lambda z, x: batches(z, x, crossed=False),
    "a quarter twice, scaled in place": lambda z, x: torch.cat(
        ((z[:, :2] * 2).mul_(3), z[:, :2] + z[:, :2], x[:, 4:]), 1
    ),
    "gated by itself": lambda z, x: z * gate(z, x),
    "gated by the input": lambda z, x: z * gate(x, x),
    "gated by one number": lambda z, x: z * gate(x.sum(), x),
    "one column gated": lambda z, x: z[:, :1] * gate(x, x),
    "rolled": lambda z, x: z.roll(1, 1) + x,
    "rolled, then lost": lambda z, x: loses(z, lambda z: torch.roll(z, 3, dims=1) * 2),
    "flipped for GELU": lambda z, x: (gelu if isinstance(x, Reference) else F.gelu)(z.flip(1)),
    "rolled and scaled in place": lambda z, x: z.roll(1, 1).mul_(2),
    "out of sight of a module": lambda z, x: nn.Flatten()(z.unflatten(1, (2, 4)).movedim(1, 2)) + x,
}


def constant_batches(x):
    return gate(x, x).view(-1, 2, 2, 2)


BODIES |= {
    "scaled": lambda z, x: z * 0.3 + x,
    "scaled by a negative number, and more": lambda z, x: -3 * z + z,
    "divided, then lost": lambda z, x: loses(z, lambda z: (z.view(-1, 2, 4) / 4).flatten(1) + x),
    "scaled, then lost": lambda z, x: loses(z * 0.3, lambda s: s + x),
    "scaled by nothing": lambda z, x: z * 0 + x,
    "scaled by next to nothing": lambda z, x: z * 1e-308 + x,
    "scaled and divided for GELU": lambda z, x: (gelu if isinstance(x, Reference) else F.gelu)(z * 3 / 2),
    "scaled, then a ReLU": lambda z, x: F.relu(z * 2),
    "scaled, then a ReLU in place": lambda z, x: (z * 2).relu_(),
    "scaled for a product of batches": lambda z, x: batches(z * 0.3, x),
    "scaled, then scaled in place": lambda z, x: (z * 0.5).mul_(3),
    "scaled, then added to in place": lambda z, x: then(s := z * 0.5, s.__iadd__(x), s),
    "scaled, then a view scaled in place": lambda z, x: then(s := z * 0.5, s.view(-1).mul_(3), s),
    "scaled, a view, then scaled in place": lambda z, x: then(s := z / 2, v := s.view(-1), s.mul_(3), s + v.view_as(s)),
    "scaled, used, then scaled in place": lambda z, x: then(s := z / 2, y := s * 3 + x, s.mul_(3), s + y),
    "scaled, then a column set": lambda z, x: then(s := z / 2, s.__setitem__((slice(None), 0), 1.0), s),
    "scaled out of sight": lambda z, x: Unseen.apply(z * 0.3),
    "scaled out of sight, then in place": lambda z, x: then(s := z * 2, u := Unseen.apply(s), s.mul_(3), s + u),
    "a copy, set in a slice": lambda z, x: then(y := x.clone(), y.__setitem__(slice(3), moved(z).flatten(1)[:3]), y),
    "chunks, scaled": lambda z, x: torch.cat([part * (1 + i) for i, part in enumerate(z.view(-1, 8).chunk(4, 1))], 1),
    "parts of a view": lambda z, x: torch.cat([part + x[:, :4] for part in z.view(-1, 4, 2).permute(2, 0, 1)], 1),
    "constant batches times z": lambda z, x: (constant_batches(x) @ z.view(-1, 2, 2, 2).mT).flatten(1),
    "z times constant batches": lambda z, x: (z.view(-1, 2, 2, 2).mT @ constant_batches(x)).flatten(1),
    "constant batches times z, then lost": lambda z, x: loses(
        z, lambda z: (constant_batches(x) @ z.view(-1, 2, 2, 2).transpose(1, 2)).flatten(1)
    ),
}


def widened(z, x):
    return z.view(-1, 2, 4).float().mul(1.0).flatten(1).to(z.dtype)


BODIES["widened"] = widened


class Reference(torch.Tensor):
    """Marks the input of a reference, whose operations may be written otherwise."""


def tolerance(name):
    """Some bodies pass through float32."""
    return 1e-6 if name in ("converted", "widened") else 1e-12


class Model(nn.Module):
    def __init__(self, body, *, learned=False):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.body = nn.Linear(8, 8), nn.Linear(8, 3), body
        self.double().requires_grad_(learned)

    def forward(self, x):
        a = x * 2
        return self.second(self.body(self.first(a), a))


class Plain(nn.Module):
    """The model of layers that are written out."""

    def __init__(self, model):
        super().__init__()
        self.first, self.second, self.body = Written(model.first), Written(model.second), model.body

    def forward(self, x):
        a = x * 2
        marked = a.as_subclass(Reference)
        return self.second(self.body(self.first(a), marked).as_subclass(torch.Tensor))


def expected(model, x, target=1):
    leaf = x.clone().requires_grad_()
    out = Plain(model)(leaf)
    (gradient,) = torch.autograd.grad(out[:, target].sum(), leaf)
    return out.detach(), x * gradient


def relevance(model, x, target=1, *, create=False):
    leaf = x.clone().requires_grad_()
    with COMPOSITE.context(model):
        out = model(leaf)
        (found,) = torch.autograd.grad(out[:, target].sum(), leaf, create_graph=create)
    return out.detach(), found.detach()


@pytest.mark.parametrize("create", [False, True], ids=["", "differentiable"])
@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
@pytest.mark.parametrize("name", BODIES)
def test_outputs_that_a_model_writes_to(name, learned, create, close):
    x = torch.randn(5, 8, dtype=torch.float64)
    model = Model(BODIES[name], learned=learned)
    value, wanted = expected(model, x)
    out, found = relevance(model, x, create=create)
    close(out, value, tol=1e-14)
    close(found, wanted, tol=tolerance(name))


@pytest.mark.parametrize("name", BODIES)
def test_targets_in_one_batch_and_a_graph_that_is_kept(name, close):
    x = torch.randn(5, 8, dtype=torch.float64)
    model = Model(BODIES[name])
    leaf = x.clone().requires_grad_()
    seeds = torch.eye(3, dtype=torch.float64).unsqueeze(1).expand(3, 5, 3)
    with COMPOSITE.context(model):
        out = model(leaf)
        once = [torch.autograd.grad(out, leaf, seed, retain_graph=True)[0] for seed in seeds]
        if "sight" not in name or name.endswith("module"):
            (batched,) = torch.autograd.grad(out, leaf, seeds, is_grads_batched=True)
            close(batched, torch.stack(once), tol=1e-12)
    for target in range(3):
        close(once[target], expected(model, x, target)[1], tol=tolerance(name))


class InCheckpoint(nn.Module):
    """A model that runs again in the backward pass, and something after it."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return checkpoint(self.model, x, use_reentrant=False) * 1.0


@pytest.mark.parametrize("name", BODIES)
def test_inside_of_a_checkpoint(name, close):
    x = torch.randn(5, 8, dtype=torch.float64)
    model = Model(BODIES[name])
    close(relevance(InCheckpoint(model), x)[1], expected(model, x)[1], tol=tolerance(name))


def share(t, part):
    return t.detach() + part * (t - t.detach())


def attended(z, x):
    """Attention of z and its own parts, which is lost after."""
    q, k, v = z.view(-1, 1, 2, 4), x.view(-1, 1, 2, 4), (z + x).view(-1, 1, 2, 4)
    if isinstance(x, Reference):
        q, k, v = share(q, 0.25), share(k, 0.25), share(v, 0.5)
        out = (q @ k.transpose(-1, -2) / 2).softmax(-1) @ v
    else:
        out = F.scaled_dot_product_attention(q, k, v)
        z.zero_()
    return out.flatten(1)


def test_attention_that_keeps_no_query_and_one_that_does(close):
    x, model = torch.randn(5, 8, dtype=torch.float64), Model(attended)
    with sdpa_kernel(SDPBackend.MATH):
        close(relevance(model, x)[1], expected(model, x)[1], tol=1e-12)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(RuntimeError, match=r"modified.* inplace"):
        relevance(model, x)


def test_attention_that_autocasting_gives_copies():
    """The model may overwrite the query then, and its own gradient stands that."""

    class Cast(nn.Module):
        def __init__(self, body):
            super().__init__()
            self.model = Model(body).float()

        def forward(self, x):
            a = x * 2
            z = self.model.first(a)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                y = self.model.body(z, a)
            return self.model.second(y.float())

    def attends(z, x):
        return F.scaled_dot_product_attention(*(t.view(-1, 1, 2, 4) for t in (z, x, x))).flatten(1)

    x, found = torch.randn(5, 8), []
    for body in (attends, lambda z, x: loses(z, lambda z: attends(z, x))):
        model = Cast(body)
        model(x.clone().requires_grad_()).sum().backward()
        found.append(relevance(model, x)[1])
    assert torch.equal(*found)


def test_the_gradient_at_an_output_itself():
    """Hooks on an output, and what it retains, are served as without the short way."""

    def body(z, x):
        z.retain_grad()
        seen.append(z)
        return z.view(-1, 2, 4).flatten(1) + x

    seen = []
    model = Model(body)
    relevance(model, torch.randn(5, 8, dtype=torch.float64))
    assert seen[0].grad is not None


@pytest.mark.parametrize("consume", [F.gelu, lambda z: F.layer_norm(z, (8,)), F.silu], ids=["gelu", "norm", "silu"])
def test_what_the_consumer_keeps_cannot_be_overwritten_with_a_rule_either(consume):
    """The gradient says so, and relevance must not be wrong in silence."""
    model = Model(lambda z, x: loses(z, consume))
    leaf = torch.randn(5, 8, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        model(leaf).sum().backward()
    with COMPOSITE.context(model), pytest.raises(RuntimeError, match="modified by an inplace"):
        model(leaf).sum().backward()


@pytest.mark.parametrize("create", [False, True], ids=["", "differentiable"])
@pytest.mark.parametrize("body", ["nothing", "ReLU", "ReLU in place", "lost after two sums", "in parts", "widened"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_outputs_that_are_zero_or_tiny(dtype, body, create):
    """Where z is 0, of either sign, nothing is handed on; an output as small as the stabilizer hands on a half."""
    epsilon = torch.tensor(1e-6, dtype=dtype).item() if dtype == torch.float16 else 1e-6
    model = Model(lambda z, x: BODIES[body](z, x) * 1.0)
    model.to(dtype)
    with torch.no_grad():
        model.first.bias.zero_()
        model.first.weight.copy_(torch.diag(torch.tensor([0.0, -0.0, epsilon, -epsilon, 1.0, -1.0, 2.0, 4 * epsilon])))
        model.second.weight.copy_((torch.arange(24) % 5 + 1.0).reshape(3, 8))
        model.second.bias.fill_(2.0)
    leaf = torch.full((2, 8), 0.5, dtype=dtype, requires_grad=True)
    composite = Composite([("second", Epsilon(0)), (AnyLinear, Epsilon(1e-6))])
    with composite.context(model):
        (found,) = torch.autograd.grad(model(leaf)[:, 1].sum(), leaf, create_graph=create)
    twin = Model(model.body)
    twin.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
    x = leaf.detach().double().requires_grad_()
    z = twin.first(x * 2)
    (gradient,) = torch.autograd.grad(twin.second(twin.body(shared(z, epsilon), x * 2))[:, 1].sum(), x)
    # 6e-8 is the distance of the numbers of float16 around the stabilizer.
    least = 2.0**-24 if dtype == torch.float16 else 0
    tolerance = {"rtol": 4 * torch.finfo(dtype).eps, "atol": least}
    torch.testing.assert_close(found.detach().double(), x.detach() * gradient, **tolerance)


def test_a_missing_value_stays_missing():
    for body in ("nothing", "ReLU", "GELU"):
        model = Model(BODIES[body])
        x = torch.randn(2, 8, dtype=torch.float64)
        x[0, 0] = math.nan
        found = relevance(model, x)[1]
        assert found[0].isnan().all()
        assert found[1].isfinite().all()


class Overwritten(nn.Module):
    """A dense layer whose input is overwritten before its output is consumed, or a copy of it is not."""

    def __init__(self, consume, *, copied):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.second, self.consume, self.copied = nn.Linear(8, 8), nn.Linear(8, 3), consume, copied
        self.double().requires_grad_(requires_grad=False)

    def forward(self, x):
        a = x * 2
        z = self.first(a.clone() if self.copied else a)
        a.mul_(3)
        return self.second(self.consume(z))


CONSUME = {
    "relu": F.relu,
    "gelu": F.gelu,
    "sum": lambda z: z + 1,
    "view": lambda z: z.view(-1, 8),
    "relu_": lambda z: z.relu_(),
}


@pytest.mark.parametrize("name", CONSUME)
@pytest.mark.parametrize("rule", [Epsilon(EPSILON), Gamma(0.25), ZPlus()], ids=repr)
def test_an_input_that_is_overwritten_before_the_output_is_consumed(rule, name, close):
    """Relevance is that of the input as the layer saw it, or there is an error: where a rule needs it.

    Epsilon needs none but the output.
    """
    short = isinstance(rule, Epsilon)
    consume = CONSUME[name]
    composite = Composite([(AnyLinear, rule)])
    found = []
    for copied in (True, False):
        leaf = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
        with composite.context(model := Overwritten(consume, copied=copied)):
            out = model(leaf)[:, 1].sum()
            if not (copied or short):
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    torch.autograd.grad(out, leaf)
                return
            found.append(torch.autograd.grad(out, leaf)[0])
    close(found[1], found[0], tol=1e-12)


class Normed(Overwritten):
    """As above, with a BatchNorm behind the layer."""

    def __init__(self, *, copied):
        super().__init__(None, copied=copied)
        self.consume = nn.BatchNorm1d(8).double()
        self.requires_grad_(requires_grad=False).eval()


def test_an_input_that_is_overwritten_before_a_batch_norm(close):
    x = torch.randn(5, 8, dtype=torch.float64)
    text = r"input of the layer before the BatchNorm in module 'consume'.*shape \(5, 8\), was overwritten in place"
    with every_layer(Gamma(0.25)).context(model := Normed(copied=False)), pytest.raises(LRPError, match=text):
        model(x.clone().requires_grad_())
    found = [lrphooks.lrp(Normed(copied=copied), x, 1, COMPOSITE) for copied in (True, False)]
    close(found[1], found[0], tol=1e-12)


def _no_grad(z):
    with torch.no_grad():
        z.clamp_(-1, 1)
    return z


def _through_a_view(z):
    z.view(-1)[::2] = 0.5
    return z


def _view_first(z):
    y = z.view(-1, 2)
    y.mul_(2)
    return y.reshape(z.shape)


def _used_then_written(z):
    y = z + 1
    return y * 0.5 + z.relu_()


@pytest.mark.parametrize("norm", [False, True], ids=["", "BatchNorm"])
@pytest.mark.parametrize("create", [False, True], ids=["", "differentiable"])
@pytest.mark.parametrize(
    "write", [_no_grad, _through_a_view, _view_first, _used_then_written], ids=lambda f: f.__name__
)
def test_whatever_overwrites_an_output(write, create, norm, close):
    """Relevance is that of the same function without a rule's node in sight of the write."""

    class Model(nn.Module):
        def __init__(self, *, written):
            super().__init__()
            torch.manual_seed(2)
            self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 3)
            self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
            self.written = written
            self.double().eval()

        def forward(self, x):
            z = self.norm(self.first(x))
            return self.second(write(z if self.written else z.clone()))

    x = torch.randn(5, 8, dtype=torch.float64)
    found = []
    for written in (False, True):
        leaf = x.clone().requires_grad_()
        with COMPOSITE.context(model := Model(written=written)):
            out = model(leaf)[:, 1].sum()
        found.append(torch.autograd.grad(out, leaf, create_graph=create)[0])
    close(found[1].detach(), found[0].detach(), tol=1e-12)
