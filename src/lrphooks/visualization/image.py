"""Relevance of images as pictures: on its own, or over the picture that it explains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from PIL import Image

from lrphooks.visualization.arrays import Floats, Picture, Relevance, batch_floats, resized, to_picture
from lrphooks.visualization.scale import POOLINGS, Paint, Style, pool

SIDE = 240
# A picture under an overlay is drawn in the greys from here to white, so that dark colours can be seen on it.
_DARKEST = 72
_LUMA = (0.299, 0.587, 0.114)


def heatmap(
    relevance: Relevance,
    *,
    pooling: str = "sum",
    percentile: float = 100.0,
    limit: float | None = None,
    colours: Any = None,
    side: int = SIDE,
) -> Image.Image:
    """Draw relevance as a picture: red speaks for the explained output, blue against it, white is nothing.

    Parameters
    ----------
    relevance
        The relevance of one image, (C, H, W), (1, C, H, W) or (H, W); a tensor or an array.
    side
        A smaller picture is enlarged by a whole factor, without smoothing, until its longer side is this long.
    pooling, percentile, limit, colours
        See :class:`lrphooks.visualization.scale.Style`.

    Raises
    ------
    ValueError
        If the relevance is that of no image or not finite, or an argument is out of range.

    """
    style = Style(pooling, percentile, limit, colours)
    pooled = pool(relevance, pooling)
    return enlarged(style.paint([pooled]).image(pooled), side)


def heatmaps(
    relevance: Relevance,
    *,
    shared_scale: bool = False,
    pooling: str = "sum",
    percentile: float = 100.0,
    limit: float | None = None,
    colours: Any = None,
    side: int = SIDE,
) -> list[Image.Image]:
    """Draw the relevance of each image of a batch, (N, C, H, W): as :func:`heatmap` does.

    Parameters
    ----------
    shared_scale
        Whether all have one scale, so that their colours can be compared; else each has its own.
    relevance, pooling, percentile, limit, colours, side
        As for :func:`heatmap`.

    """
    style = Style(pooling, percentile, limit, colours)
    pooled = [POOLINGS[pooling](values, 0) for values in batch_floats(relevance)]
    shared = style.paint(pooled) if shared_scale else None
    return [enlarged((shared or style.paint([part])).image(part), side) for part in pooled]


def overlay(
    picture: Picture,
    relevance: Relevance,
    *,
    box: tuple[int, int, int, int] | None = None,
    saturation: float = 0.0,
    pooling: str = "sum",
    percentile: float = 100.0,
    limit: float | None = None,
    colours: Any = None,
    side: int = SIDE,
) -> Image.Image:
    """Draw relevance over the picture that it explains: opaque where there is much, transparent where there is none.

    Formula, for a pixel with relevance R, of the share s = R / limit, within [-1, 1]: (1 - |s|) picture + |s| colour,
    with the colour of the share (s + sign s) / 2. On white it is about the colour that a heatmap has.

    Parameters
    ----------
    picture
        What the model saw, or a larger original of it, over which the relevance is spread smoothly. PIL, or see
        :func:`lrphooks.visualization.to_picture`.
    relevance
        The relevance of one image, (C, H, W), (1, C, H, W) or (H, W).
    box
        The part of the picture that the model saw, (left, top, right, bottom) in pixels, if it was cropped.
    saturation
        How much of its colours the picture keeps, 0 (grey, the default) to 1.
    pooling, percentile, limit, colours, side
        As for :func:`heatmap`.

    Raises
    ------
    ValueError
        If the picture, or its box, has not the shape of the relevance; or as :func:`heatmap`.

    """
    style = Style(pooling, percentile, limit, colours)
    pooled = pool(relevance, pooling)
    return enlarged(laid_over(to_picture(picture), pooled, style.paint([pooled]), box, saturation), side)


def laid_over(
    picture: Image.Image,
    pooled: Floats,
    paint: Paint,
    box: tuple[int, int, int, int] | None = None,
    saturation: float = 0.0,
) -> Image.Image:
    """Return the picture under the paint of (H, W) relevance."""
    if not 0.0 <= saturation <= 1.0:
        raise ValueError(f"saturation must be from 0 (grey) to 1 (the picture's own colours), not {saturation}")
    box = (0, 0, *picture.size) if box is None else box
    left, top, right, bottom = box
    if not (0 <= left < right <= picture.width and 0 <= top < bottom <= picture.height):
        raise ValueError(
            f"box {box} is no part of the picture of {picture.width} x {picture.height} pixels: give (left, top, "
            "right, bottom) in its pixels."
        )
    size = (right - left, bottom - top)
    _check_shape(size, pooled)
    ground = np.asarray(picture, dtype=np.float64)
    grey = (ground @ np.asarray(_LUMA))[..., None]
    ground = _DARKEST + (255 - _DARKEST) / 255 * (grey + saturation * (ground - grey))
    shares = paint.shares(resized(pooled, size, Image.Resampling.BILINEAR))
    part = ground[top:bottom, left:right]
    part += np.abs(shares)[..., None] * (paint.colours((shares + np.sign(shares)) / 2) - part)
    return Image.fromarray(ground.round().astype(np.uint8))


def enlarged(picture: Image.Image, side: int) -> Image.Image:
    """Enlarge a picture by a whole factor, without smoothing, until its longer side is so long."""
    if side < 1:
        raise ValueError(f"side must be at least 1 pixel, not {side}")
    factor = max(1, math.ceil(side / max(picture.size)))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def _check_shape(size: tuple[int, int], pooled: Floats) -> None:
    """Refuse a picture that cannot be what the model saw."""
    (width, height), (rows, columns) = size, pooled.shape
    across, down = width / columns, height / rows
    # Resizing to whole pixels may bend the shape by up to one pixel of the model's input.
    if across < 1 or down < 1 or abs(across - down) * max(rows, columns) > max(across, down):
        raise ValueError(
            f"the picture is {width} x {height} pixels and the relevance {columns} x {rows}. Give the picture that the "
            "model saw, or a larger one of the same shape; if the model saw a part of it, give that part as "
            "box=(left, top, right, bottom)."
        )
