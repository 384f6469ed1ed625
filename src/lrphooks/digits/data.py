"""Digit pictures: the packaged ones, and any picture made into what the digit network reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

SIDE = 28
# The data set's own preparation: the digit's longer side is 20 pixels, its centre of mass the centre.
DIGIT_SIDE = 20
# A picture whose lightest and darkest pixels are closer than this (of 255) shows no digit.
LEAST_CONTRAST = 16


def images() -> list[Path]:
    """Return the packaged digit pictures (28 x 28, greyscale PNG), in the order of their names."""
    return sorted((Path(__file__).parent / "images").glob("digit-*.png"))


def load_image(path: str | Path) -> Tensor:
    """Read a picture of a digit as the (1, 1, 28, 28) tensor that the network takes."""
    with Image.open(path) as picture:
        return from_picture(picture)


def from_picture(picture: Image.Image) -> Tensor:
    """Make a picture of one digit into the (1, 1, 28, 28) tensor in [0, 1] that the network takes.

    Colours become grey and transparency becomes white. Ink darker than the ground (the median of the border) is
    inverted, for the network reads light ink on dark. A picture of 28 x 28 pixels is otherwise taken as it is; any
    other is cropped to its ink, scaled to 20 pixels and centred by its mass, as the training data were.
    """
    grey = np.asarray(on_white(picture).convert("L"), dtype=np.float64)
    contrast = float(np.ptp(grey))
    if contrast < LEAST_CONTRAST:
        raise ValueError(
            f"the picture shows no digit: its brightness spans {contrast:.0f} of 255. "
            "Give a picture with one light digit on a dark ground, or the other way round."
        )
    ground = float(np.median(np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])))
    if ground - grey.min() > grey.max() - ground:
        grey, ground = 255.0 - grey, 255.0 - ground
    ink = grey / 255.0 if grey.shape == (SIDE, SIDE) else _centred(np.clip(grey - ground, 0.0, None))
    return torch.from_numpy(ink.astype(np.float32))[None, None]


def on_white(picture: Image.Image) -> Image.Image:
    """Lay a picture that is transparent in places on a white ground; any other is returned as it is."""
    if not picture.has_transparency_data:
        return picture
    picture = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)


def _centred(ink: NDArray[np.float64]) -> NDArray[np.float64]:
    """Crop the ink, scale it to `DIGIT_SIDE` and put its centre of mass in the middle."""
    ink = ink / ink.max()
    rows, columns = np.nonzero(ink > 0.2)
    ink = ink[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    scale = DIGIT_SIDE / max(ink.shape)
    height, width = (max(1, round(side * scale)) for side in ink.shape)
    small = Image.fromarray(ink.astype(np.float32)).resize((width, height), Image.Resampling.BOX)
    digit = np.asarray(small, dtype=np.float64)
    digit = digit / digit.max()
    centre_row, centre_column = (
        float((digit.sum(axis=1 - axis) * np.arange(digit.shape[axis])).sum() / digit.sum()) for axis in (0, 1)
    )
    top = _offset(centre_row, height)
    left = _offset(centre_column, width)
    canvas = np.zeros((SIDE, SIDE))
    canvas[top : top + height, left : left + width] = digit
    return canvas


def _offset(centre: float, size: int) -> int:
    """Where the digit starts so that its centre of mass is the canvas's, kept on the canvas."""
    return min(max(round((SIDE - 1) / 2 - centre), 0), SIDE - size)
