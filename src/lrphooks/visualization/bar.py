"""The colour bar as Pillow draws it: which relevance a colour stands for."""

from __future__ import annotations

import math

import numpy as np
from PIL import Image, ImageDraw

from lrphooks.visualization.colours import Colour
from lrphooks.visualization.lettering import GREY, INK, Lettering
from lrphooks.visualization.scale import Paint

NUMBERS = Lettering(15)
FRAME: Colour = (196, 196, 196)
_LEFT, _MIDDLE, _RIGHT, _TICK, _POINT = 14, 21, 28, 4, 10


def bar(paint: Paint, height: int) -> Image.Image:
    """Return the colours from the highest value at the top to the lowest, with their numbers, behind a gap.

    An end is pointed if values lie beyond it. The height is at least what keeps the numbers apart.
    """
    height = max(height, len(paint.numbers) * NUMBERS.height)
    text = _RIGHT + _TICK + 4
    canvas = Image.new("RGB", (text + math.ceil(max(map(NUMBERS.width, paint.numbers.values()))), height), "white")
    draw = ImageDraw.Draw(canvas)
    low, high = paint.beyond
    top, bottom = _POINT * high, height - 1 - _POINT * low
    colours = paint.colours(np.linspace(1.0, paint.lowest, bottom - top + 1))
    canvas.paste(Image.fromarray(np.repeat(colours[:, None], _RIGHT - _LEFT, axis=1)), (_LEFT, top))
    for end, tip, colour in ((top, 0, colours[0]), (bottom, height - 1, colours[-1])):
        if end != tip:
            corners = [(_LEFT - 1, end), (_MIDDLE - 0.5, tip), (_RIGHT, end)]
            draw.polygon(corners, fill=tuple(colour.tolist()))
            draw.line(corners, fill=FRAME)
    draw.line((_LEFT - 1, top, _LEFT - 1, bottom), fill=FRAME)
    draw.line((_RIGHT, top, _RIGHT, bottom), fill=FRAME)
    for share, number in paint.numbers.items():
        y = top + round((1.0 - share) / (1.0 - paint.lowest) * (bottom - top))
        draw.line((_RIGHT + 1, y, _RIGHT + _TICK, y), fill=GREY)
        # The outer numbers stay within the ends of the bar.
        half = NUMBERS.size // 2
        NUMBERS.draw(draw, (text, min(max(y, half - 2), height - half + 1)), number, INK)
    return canvas
