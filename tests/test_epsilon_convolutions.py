"""What the epsilon rule keeps of convolutions, and of those with a BatchNorm behind them.

The reference is that of test_epsilon_kept: layers written out, with the derivative that the rule says, in float64.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from test_epsilon_kept import COMPOSITE, EPSILON, Reference, gelu, loses, relevance, shared, silu, silu_, tanh


class Convolved(nn.Module):
    """A convolution, a BatchNorm, what consumes it, and a dense layer."""

    def __init__(self, body, *, norm=True, learned=False):
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.head, self.body = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(64, 3), body
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()
        if norm:
            nn.init.normal_(self.norm.weight)
            nn.init.normal_(self.norm.bias)
            self.norm.running_mean.normal_()
            self.norm.running_var.uniform_(0.5, 2)
        self.double().eval().requires_grad_(learned)

    def forward(self, x):
        a = x * 2
        return self.head(self.body(self.norm(self.conv(a)), a).flatten(1))


class PlainConvolved(nn.Module):
    """The same with layers that are written out."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        model, a = self.model, x * 2
        z = shared(model.norm(model.conv(a)), EPSILON)
        y = model.body(z, a.as_subclass(Reference)).as_subclass(torch.Tensor)
        return shared(model.head(y.flatten(1)), EPSILON)


MAPS = {
    "nothing": lambda z, x: z,
    "SiLU": silu,
    "SiLU in place": silu_,
    "GELU": lambda z, x: gelu(z) if isinstance(x, Reference) else F.gelu(z),
    "tanh": tanh,
    "ReLU": lambda z, x: z.relu(),
    "ReLU in place": lambda z, x: z.relu_(),
    "SiLU and more": lambda z, x: silu(z, x) + 2 * z,
    "SiLU, then lost": lambda z, x: loses(z, lambda z: tanh(z, x)) + z,
    "skip": lambda z, x: z + x.repeat(1, 2, 1, 1),
    "SiLU of a flat view": lambda z, x: silu(z.flatten(2).transpose(1, 2), x),
    "pooled": lambda z, x: F.interpolate(F.max_pool2d(z, 2), scale_factor=2),
}


@pytest.mark.parametrize("create", [False, True], ids=["", "differentiable"])
@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
@pytest.mark.parametrize("norm", [True, False], ids=["BatchNorm", ""])
@pytest.mark.parametrize("name", MAPS)
def test_convolutions(name, norm, learned, create, close):
    x = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    model = Convolved(MAPS[name], norm=norm, learned=learned)
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(PlainConvolved(model)(leaf)[:, 1].sum(), leaf)
    close(relevance(model, x, create=create)[1], x * gradient, tol=1e-12)


@pytest.mark.parametrize("name", ["SiLU", "SiLU in place", "tanh", "skip"])
def test_derivatives_of_relevance_of_convolutions(name):
    model = Convolved(MAPS[name], learned=True)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)

    def found(leaf, *_):
        with COMPOSITE.context(model):
            return torch.autograd.grad(model(leaf)[:, 1].sum(), leaf, create_graph=True)[0]

    weights = [model.conv.bias, model.norm.weight, model.norm.bias]
    assert torch.autograd.gradcheck(found, (x, *weights), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("learned", [False, True], ids=["frozen", "learned"])
def test_what_a_batch_norm_keeps_for_its_parameters_cannot_be_overwritten(learned):
    class Lost(Convolved):
        def forward(self, x):
            z = self.conv(x * 2)
            y = self.norm(z)
            z.zero_()
            return self.head(y.flatten(1))

    model = Lost(None, learned=learned)
    leaf = torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    with COMPOSITE.context(model):
        if learned:
            with pytest.raises(RuntimeError, match="modified by an inplace"):
                model(leaf).sum().backward()
        else:
            model(leaf).sum().backward()


OVERWRITTEN = {
    "filled up by torch": lambda: (nn.Conv2d(2, 4, 2, padding="same"), nn.BatchNorm2d(4)),
    "dense": lambda: (nn.Linear(4, 4), nn.BatchNorm2d(2)),
    "dense on rows": lambda: (nn.Sequential(nn.Flatten(), nn.Linear(32, 4)), nn.BatchNorm1d(4)),
}


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", OVERWRITTEN)
def test_an_input_that_the_gradient_does_not_keep_may_be_overwritten(name):
    """Only what it keeps may raise an error, and take memory, that torch's own gradient would too."""

    class Overwrites(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(1)
            self.layer, self.norm = OVERWRITTEN[name]()
            self.norm.running_var.uniform_(0.5, 2)
            self.double().eval().requires_grad_(requires_grad=False)

        def forward(self, x, write=True):
            a = x * 2
            y = F.silu(self.norm(self.layer(a)))
            if write:
                a.zero_()
            return y.flatten(1)

    model, x = Overwrites(), torch.randn(3, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    torch.autograd.grad(model(x)[:, 1].sum(), x)
    found = []
    for write in (True, False):
        with COMPOSITE.context(model):
            out = model(x, write)
        found.append(torch.autograd.grad(out[:, 1].sum(), x)[0])
    assert torch.equal(*found)
