"""A picture beside its relevance, with a line of text and a colour bar, as Pillow draws them by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageDraw

from lrphooks.visualization.arrays import Floats, Picture, Relevance, image_floats, resized, to_picture
from lrphooks.visualization.bar import FRAME, bar
from lrphooks.visualization.image import SIDE
from lrphooks.visualization.lettering import GREY, INK, Lettering, wrapped
from lrphooks.visualization.scale import Paint, Style, pool

MARGIN, GAP = 20, 16
TITLE, CAPTION = Lettering(22), Lettering(16)


def side_by_side(
    picture: Picture,
    relevance: Relevance,
    *,
    title: str = "",
    captions: tuple[str, str] = ("input", "relevance"),
    pooling: str = "sum",
    percentile: float = 100.0,
    limit: float | None = None,
    colours: Any = None,
    side: int = SIDE,
) -> Image.Image:
    """Draw the picture, its heatmap and a colour bar in one image.

    Parameters
    ----------
    picture
        What the model saw, as PIL, or see :func:`lrphooks.visualization.to_picture`.
    relevance
        Its relevance, (C, H, W), (1, C, H, W) or (H, W). The numbers at the colour bar are relevance per pixel.
    title, captions
        What stands above all, and above each of the two.
    side
        The longer side of both is at least so long, in pixels, and at most twice that: small ones are enlarged by a
        whole factor without smoothing, large ones are reduced smoothly.
    pooling, percentile, limit, colours
        As for :func:`lrphooks.visualization.heatmap`.

    Raises
    ------
    ValueError
        If the picture is not as large as the relevance; or as :func:`lrphooks.visualization.heatmap`.

    """
    shown, values = to_picture(picture), image_floats(relevance)
    height, width = values.shape[1:]
    if shown.size != (width, height):
        raise ValueError(
            f"the picture is {shown.width} x {shown.height} pixels and the relevance "
            f"{width} x {height}. Draw the picture that the model saw: cropped and resized "
            "like its input."
        )
    style = Style(pooling, percentile, limit, colours)
    pooled = pool(values, pooling)
    paint = style.paint([pooled])
    longest = panel_side(max(shown.size), side)
    return in_a_row([drawn_at(one, longest, paint) for one in (shown, pooled)], captions, paint, title)


def in_a_row(panels: Sequence[Image.Image], captions: Sequence[str], paint: Paint, title: str = "") -> Image.Image:
    """Draw panels beside each other, each under its caption, with a colour bar behind them and a title above all."""
    height = max(one.height for one in panels)
    scale = bar(paint, height)
    inner = sum(one.width + GAP for one in panels) - GAP + scale.width
    heading = wrapped(title, max(inner, 2 * SIDE), 3, TITLE.width)
    lines = [wrapped(text, one.width, 2, CAPTION.width) for text, one in zip(captions, panels, strict=True)]
    top = MARGIN + len(heading) * TITLE.height + (GAP // 2 if heading else 0)
    bottom = top + max(map(len, lines)) * CAPTION.height + (6 if any(lines) else 0)
    width = max([inner, *(math.ceil(TITLE.width(line)) for line in heading)]) + 2 * MARGIN
    canvas = Image.new("RGB", (width, bottom + max(height, scale.height) + MARGIN), "white")
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(heading):
        TITLE.draw(draw, (MARGIN, MARGIN + (index + 0.42) * TITLE.height), line, INK)
    canvas.paste(scale, (MARGIN + inner - scale.width, bottom))
    x = MARGIN
    for one, texts in zip(panels, lines, strict=True):
        for index, line in enumerate(texts):
            CAPTION.draw(draw, (x, bottom - 6 + (index - len(texts) + 0.5) * CAPTION.height), line, GREY)
        draw.rectangle((x - 1, bottom - 1, x + one.width, bottom + one.height), outline=FRAME)
        canvas.paste(one, (x, bottom))
        x += one.width + GAP
    return canvas


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return pictures one below the other."""
    canvas = Image.new("RGB", (max(one.width for one in pictures), sum(one.height for one in pictures)), "white")
    y = 0
    for one in pictures:
        canvas.paste(one, (0, y))
        y += one.height
    return canvas


def panel_side(longest: int, side: int) -> int:
    """Return the length that a side is drawn with: a multiple of its own, at least ``side`` and at most twice that."""
    if side < 1:
        raise ValueError(f"side must be at least 1 pixel, not {side}")
    return min(longest * -(-side // longest), 2 * side)


def drawn_at(shown: Image.Image | Floats, longest: int, paint: Paint | None) -> Image.Image:
    """Return a picture, or (H, W) relevance in its colours, with its longer side of so many pixels."""
    size = shown.size if isinstance(shown, Image.Image) else shown.shape[::-1]
    share = longest / max(size)
    goal = max(1, round(size[0] * share)), max(1, round(size[1] * share))
    # Enlarged pixels keep their edges; reduced ones are averaged.
    smooth = share < 2.0 and share != 1.0
    if isinstance(shown, Image.Image):
        return shown.resize(goal, Image.Resampling.LANCZOS if smooth else Image.Resampling.NEAREST)
    assert paint is not None
    return paint.image(resized(shown, goal, Image.Resampling.BOX if smooth else Image.Resampling.NEAREST))
