"""What may be drawn: tensors and arrays as float64 arrays, pictures of any form as RGB."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

Relevance: TypeAlias = "Tensor | ArrayLike"
Picture: TypeAlias = "Image.Image | Tensor | NDArray[np.generic]"
Floats: TypeAlias = "NDArray[np.float64]"

_CHANNELS = (1, 3, 4)


def floats(relevance: Relevance, what: str = "relevance") -> Floats:
    """Return relevance, or something else to draw, as an array of float64 on the CPU; NaN and infinity are refused."""
    if isinstance(relevance, Tensor):
        values = relevance.detach().cpu().double().numpy()
    else:
        values = np.asarray(relevance, dtype=np.float64)
    broken = int(np.count_nonzero(~np.isfinite(values)))
    if broken:
        raise ValueError(
            f"{broken} of {values.size} {what} values are NaN or infinite. The usual cause is an "
            "input or a model output that is not finite, or float16 overflow: check the input, and "
            "explain in float32."
        )
    return values


def image_floats(relevance: Relevance) -> Floats:
    """Return the relevance of one image as (C, H, W); a batch of one and (H, W) are taken too."""
    values = floats(relevance)
    if values.ndim == 4 and len(values) == 1:
        values = values[0]
    if values.ndim not in (2, 3) or values.size == 0:
        hint = " Draw a batch with grid(relevance), or one image of it: relevance[0]." if values.ndim == 4 else ""
        raise ValueError(
            f"relevance of shape {tuple(values.shape)} is no image: "
            f"a heatmap needs (C, H, W) or (H, W), none of them 0.{hint}"
        )
    if values.ndim == 3 and values.shape[2] in _CHANNELS and min(values.shape[:2]) > _CHANNELS[-1]:
        raise ValueError(
            f"relevance of shape {tuple(values.shape)} seems to have its channels last, as Keras has them. Put them "
            "first: relevance.movedim(-1, -3) of a tensor, numpy.moveaxis(relevance, -1, -3) of an array."
        )
    return values if values.ndim == 3 else values[None]


def batch_floats(relevance: Relevance) -> list[Floats]:
    """Return the relevance of each image of a batch, (N, C, H, W), as (C, H, W)."""
    values = floats(relevance)
    if values.ndim != 4 or values.size == 0:
        raise ValueError(
            f"relevance of shape {tuple(values.shape)} is no batch of images: it needs (N, C, H, W), none of them 0. "
            "Draw one image with heatmap."
        )
    return [image_floats(image) for image in values]


def to_picture(x: Picture, *, mean: float | Sequence[float] = 0.0, std: float | Sequence[float] = 1.0) -> Image.Image:
    """Make what a model saw into a picture: x · std + mean, where 0 is black and 1 is white.

    Parameters
    ----------
    x
        A PIL picture (transparency becomes white); a tensor or an array (C, H, W), (1, C, H, W) or (H, W), or an
        array (H, W, C), of 1, 3 or 4 channels; of bytes, or of floats.
    mean, std
        What the input was normalised with, numbers or one a channel.

    Raises
    ------
    ValueError
        If the shape is that of no picture, or values lie outside of [0, 1] by more than rounding: then the input was
        normalised in another way.

    """
    if isinstance(x, Image.Image):
        return _rgb(x)
    values = x.detach().cpu() if isinstance(x, Tensor) else np.asarray(x)
    pixels = np.asarray(values.float().numpy() if isinstance(values, Tensor) and values.is_floating_point() else values)
    shape = tuple(pixels.shape)
    if pixels.ndim == 4 and len(pixels) == 1:
        pixels = pixels[0]
    if pixels.ndim == 2:
        pixels = pixels[None]
    elif pixels.ndim == 3 and pixels.shape[0] not in _CHANNELS and pixels.shape[2] in _CHANNELS:
        pixels = np.moveaxis(pixels, 2, 0)
    if pixels.ndim != 3 or pixels.shape[0] not in _CHANNELS or pixels.size == 0:
        raise ValueError(f"{shape} is no shape of a picture: it needs (C, H, W), (H, W) or (H, W, C), C of 1, 3 or 4.")
    if pixels.dtype != np.uint8:
        scale, shift = (np.reshape(np.asarray(number, dtype=np.float64), (-1, 1, 1)) for number in (std, mean))
        shares = pixels.astype(np.float64) * scale + shift
        # 0.002 is half a step of 8 bits. Negated, so that NaN is refused too.
        if not (shares.min() >= -0.002 and shares.max() <= 1.002):
            raise ValueError(
                f"the picture's values span {shares.min():.4g} to {shares.max():.4g}, but black is 0 and white is 1. "
                "The usual cause is an input that is normalised: give its mean and std, to_picture(x, mean=..., "
                "std=...). Pictures of 0 to 255 are arrays of bytes (uint8)."
            )
        pixels = (shares.clip(0.0, 1.0) * 255.0).round().astype(np.uint8)
    pixels = np.moveaxis(pixels, 0, 2)
    return _rgb(Image.fromarray(np.ascontiguousarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)))


def resized(values: Floats, size: tuple[int, int], resample: Image.Resampling) -> Floats:
    """Return (H, W) values at another size, given as (width, height)."""
    if values.shape == size[::-1]:
        return values
    # Pillow resamples in float32: keep the values near 1, whatever their unit is.
    unit = float(np.abs(values).max()) or 1.0
    image = Image.fromarray((values / unit).astype(np.float32)).resize(size, resample)
    return np.asarray(image, dtype=np.float64) * unit


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith(("I", "F")):
        # Pillow would clip such pixels to 255 instead of scaling them.
        raise ValueError(
            f"the picture has more than 8 bits per pixel (mode {picture.mode}): make it one of 8 bits first, or give "
            "an array of floats from 0 to 1."
        )
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
