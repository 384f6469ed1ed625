"""Relevance as a picture: red speaks for the explained output, blue against it, white is nothing."""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

Relevance: TypeAlias = "Tensor | ArrayLike"

# Control points of the colour map at equal steps from -1 to 1; it is linear in between.
COLOURS = np.array(
    [
        (16, 42, 120),
        (60, 122, 216),
        (170, 205, 247),
        (255, 255, 255),
        (250, 196, 170),
        (226, 84, 56),
        (122, 8, 24),
    ],
    dtype=np.float64,
)
INK = (40, 40, 40)
LEAST_SIDE = 240
MARGIN = 18
TEXT_SIZE = 18
TITLE_SIZE = 22


def heatmap(relevance: Relevance, *, percentile: float = 100.0, least_side: int = LEAST_SIDE) -> Image.Image:
    """Draw relevance as a picture, with zero in white.

    Parameters
    ----------
    relevance : Tensor or array
        The relevance of one image, (C, H, W) or (H, W). Channels are summed.
    percentile : float
        The full colour stands for this percentile of the non-zero absolute values (their maximum by
        default), on both sides of zero alike; what lies beyond gets the full colour too.
    least_side : int
        A smaller picture is enlarged by a whole factor, without smoothing, until it is this large.

    """
    pooled = pool(relevance)
    return _enlarge(_paint(pooled, scale_of(pooled, percentile)), least_side)


def side_by_side(
    picture: Image.Image,
    relevance: Relevance,
    *,
    title: str = "",
    captions: tuple[str, str] = ("input", "relevance"),
    percentile: float = 100.0,
) -> Image.Image:
    """Draw the picture, its heatmap and a colour bar in one image.

    ``picture`` must be what the model saw, pixel by pixel: as large as the relevance. The numbers
    at the colour bar are relevance per pixel, summed over the channels.
    """
    pooled = pool(relevance)
    height, width = pooled.shape
    if picture.size != (width, height):
        raise ValueError(
            f"the picture is {picture.width} x {picture.height} pixels and the relevance "
            f"{width} x {height}. Draw the picture that the model saw: cropped and resized "
            "like its input."
        )
    scale = scale_of(pooled, percentile)
    left = _enlarge(picture.convert("RGB"), LEAST_SIDE)
    right = _enlarge(_paint(pooled, scale), LEAST_SIDE)
    font, title_font = ImageFont.load_default(TEXT_SIZE), ImageFont.load_default(TITLE_SIZE)
    numbers = _bar_numbers(scale, clipped=bool(np.abs(pooled).max() > scale))
    number_width = math.ceil(max(font.getlength(number) for number in numbers))

    top = MARGIN + (TITLE_SIZE + MARGIN if title else 0)
    right_x = 2 * MARGIN + left.width
    bar_x = right_x + right.width + MARGIN
    natural = bar_x + TEXT_SIZE + 8 + number_width + MARGIN
    titled = math.ceil(title_font.getlength(title)) + 2 * MARGIN
    bottom = top + left.height + 8
    canvas = Image.new("RGB", (max(natural, titled), bottom + TEXT_SIZE + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, MARGIN - 4), title, fill=INK, font=title_font)
    for panel, x, caption in ((left, MARGIN, captions[0]), (right, right_x, captions[1])):
        canvas.paste(panel, (x, top))
        _frame(draw, x, top, panel.size)
        draw.text((x, bottom), caption, fill=INK, font=font)
    bar = _bar(left.height)
    canvas.paste(bar, (bar_x, top))
    _frame(draw, bar_x, top, bar.size)
    for number, share in zip(numbers, (0.0, 0.5, 1.0), strict=True):
        # Keep the outer numbers inside the bar's ends, so that they stand beside it.
        y = top + round(share * (left.height - 1))
        anchor = {0.0: "la", 0.5: "lm", 1.0: "ld"}[share]
        draw.text((bar_x + TEXT_SIZE + 8, y), number, fill=INK, font=font, anchor=anchor)
    return canvas


def pool(relevance: Relevance) -> NDArray[np.float64]:
    """Sum relevance over its channels: (C, H, W) or (H, W) becomes (H, W)."""
    if isinstance(relevance, Tensor):
        values = relevance.detach().cpu().double().numpy()
    else:
        values = np.asarray(relevance, dtype=np.float64)
    if values.ndim not in (2, 3) or values.size == 0:
        hint = " Pass one image of the batch: relevance[0]." if values.ndim == 4 else ""
        raise ValueError(
            f"relevance of shape {tuple(values.shape)} is no image: "
            f"a heatmap needs (C, H, W) or (H, W), none of them 0.{hint}"
        )
    broken = int(np.count_nonzero(~np.isfinite(values)))
    if broken:
        raise ValueError(
            f"{broken} of {values.size} relevance values are NaN or infinite. The usual cause is an "
            "input or a model output that is not finite, or float16 overflow: check the input, and "
            "explain in float32."
        )
    pooled: NDArray[np.float64] = values.sum(axis=0) if values.ndim == 3 else values
    return pooled


def scale_of(pooled: NDArray[np.float64], percentile: float) -> float:
    """Return the absolute value that gets the full colour; 0 where all relevance is 0."""
    if not 0.0 < percentile <= 100.0:
        raise ValueError(f"percentile must be above 0 and at most 100, not {percentile}")
    # Zeros are left out: on a mostly empty picture they would make any percentile 0.
    sizes = np.abs(pooled[pooled != 0.0])
    return float(np.percentile(sizes, percentile)) if sizes.size else 0.0


def _paint(pooled: NDArray[np.float64], scale: float) -> Image.Image:
    """Colour values from -scale to scale; a scale of 0 (no relevance at all) paints white."""
    shares = np.clip(pooled / scale, -1.0, 1.0) if scale > 0.0 else np.zeros_like(pooled)
    stops = np.linspace(-1.0, 1.0, len(COLOURS))
    channels = [np.interp(shares, stops, COLOURS[:, channel]) for channel in range(3)]
    return Image.fromarray(np.stack(channels, axis=-1).round().astype(np.uint8))


def _bar(height: int) -> Image.Image:
    """A colour bar from +1 at the top to -1 at the bottom."""
    return _paint(np.repeat(np.linspace(1.0, -1.0, height)[:, None], TEXT_SIZE, axis=1), 1.0)


def _bar_numbers(scale: float, *, clipped: bool) -> tuple[str, str, str]:
    beyond = " and more" if clipped else ""
    return f"+{scale:.3g}{beyond}", "0", f"-{scale:.3g}{beyond}"


def _enlarge(picture: Image.Image, least_side: int) -> Image.Image:
    factor = max(1, math.ceil(least_side / min(picture.size)))
    size = (picture.width * factor, picture.height * factor)
    return picture.resize(size, Image.Resampling.NEAREST)


def _frame(draw: ImageDraw.ImageDraw, x: int, y: int, size: tuple[int, int]) -> None:
    """Draw a thin line around a panel: a white heatmap has no edge of its own."""
    draw.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=(190, 190, 190))
