"""Whole networks against zennit 0.5.1: every preset, largest difference over largest relevance < 1e-4.

In float64: in float32 zennit's own rounding, which depends on the processor's kernels, comes to several times as much.
What is left is what the stabilisers do that zennit has in sums and pools too.
zennit carries relevance, so it is seeded with the output times the one-hot vector; here the seed is the one-hot
vector itself. Where zennit is known to be wrong or limited, the comparison is with a variant of the model in which it
is right, which each place says.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchvision_shim  # noqa: F401  (before torchvision and zennit)

# isort: split
from torchvision import models

import zennit_helper as zennit
from references import cases, dense, run
from references.cases import LAYERS, RULES, SIGNS, STABILIZED, generic, sample

TOLERANCE = 1e-4
PRESETS = {
    "EpsilonPlus": {},
    "EpsilonPlusFlat": {},
    "EpsilonAlpha2Beta1": {},
    "EpsilonAlpha2Beta1Flat": {},
    "EpsilonGammaBox": {"low": -3.0, "high": 3.0},
    "ExcitationBackprop": {},
    "GuidedBackprop": {},
    "DeconvNet": {},
}
GRADIENT_METHODS = ("GuidedBackprop", "DeconvNet")


def perturb(model, seed=0):
    """Activations of order one, BatchNorms as a training run might leave them, small biases.

    zennit stabilises sums and average pools with 1e-6, which the plain gradient has no need of. With activations
    around 1e-3, as torch's own initialisation leaves in small networks, that alone is more than the tolerance, and so
    may be one residual sum of around 1e-6: hence the scale here and the seed of the images. ``exact`` below compares
    with zennit without these stabilisers.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like, low, high):
        return low + (high - low) * torch.rand(like.shape, generator=generator)

    with torch.no_grad():
        for part in model.modules():
            if isinstance(part, dense.BATCH_NORMS):
                part.running_mean.copy_(uniform(part.running_mean, -0.3, 0.3))
                part.running_var.copy_(uniform(part.running_var, 0.5, 1.5))
                part.weight.copy_(uniform(part.weight, 0.5, 1.5))
                part.weight[::5] *= -1
                part.bias.copy_(uniform(part.bias, -0.2, 0.3))
            elif isinstance(part, dense.LINEAR_MAPS):
                fan = part.weight[0].numel()
                part.weight.copy_(torch.randn(part.weight.shape, generator=generator) * (2 / fan) ** 0.5)
                if part.bias is not None:
                    part.bias.copy_(uniform(part.bias, -0.1, 0.2))
    return model.eval()


def without_eps(model):
    """The same function with the eps of each BatchNorm moved into its running variance.

    zennit merges a norm into the layer before it and leaves the eps behind, so that every norm still divides by
    sqrt(1 + eps): up to 1e-4 of a deep network's relevance.
    """
    for part in model.modules():
        if isinstance(part, dense.BATCH_NORMS):
            part.running_var += part.eps - 1e-12
            part.eps = 1e-12
    return model


class TinyVGG(nn.Sequential):
    """Convolutions with or without BatchNorm, poolings, a classifier with dropout."""

    def __init__(self, norm=False, average=True):
        def block(inside, outside, **options):
            yield nn.Conv2d(inside, outside, 3, padding=1, **options)
            if norm:
                yield nn.BatchNorm2d(outside)
            yield nn.ReLU(inplace=True)

        super().__init__(
            *block(3, 8),
            *block(8, 8, bias=not norm),
            nn.MaxPool2d(2),
            *block(8, 16, groups=2),
            nn.AvgPool2d(2) if average else nn.MaxPool2d(2),
            *block(16, 16, stride=2),
            nn.Flatten(),
            nn.Linear(64, 32),
            *([nn.BatchNorm1d(32)] if norm else []),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(32, 10),
        )


class Block(nn.Module):
    """A residual block as people write it: functional ReLUs and a functional sum."""

    def __init__(self, inside, outside, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outside)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outside)
        self.project = nn.Conv2d(inside, outside, 1, stride, bias=False)
        self.norm3 = nn.BatchNorm2d(outside)

    def forward(self, x):
        """The block's output."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return F.relu(y + self.norm3(self.project(x)))


class ZennitBlock(Block):
    """The same block for zennit, which sees neither functional ReLUs nor functional sums."""

    def __init__(self, *args):
        super().__init__(*args)
        self.relu1, self.relu2, self.sum = nn.ReLU(), nn.ReLU(), zennit.Residual()

    def forward(self, x):
        """The block's output."""
        y = self.relu1(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return self.relu2(self.sum(y, self.norm3(self.project(x))))


def tiny_resnet(block=Block):
    """A stem, three residual blocks, global average pooling and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(block(8, 8, 1), block(8, 16, 2), block(16, 16, 1)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)),
    )


def build(name):
    """A network with random weights, the variant of it that zennit handles, and the size of its input."""
    torch.manual_seed(0)
    if name == "tiny vgg":
        model, size = TinyVGG(), 16
    elif name == "tiny vgg with norms":
        model, size = TinyVGG(norm=True), 16
    elif name == "tiny resnet":
        model, size = tiny_resnet(), 16
    elif name == "resnet18":
        model, size = models.resnet18(num_classes=20), 64
    elif name == "bottlenecks":
        model, size = models.ResNet(models.resnet.Bottleneck, [1, 2, 1, 1], num_classes=20), 64
    else:
        model, size = getattr(models, name)(init_weights=False), 64
        # the original classifier is 120 million parameters of the same kind
        model.classifier = nn.Sequential(nn.Linear(25088, 64), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(64, 20))
    perturb(model).double()
    twin = copy.deepcopy(model)
    if name == "tiny resnet":
        twin = tiny_resnet(ZennitBlock).double()
        twin.load_state_dict(model.state_dict())
    return model, without_eps(twin.eval()), size


NETWORKS = ["tiny vgg", "tiny vgg with norms", "tiny resnet", "vgg11", "vgg11_bn", "resnet18", "bottlenecks"]


@pytest.fixture(scope="module")
def network():
    """Build each network once."""
    built = {}

    def get(name):
        if name not in built:
            built.clear()
            built[name] = build(name)
        return built[name]

    return get


def compare(model, twin, x, composite, reference, close, *, gradient=False, pick=torch.argmax, tol=TOLERANCE):
    """Compare a composite with zennit's, for the largest output of each row or another one."""
    output = model(x).detach()
    torch.testing.assert_close(twin(x), output, rtol=0, atol=1e-9 * output.abs().max().item())
    seed = F.one_hot(pick(output, dim=1), output.shape[1]).to(x)
    expected = zennit.relevance(reference, twin, x, seed, gradient=gradient)
    close(run.relevance(composite, model, x, seed), expected, tol)


def preset(name, options, *, exact=False):
    """A preset of the package, and zennit's; ``exact``: without the stabilisers of sums and average pools."""
    from lrphooks import composites

    return getattr(composites, name)(**options), zennit.preset(name, exact=exact, **options)


def images(size, count=2, seed=1):
    """Pixels of both signs."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("net", NETWORKS)
def test_every_preset(net, name, network, close):
    """The eight presets, as they come, on plain and residual networks."""
    model, twin, size = network(net)
    x = images(size)
    compare(model, twin, x, *preset(name, PRESETS[name]), close, gradient=name in GRADIENT_METHODS)


@pytest.mark.parametrize("pick", [torch.argmax, torch.argmin], ids=["largest", "negative"])
@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("net", ["tiny vgg", "tiny vgg with norms", "tiny resnet"])
def test_every_preset_without_stabilizers_of_its_own(net, name, pick, close):
    """Without zennit's stabilisers of sums and pools, rounding is all that is left: for the largest output and a
    negative one, for images of both signs and without negative pixels.
    """
    model, twin, size = build(net)
    composites = preset(name, PRESETS[name], exact=True)
    for x in (images(size), images(size, seed=2).abs()):
        assert pick is torch.argmax or (model(x).amin(1) < 0).all()
        compare(model, twin, x, *composites, close, gradient=name in GRADIENT_METHODS, pick=pick, tol=1e-8)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("EpsilonPlus", {"epsilon": 0.2, "stabilizer": 0.05}),
        ("EpsilonPlusFlat", {"epsilon": 0.2, "stabilizer": 0.05}),
        ("EpsilonAlpha2Beta1", {"epsilon": 0.2, "stabilizer": 0.05}),
        ("EpsilonAlpha2Beta1Flat", {"epsilon": 0.2, "stabilizer": 0.05}),
        ("EpsilonGammaBox", {"low": -2.5, "high": 3.5, "epsilon": 0.2, "gamma": 1.5, "stabilizer": 0.05}),
        ("ExcitationBackprop", {"stabilizer": 0.05}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norms"])
def test_options_of_the_presets(name, options, norm, close):
    """Large stabilisers. Without sums and average pooling, which zennit stabilises as well and a gradient does not."""
    torch.manual_seed(1)
    model = perturb(TinyVGG(norm=norm, average=False)).double()
    x = images(16)
    compare(model, without_eps(copy.deepcopy(model)), x, *preset(name, options), close)


def test_bounds_for_each_channel(network, close):
    """The z^B rule's bounds as tensors."""
    model, twin, size = network("tiny resnet")
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    bounds = {"low": (-mean / std).view(1, 3, 1, 1), "high": ((1 - mean) / std).view(1, 3, 1, 1)}
    x = (torch.rand(2, 3, size, size) - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    compare(model, twin, x, *preset("EpsilonGammaBox", bounds), close)


@pytest.mark.parametrize("net", ["tiny resnet", "tiny vgg with norms"])
@pytest.mark.parametrize("case", [case for case in RULES if case.by_input], ids=lambda case: case.id)
def test_one_rule_everywhere(net, case, network, close):
    """Every rule in every layer, the last convolution of a residual block and the classifier included."""
    model, twin, size = network(net)
    x = images(size)
    compare(model, twin, x, run.everywhere(case), zennit.everywhere(zennit.rule(case)), close)


@pytest.mark.parametrize("norm", [False, True], ids=["plain", "norms"])
@pytest.mark.parametrize("case", [case for case in RULES if not case.by_input], ids=lambda case: case.id)
def test_a_stack_of_rules_for_first_layers(case, norm, close):
    """Flat, w^2 and z^B in every layer: relevance goes through units whose activation is exactly zero.

    zennit's w^2 rule counts the squared bias, which the paper does not: there its bias is set to zero. The network has
    no average pooling, where zennit shares by contribution and so loses what arrives at a window of zeros.
    """
    torch.manual_seed(2)
    model = perturb(TinyVGG(norm=norm, average=False)).double()
    x = images(16) * (torch.rand(2, 3, 16, 16) < 0.7)
    reference = zennit.everywhere(zennit.rule(case))
    compare(model, without_eps(copy.deepcopy(model)), x, run.everywhere(case), reference, close, tol=1e-9)


class Upsampler(nn.Sequential):
    """A convolution and transposed convolutions of the same kind as a decoder's."""

    def __init__(self):
        super().__init__(
            *(nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.ConvTranspose2d(6, 4, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 5)),
        )


@pytest.mark.parametrize("name", PRESETS)
def test_transposed_convolutions(name, close):
    """Transposed convolutions are convolutions to every preset, and take up the norm behind them."""
    torch.manual_seed(3)
    model = perturb(Upsampler()).double()
    x = torch.randn(2, 3, 8, 8).double()
    composites = preset(name, PRESETS[name])
    compare(model, without_eps(copy.deepcopy(model)), x, *composites, close, gradient=name in GRADIENT_METHODS)


# The dense references are checked against zennit as well, so that two independent references agree with each other.


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("layer_name", LAYERS)
def test_the_dense_reference_equals_zennit(layer_name, sign, close):
    """Every rule and stabiliser on every kind of layer, in float64."""
    layer, shape = cases.layer(layer_name)
    model = nn.Sequential(layer)
    x = sample(shape, sign)
    seed = generic(model(x).shape)
    for case in RULES + STABILIZED:
        if layer_name == "convtranspose1d" and case.id.endswith("-dim"):
            continue  # outputs without any input: a norm of zero scales their stabiliser to zero, and zennit is nan
        expected = dense.chain(model, lambda *_, case=case: case.reference(), x, seed)[1]
        close(zennit.relevance(zennit.everywhere(zennit.rule(case)), model, x, seed), expected)


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("case", RULES, ids=lambda case: case.id)
def test_the_dense_reference_equals_zennit_on_a_stack(case, sign, close):
    """Merged norms and zero activations, in float64."""
    model = nn.Sequential(
        *(nn.Conv2d(2, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.ConvTranspose2d(4, 3, 2, stride=2), nn.BatchNorm2d(3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(192, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3)),
    )
    for norm in cases.randomize(model, 4).modules():
        if isinstance(norm, dense.BATCH_NORMS):
            norm.eps = 1e-14  # see without_eps
    x = sample((2, 4, 4), sign)
    seed = generic((2, 3))
    expected = dense.chain(model, lambda *_: case.reference(), x, seed)[1]
    close(zennit.relevance(zennit.everywhere(zennit.rule(case)), model, x, seed), expected)
