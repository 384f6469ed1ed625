"""Small networks, composites and helpers that the tests of the guarantees share."""

import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import Composite, composites
from lrphooks.matching import AnyLinear, First
from lrphooks.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus

PRESETS = {
    "EpsilonPlus": composites.EpsilonPlus,
    "EpsilonPlusFlat": composites.EpsilonPlusFlat,
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1,
    "EpsilonAlpha2Beta1Flat": composites.EpsilonAlpha2Beta1Flat,
    "EpsilonGammaBox": lambda *stabilizers: composites.EpsilonGammaBox(-3.0, 3.0, *stabilizers[:1]),
    "ExcitationBackprop": lambda *stabilizers: composites.ExcitationBackprop(*stabilizers[:1]),
    "GuidedBackprop": lambda *_: composites.GuidedBackprop(),
    "DeconvNet": lambda *_: composites.DeconvNet(),
    "AttnLRP": lambda *stabilizers: composites.AttnLRP(*stabilizers[:1]),
    "CPLRP": lambda *stabilizers: composites.CPLRP(*stabilizers[:1]),
}


def every_layer(rule):
    """One rule on every linear layer."""
    return Composite([(AnyLinear, rule)])


def on_first(rule, others=None):
    """One rule on the first executed linear layer, another on the rest."""
    return Composite([(First(AnyLinear), rule), (AnyLinear, others or Epsilon(0.1))])


#: Rules with stabilisers so large that their derivatives are well conditioned.
SMOOTH = {
    "Epsilon": every_layer(Epsilon(0.25)),
    "LRP-0": every_layer(Epsilon(0)),
    "Gamma": every_layer(Gamma(0.5, 0.25)),
    "ZPlus": every_layer(ZPlus(0.25)),
    "AlphaBeta": every_layer(AlphaBeta(2, 1, 0.25)),
    "ZBox": on_first(ZBox(-3.0, 3.0, 0.25)),
    "WSquare": on_first(WSquare(0.25)),
    "Flat": on_first(Flat(0.25)),
    "WSquare everywhere": every_layer(WSquare(0.25)),
}


class Vgg(nn.Module):
    """Convolutions, max pooling, dropout and dense layers, as one registers them."""

    def __init__(self, inplace=True):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(inplace), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(inplace),
            nn.MaxPool2d(2), nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(inplace), nn.AdaptiveAvgPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(nn.Linear(32, 10), nn.ReLU(inplace), nn.Dropout(0.5), nn.Linear(10, 4))

    def forward(self, x):
        return self.classifier(torch.flatten(self.features(x), 1))


class Residual(nn.Module):
    """Two residual blocks with BatchNorm, in-place ReLU and ``out += identity``."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv1, self.bn1 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8)
        self.down, self.bn3 = nn.Conv2d(6, 8, 1, stride=2, bias=False), nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = self.relu(self.bn(self.stem(x)))
        identity = self.bn3(self.down(x))
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += identity
        return self.fc(self.relu(out).mean((2, 3)))


class Strange(nn.Module):
    """Grouped, depthwise, dilated and transposed convolutions, LeakyReLU, concatenation, average pooling."""

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(3, 6, 3, padding="same", groups=3)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=6, bias=False)
        self.up = nn.ConvTranspose2d(12, 5, 3, stride=2, padding=1, output_padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.head = nn.Conv2d(5, 4, 1)

    def forward(self, x):
        x = F.leaky_relu(self.grouped(x), 0.1)
        x = torch.cat((x, F.relu(self.depthwise(x), inplace=True)), 1)
        x = F.avg_pool2d(F.relu(self.norm(self.up(x))), 2)
        return self.head(x).flatten(2).mean(-1)


class Tokens(nn.Module):
    """Dense layers on three-dimensional input, LayerNorm, GELU, a residual sum and attention."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm1, self.norm2 = nn.Linear(3, 8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.fc1, self.fc2, self.head = nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 4)
        self.position = nn.Parameter(0.1 * torch.randn(1, 16, 8))

    def forward(self, x):
        x = self.embed(x.flatten(2).transpose(1, 2)) + self.position
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / 2.0).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).flatten(2))
        x = x + self.fc2(F.gelu(self.fc1(self.norm2(x))))
        return self.head(x.mean(1))


class Gates(nn.Module):
    """SiLU, a squeeze-excite gate, in-place products, GLU, slices written in place."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.squeeze, self.excite = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1)
        self.act = nn.SiLU(inplace=True)
        self.fc = nn.Linear(6, 8)
        self.scale = nn.Parameter(1 + 0.1 * torch.randn(6))

    def forward(self, x):
        x = self.act(self.conv(x))
        x *= torch.sigmoid(self.excite(F.silu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        buffer = torch.zeros_like(x)
        buffer[:, :3] = x[:, 3:]
        buffer[:, 3:] += x[:, :3]
        return F.glu(self.fc(buffer.mean((2, 3)).mul_(self.scale)), 1)


class Functional(nn.Module):
    """No module but parameters: every operation is a function, a method or an operator."""

    def __init__(self):
        super().__init__()
        self.w1, self.b1 = nn.Parameter(0.3 * torch.randn(6, 3, 3, 3)), nn.Parameter(0.1 * torch.randn(6))
        self.w2, self.b2 = nn.Parameter(0.3 * torch.randn(10, 24)), nn.Parameter(0.1 * torch.randn(10))
        self.w3 = nn.Parameter(0.3 * torch.randn(10, 4))

    def forward(self, x):
        x = F.max_pool2d(F.conv2d(x, self.w1, self.b1, padding=1).relu_(), 2)
        x = torch.addmm(self.b2, x.reshape(x.shape[0], -1), self.w2.t()).clamp(min=0)
        return x @ self.w3 + 0.5


NETWORKS = {
    "vgg": Vgg,
    "residual": Residual,
    "strange": Strange,
    "tokens": Tokens,
    "gates": Gates,
    "functional": Functional,
}


def network(name, *, dtype=torch.float64, train=False, seed=0):
    """A network of NETWORKS with perturbed norms and biases, and an input for it."""
    torch.manual_seed(seed)
    model = NETWORKS[name]()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    model.to(dtype).train(train)
    side = 8 if name in ("vgg", "residual") else 4
    return model, torch.randn(2, 3, side, side, dtype=dtype)


def relevance(composite, model, x, seed=None):
    """``x.grad`` after a backward pass inside the context, from a fixed weighting of the outputs."""
    x = x.detach().clone().requires_grad_()
    with composite.context(model):
        output = model(x)
        output.backward(weighting(output) if seed is None else seed)
    return x.grad


def weighting(output):
    """Fixed positive and negative weights for the outputs, so that no part of them cancels."""
    return torch.linspace(1, -0.5, output.numel(), dtype=output.dtype).reshape(output.shape)


def equal(actual, expected, tol=1e-12):
    """The largest difference is at most ``tol`` times the largest value, which is not 0."""
    largest = float(expected.abs().max())
    error = float((actual - expected).abs().max())
    assert largest > 0, "the reference is zero everywhere"
    assert error <= tol * largest, f"largest difference over largest value: {error / largest:.3g}"
