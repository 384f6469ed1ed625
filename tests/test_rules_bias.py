"""Rules that ignore biases: the relevance of each output goes to its inputs alone, by written-out float64 formulas."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import lrphooks
from lrphooks import Composite, composites
from lrphooks.matching import AnyLinear
from lrphooks.rules import AlphaBeta, Epsilon, Gamma, TopRelevance, ZPlus


class Written(nn.Module):
    """A dense layer written out as a product and a sum."""

    def __init__(self, right):
        super().__init__()
        self.weight, self.bias, self.right = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4)), right

    def forward(self, x):
        return x @ self.weight.T + self.bias if self.right else (self.weight @ x.mT).mT + self.bias


def norm(channels):
    """A BatchNorm whose statistics and parameters are not those of a new one."""
    made = nn.BatchNorm2d(channels)
    made.running_mean.uniform_(-1, 1)
    made.running_var.uniform_(0.5, 2.0)
    nn.init.uniform_(made.weight, 0.5, 1.5)
    nn.init.normal_(made.bias)
    return made


#: Affine maps of one input, and the shape of that.
MAPS = {
    "dense": (lambda: nn.Linear(6, 4), (6,)),
    "padded": (lambda: nn.Conv2d(2, 4, 3, padding=1), (2, 4, 4)),
    "strided, of groups": (lambda: nn.Conv2d(4, 4, 2, stride=2, groups=2), (4, 4, 4)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 2, stride=2), (2, 3, 3)),
    "BatchNorm": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), norm(4)), (2, 4, 4)),
    "BatchNorm, no bias": (lambda: nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), norm(4)), (2, 4, 4)),
    "from the right": (lambda: Written(right=True), (5, 6)),
    "from the left": (lambda: Written(right=False), (5, 6)),
}
RULES = {
    "epsilon": Epsilon(0.25, bias="ignore"),
    "LRP-0": Epsilon(0.0, bias="ignore"),
    "gamma": Gamma(0.5, stabilizer=0.1, bias="ignore"),
    "z-plus": ZPlus(stabilizer=0.1, bias="ignore"),
    "alpha-beta": AlphaBeta(2.0, 1.0, stabilizer=0.1, bias="ignore"),
    "alpha-beta, beta 0": AlphaBeta(1.0, 0.0, stabilizer=0.1, bias="ignore"),
}


def made(name):
    torch.manual_seed(0)
    make, shape = MAPS[name]
    return make().double().eval(), torch.randn(2, *shape, dtype=torch.float64)


def stable(z, epsilon):
    return torch.where(z == 0, torch.inf, z) if epsilon == 0 else z + epsilon * torch.where(z < 0, -1.0, 1.0).to(z)


def expected(rule, matrix, a, R):
    """The relevance of the inputs a of a map without bias, for that R of its outputs."""
    c = matrix * a  # the contribution of each input to each output
    z, P, N = c.sum(1), c.clamp(min=0).sum(1), c.clamp(max=0).sum(1)
    up, down = c.clamp(min=0), c.clamp(max=0)
    if isinstance(rule, Epsilon):
        return (c * (R / stable(z, rule.epsilon))[:, None]).sum(0)
    if isinstance(rule, Gamma):
        favoured, total = torch.where(z[:, None] > 0, up, down), torch.where(z > 0, P, N)
        return ((c + rule.gamma * favoured) * (R / stable(z + rule.gamma * total, rule.stabilizer))[:, None]).sum(0)
    alpha, beta = (1.0, 0.0) if isinstance(rule, ZPlus) else (rule.alpha, rule.beta)
    of_up = (up * (R / stable(P, rule.stabilizer))[:, None]).sum(0)
    return alpha * of_up - beta * (down * (R / -stable(-N, rule.stabilizer))[:, None]).sum(0)


def reference(rule, layer, x, seed):
    """The relevance of x for outputs whose relevance is that of ``(seed * layer(x)).sum()``."""
    found = []
    for row, G in zip(x, seed, strict=True):

        def apply(flat, row=row):
            return layer(flat.view(1, *row.shape)).flatten()

        matrix = torch.autograd.functional.jacobian(apply, row.flatten())
        found.append(expected(rule, matrix, row.flatten(), G.flatten() * layer(row[None]).detach().flatten()))
    return torch.stack(found).view_as(x)


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("consumed", ["as it is", "by a ReLU", "twice"])
def test_the_bias_takes_no_part(name, rule, consumed):
    layer, x = made(name)
    z = layer(x).detach()
    relu, seed = (z > 0).double(), torch.randn(z.shape, dtype=torch.float64)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            out = self.layer(x)
            if consumed == "by a ReLU":
                return F.relu(out)
            return out * 2 + out if consumed == "twice" else out

    x.requires_grad_()
    model = Model()
    with Composite([(AnyLinear, rule)]).context(model):
        out = model(x)
        assert torch.equal(out, {"by a ReLU": F.relu(z), "twice": z * 2 + z}.get(consumed, z))
        (seed * out).sum().backward()
    weight = {"by a ReLU": relu, "twice": 3.0}.get(consumed, 1.0)
    wanted = reference(rule, layer, x.detach(), seed * weight)
    torch.testing.assert_close(x.grad, wanted, rtol=0, atol=1e-10 * float(wanted.abs().max()))


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("name", ["dense", "padded", "BatchNorm"])
def test_the_derivative_of_relevance_is_that_of_the_formula(name, rule):
    """By the input and by the parameters, the bias among them, which counts in the output alone."""
    layer, x = made(name)
    layer = nn.Sequential(layer, nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).double().eval()
    layer(x)
    composite, watched = Composite([(AnyLinear, rule)]), torch.randn_like(x)

    def share(x):
        with composite.context(layer):
            (found,) = torch.autograd.grad(layer(x)[:, 1].sum(), x, create_graph=True)
        return (found * watched).sum()

    x.requires_grad_()
    parameters = [x, *layer.parameters()]
    grads = torch.autograd.grad(share(x), parameters, allow_unused=True)
    for tensor, grad in zip(parameters, grads, strict=True):
        direction = torch.randn_like(tensor)
        with torch.no_grad():
            tensor.add_(direction, alpha=1e-6)
        above = share(x).item()
        with torch.no_grad():
            tensor.sub_(direction, alpha=2e-6)
        below = share(x).item()
        with torch.no_grad():
            tensor.add_(direction, alpha=1e-6)
        slope = 0.0 if grad is None else float((grad * direction).sum())
        assert abs((above - below) / 2e-6 - slope) < 1e-5 * max(1.0, abs(slope))


class Network(nn.Module):
    """Convolutions with biases and BatchNorm, a residual sum, and a dense layer; ``kept`` in a checkpoint."""

    def __init__(self, kept=False):
        super().__init__()
        torch.manual_seed(1)
        self.first, self.norm, self.second = nn.Conv2d(3, 4, 3, padding=1), norm(4), nn.Conv2d(4, 4, 3, padding=1)
        self.head, self.kept = nn.Linear(4, 3), kept
        self.double().eval()

    def forward(self, x):
        def body(x):
            u = F.relu(self.norm(self.first(x)), inplace=True)
            return F.relu(self.second(u) + u)

        out = checkpoint(body, x, use_reentrant=False) if self.kept else body(x)
        return self.head(out.mean((2, 3)))


PRESETS = {
    "EpsilonPlus": composites.EpsilonPlus,
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1,
    "ExcitationBackprop": composites.ExcitationBackprop,
    "AttnLRP": composites.AttnLRP,
    "CPLRP": composites.CPLRP,
    "gamma": lambda bias: Composite([(AnyLinear, Gamma(0.25, 1e-9, bias=bias))]),
}


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_f_of_x_arrives_at_the_input(preset):
    model, x = Network(), torch.rand(2, 3, 6, 6, dtype=torch.float64) + 0.1
    relevance = lrphooks.lrp(model, x, 1, preset(bias="ignore"))
    torch.testing.assert_close(relevance.sum((1, 2, 3)), model(x)[:, 1].detach(), rtol=1e-4, atol=1e-4)
    absorbed = lrphooks.lrp(model, x, 1, preset(bias="absorb")).sum((1, 2, 3)) - model(x)[:, 1]
    assert (absorbed.abs() > 1e-2).all()


@pytest.mark.parametrize("preset", PRESETS.values(), ids=PRESETS)
def test_a_checkpoint_and_the_audit_agree(preset):
    x, composite = torch.rand(2, 3, 6, 6, dtype=torch.float64), preset(bias="ignore")
    wanted = lrphooks.lrp(Network(), x, 1, composite)
    found = lrphooks.lrp(Network(kept=True), x, 1, composite)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12 * float(wanted.abs().max()))
    report = lrphooks.audit(Network(), x, 1, composite)
    assert report.sinks.get("bias", 0.0) == 0.0
    assert report.unexplained < 1e-12


def test_zennit_leaves_out_biases_too():
    import torchvision_shim  # noqa: F401, I001  (before zennit)
    from zennit.rules import Epsilon as Theirs

    layer, x = made("dense")
    theirs = Theirs(epsilon=0.25, zero_params="bias").copy()
    copy = nn.Sequential(nn.Linear(6, 4)).double()
    copy[0].load_state_dict(layer.state_dict())
    handles = theirs.register(copy[0])
    leaf = x.clone().requires_grad_()
    z, seed = copy(leaf), torch.randn(2, 4, dtype=torch.float64)
    (found,) = torch.autograd.grad(z, leaf, seed)
    handles.remove()
    ours = x.clone().requires_grad_()
    with Composite([(AnyLinear, Epsilon(0.25, bias="ignore"))]).context(layer):
        out = layer(ours)
        # theirs begins with relevance, ours with the modified gradient
        (seed / out.detach() * out).sum().backward()
    torch.testing.assert_close(ours.grad, found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_cells_ignore_their_biases_too(kind):
    """A recurrent layer is as its cells: without the biases' part, all of what tanh and gates hand on is conserved."""
    torch.manual_seed(0)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.cells, self.head = kind(3, 5, batch_first=True), nn.Linear(5, 2)
            self.double().eval()

        def forward(self, x):
            return self.head(self.cells(x)[0][:, -1])

    model, x = Model(), torch.randn(2, 4, 3, dtype=torch.float64)
    report = lrphooks.audit(model, x, 1, composites.AttnLRP(bias="ignore"))
    assert report.sinks.get("bias", 0.0) == 0.0
    assert report.unexplained < 1e-12
    relevance = lrphooks.lrp(model, x, 1, composites.AttnLRP(bias="ignore"))
    torch.testing.assert_close(relevance.sum().item(), report.relevance, rtol=1e-9, atol=1e-12)


def test_what_is_printed_and_refused():
    assert repr(Epsilon(0.5)) == "Epsilon(epsilon=0.5)"
    assert repr(Gamma(0.5, bias="ignore")) == "Gamma(gamma=0.5, stabilizer=1e-06, bias='ignore')"
    assert eval(repr(AlphaBeta(bias="ignore"))) == AlphaBeta(bias="ignore") != AlphaBeta()
    assert "bias='ignore'" in repr(composites.EpsilonPlus(bias="ignore"))
    assert TopRelevance(ZPlus(bias="ignore"), 0.5).inner.bias == "ignore"
    with pytest.raises(ValueError, match=r'Epsilon: bias must be "absorb" or "ignore", got .zero.\.'):
        Epsilon(bias="zero")
    with pytest.raises(TypeError, match="bias"):
        lrphooks.rules.ZBox(0, 1, bias="ignore")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_no_input_contributes_nothing_is_handed_on(rule, normed, dtype):
    """What is left of z there is rounding, of which a quotient would be anything."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), *([norm(4)] if normed else [])]
    model = nn.Sequential(*layers).to(dtype).eval()
    x = torch.randn(1, 2, 9, 9, dtype=dtype)
    x[..., :5] = 0
    x.requires_grad_()
    with Composite([(AnyLinear, rule)]).context(model):
        (out := model(x))[..., :4].sum().backward()
    assert out[..., :4].abs().min() > 1e-4
    assert torch.equal(x.grad, torch.zeros_like(x))
