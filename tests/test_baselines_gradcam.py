"""Grad-CAM: the formula by hand, and captum."""

import pytest
import torch
import torch.nn.functional as F
from captum.attr import LayerGradCam
from torch import nn

from lrphooks import LRPError
from lrphooks.baselines import GradCAM
from small_networks import network


def peer(model, layer, x, target, size):
    maps = LayerGradCam(model, layer).attribute(x, torch.tensor(target), relu_attributions=True)
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


@pytest.mark.parametrize("layer", ["features.0", "features.2", "features.3", "features.5", "features.4"])
def test_captum(layer, close):
    model, x = network("vgg")
    found = GradCAM(layer)(model, x, [2, 3])
    expected = peer(model, model.get_submodule(layer), x, [2, 3], (8, 8))
    close(found.sum(1, keepdim=True), expected)
    for channel in range(3):
        close(found[:, channel : channel + 1], expected / 3)


@pytest.mark.parametrize(
    ("name", "last"), [("vgg", "features.5"), ("residual", "conv2"), ("strange", "head"), ("gates", "conv")]
)
def test_the_layer_is_the_last_convolution_that_ran(name, last, close):
    """Of those whose maps are more than one value, as a squeeze-excite gate's are not."""
    model, x = network(name)
    close(
        GradCAM()(model, x, [2, 3]).sum(1, keepdim=True), peer(model, model.get_submodule(last), x, [2, 3], x.shape[2:])
    )


def test_a_convolution_that_is_a_function(close):
    model, x = network("functional")
    maps = F.conv2d(x, model.w1, model.b1, padding=1).detach().requires_grad_()
    hidden = F.max_pool2d(maps.relu(), 2).flatten(1)
    output = (hidden @ model.w2.t() + model.b2).clamp(min=0) @ model.w3 + 0.5
    (gradient,) = torch.autograd.grad(output[:, 2].sum(), maps)
    cam = (gradient.mean((2, 3), keepdim=True) * maps).sum(1).relu()
    close(GradCAM()(model, x, 2).sum(1), cam)


@pytest.mark.parametrize("inplace", [True, False])
def test_what_follows_in_place_leaves_the_maps_alone(inplace, close):
    model, x = network("vgg")
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = inplace
    maps = model.features[:6](x).detach().requires_grad_()
    output = model.classifier(model.features[6:](maps.clone()).flatten(1))
    (gradient,) = torch.autograd.grad(output[:, 2].sum(), maps)
    cam = (gradient.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).relu()
    close(GradCAM()(model, x, 2).sum(1, keepdim=True), F.interpolate(cam, (8, 8), mode="bilinear"))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_number_of_dimensions(dims, close):
    """Maps as large as the input need no interpolation."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](2, 4, 3, padding=1).double()
    model = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(4 * 5**dims, 3).double())
    x = torch.randn(2, 2, *(5,) * dims).double()
    maps = conv(x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(model[1:](maps)[:, 0].sum(), maps)
    weights = gradient.flatten(2).mean(2)
    cam = torch.einsum("bk,bk...->b...", weights, maps).relu()
    close(GradCAM()(model, x, 0).sum(1), cam)


def test_channels_last(close):
    class Last(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return self.inner(x.permute(0, 3, 1, 2))

    model, x = network("vgg")
    close(GradCAM(channel=-1)(Last(model), x.permute(0, 2, 3, 1), 2), GradCAM()(model, x, 2).permute(0, 2, 3, 1))


def test_errors():
    model, x = network("vgg")
    with pytest.raises(
        LRPError, match=r"no module 'feature.5'. Is it misspelt\? The modules are 'features', 'features.0'"
    ):
        GradCAM("feature.5")(model, x, 1)
    with pytest.raises(LRPError, match=r"output of module 'classifier.0' has shape \(2, 10\).*GradCAM\(layer=...\)"):
        GradCAM("classifier.0")(model, x, 1)
    with pytest.raises(TypeError, match="layer must be the name of a module or None"):
        GradCAM(model.features[0])
    with pytest.raises(TypeError, match="channel must be a dimension"):
        GradCAM(channel="last")
    with pytest.raises(LRPError, match="no convolution with maps larger than one value ran"):
        GradCAM()(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)).double(), x, 1)


def test_errors_of_layers():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.aside, self.idle = (nn.Conv2d(3, 4, 3) for _ in range(3))
            self.pair = Pair()

        def forward(self, x):
            self.aside(x)
            return self.pair(self.conv(x))[0].mean((2, 3))

    class Pair(nn.Module):
        def forward(self, x):
            return x, x

    model, x = Odd(), torch.randn(2, 3, 8, 8)
    with pytest.raises(LRPError, match="module 'idle' did not run"):
        GradCAM("idle")(model, x, 1)
    with pytest.raises(LRPError, match=r"module 'pair' \(Pair\) returns a tuple, no tensor of feature maps"):
        GradCAM("pair")(model, x, 1)
    with pytest.raises(LRPError, match="does not depend on the feature maps"):
        GradCAM("aside")(model, x, 1)


def test_several_inputs():
    class Two(nn.Module):
        def forward(self, a, b):
            return a + b

    with pytest.raises(LRPError, match="the model has 2 floating-point inputs, and which one the feature maps are of"):
        GradCAM()(Two(), (torch.randn(2, 3), torch.randn(2, 3)), 1)
