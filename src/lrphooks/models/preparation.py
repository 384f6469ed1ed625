"""How a picture becomes the input of a network, and an input a picture again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lrphooks import digits
from lrphooks.digits.data import on_white
from lrphooks.models.errors import ModelError

Size = tuple[int, int]

#: What a picture may be resized to before it is cropped.
MOST_PIXELS = 178_956_970

INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}


class Preparation(ABC):
    """What is done to a picture before a network sees it. Prints as one line."""

    @abstractmethod
    def prepare(self, picture: Image.Image) -> Tensor:
        """Make a picture into the network's input, shape (1, C, H, W).

        Raises
        ------
        ValueError
            If the picture cannot be what the network reads.
        """

    @abstractmethod
    def show(self, x: Tensor) -> Image.Image:
        """Make an input, shape (1, C, H, W), back into the picture that the network sees."""

    @property
    @abstractmethod
    def low(self) -> float | Tensor:
        """The least value that an input can hold (black): a number, or one for each channel."""

    @property
    @abstractmethod
    def high(self) -> float | Tensor:
        """The greatest value that an input can hold (white): a number, or one for each channel."""

    @abstractmethod
    def changed(self, size: Size | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Preparation:
        """Return the preparation with another size (height, width), mean or standard deviation, where one is given."""


@final
@dataclass(frozen=True)
class Ink(Preparation):
    """The preparation of the packaged digit network: light ink on a dark ground, centred by its mass."""

    def prepare(self, picture: Image.Image) -> Tensor:
        return digits.from_picture(picture)

    def show(self, x: Tensor) -> Image.Image:
        return _to_picture(x[0].float().cpu())

    @property
    def low(self) -> float:
        return 0.0

    @property
    def high(self) -> float:
        return 1.0

    def changed(self, size: Size | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Preparation:
        if size or mean or std:
            raise ModelError("the digit network prepares pictures in its own way: it takes no --size, --mean or --std.")
        return self

    def __str__(self) -> str:
        return "light ink on dark, centred, 28 x 28 pixels from 0 to 1"


@final
@dataclass(frozen=True)
class Pixels(Preparation):
    """Resize, crop the centre, scale pixels to 0 to 1, subtract ``mean`` and divide by ``std``.

    Transparent parts become white; one channel is grey, three are red, green and blue.

    Parameters
    ----------
    size
        The height and width of the input.
    resize
        The length of the shorter side before the crop, or the height and width, where the proportions may change.
    mean, std
        One number for each channel, for pixels from 0 to 1.
    interpolation
        One of :data:`INTERPOLATIONS`.

    Raises
    ------
    ModelError
        If a number is no size, the picture would be smaller than the crop, or the channels are neither one nor three.
    """

    size: Size
    resize: int | Size
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)
    std: tuple[float, ...] = (1.0, 1.0, 1.0)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if min(self.size) < 1 or min(self._least()) < 1:
            raise ModelError(f"a picture of {_by(self.size)} pixels cannot be: both sides must be at least 1.")
        if any(least < side for least, side in zip(self._least(), self.size, strict=True)):
            raise ModelError(f"a crop of {_by(self.size)} pixels does not fit into a side of {min(self._least())}.")
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3):
            raise ModelError(
                f"the mean has {len(self.mean)} channels and the standard deviation {len(self.std)}: both must have 1 "
                "(grey) or 3 (red, green, blue)."
            )
        if min(self.std) <= 0:
            raise ModelError(f"the standard deviation is a divisor above 0, not {min(self.std):g}.")
        if self.interpolation not in INTERPOLATIONS:
            raise ModelError(f"the interpolation is one of {', '.join(INTERPOLATIONS)}, not {self.interpolation!r}.")

    def _least(self) -> Size:
        return (self.resize, self.resize) if isinstance(self.resize, int) else self.resize

    def prepare(self, picture: Image.Image) -> Tensor:
        picture = on_white(picture).convert("L" if len(self.mean) == 1 else "RGB")
        resized = self._resized(picture)
        if resized[0] * resized[1] > max(MOST_PIXELS, 4 * self.size[0] * self.size[1]):
            raise ModelError(
                f"a picture as narrow as {picture.width} x {picture.height} pixels would be resized to {resized[0]} x "
                f"{resized[1]} before its centre is taken, which would fill the memory: crop it first."
            )
        picture = picture.resize(resized, INTERPOLATIONS[self.interpolation])
        height, width = self.size
        left, top = round((picture.width - width) / 2), round((picture.height - height) / 2)
        picture = picture.crop((left, top, left + width, top + height))
        pixels = torch.from_numpy(np.array(picture)).reshape(height, width, len(self.mean))
        return self._normalised(pixels.permute(2, 0, 1).float() / 255).unsqueeze(0)

    def _resized(self, picture: Image.Image) -> Size:
        """Return the width and height before the crop."""
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        short, long = sorted(picture.size)
        longer = int(self.resize * long / short)
        return (self.resize, longer) if picture.width <= picture.height else (longer, self.resize)

    def show(self, x: Tensor) -> Image.Image:
        mean, std = self._constants()
        return _to_picture(x[0].float().cpu() * std + mean)

    @property
    def low(self) -> float | Tensor:
        return self._bound(0.0)

    @property
    def high(self) -> float | Tensor:
        return self._bound(1.0)

    def _bound(self, value: float) -> float | Tensor:
        # In float32, as the input is made: black must not fall below the bound by a rounding error.
        bound = self._normalised(torch.full((len(self.mean), 1, 1), value)).flatten()
        return bound if len(set(bound.tolist())) > 1 else float(bound[0])

    def _constants(self) -> tuple[Tensor, Tensor]:
        mean, std = torch.tensor([self.mean, self.std])[:, :, None, None]
        return mean, std

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = self._constants()
        return (pixels - mean) / std

    def changed(self, size: Size | None, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> Preparation:
        changed = self
        if size:
            resize = tuple(round(a * b / c) for a, b, c in zip(self._least(), size, self.size, strict=True))
            keeps = isinstance(self.resize, int)
            changed = replace(changed, size=size, resize=max(resize) if keeps else (resize[0], resize[1]))
        if mean or std:
            changed = replace(changed, mean=self._spread(mean) or self.mean, std=self._spread(std) or self.std)
        return changed

    def _spread(self, values: tuple[float, ...] | None) -> tuple[float, ...] | None:
        """Return one number for each channel."""
        return values * len(self.mean) if values and len(values) == 1 else values

    def __str__(self) -> str:
        if isinstance(self.resize, int):
            cut = f"shorter side to {self.resize}, centre {_by(self.size)}"
        else:
            cut = "" if self.resize == self.size else f"squeezed to {_by(self.resize)}, centre "
            cut = f"{cut}{_by(self.size)}{'' if cut else ' squeezed'}"
        plain = not any(self.mean) and set(self.std) == {1.0}
        scaled = "pixels from 0 to 1" if plain else f"mean {_numbers(self.mean)}, std {_numbers(self.std)}"
        return f"{'grey, ' if len(self.mean) == 1 else ''}{cut}, {self.interpolation}, {scaled}"


def _by(size: Size) -> str:
    """Return a height and a width as people write them: the width first."""
    return f"{size[1]} x {size[0]}"


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4g}" for value in (values[:1] if len(set(values)) == 1 else values))


def _to_picture(pixels: Tensor) -> Image.Image:
    """Make pixels from 0 to 1, (1, H, W) or (3, H, W), into a picture."""
    array = pixels.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
