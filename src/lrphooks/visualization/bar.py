"""The colour bar: which relevance a colour stands for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np
from PIL import Image, ImageDraw

from lrphooks.visualization.lettering import GREY, INK, Lettering, number
from lrphooks.visualization.scale import Paint

NUMBERS = Lettering(15)
_THICKNESS, _GAP, _TICK = 14, 14, 4
_BEYOND = "and more"


@final
@dataclass(frozen=True)
class Bar:
    """The colours of a paint from its highest value at the top to its lowest, with numbers."""

    paint: Paint

    @property
    def numbers(self) -> dict[float, str]:
        """What stands beside the bar, by the share of the limit."""
        limit, signed = self.paint.limit, self.paint.colours.diverging
        shares = (1.0, 0.0, -1.0) if signed else (1.0, 0.0)
        return {share: number(share * limit, signed=signed) for share in shares if limit > 0.0 or share == 0.0}

    @property
    def beyond(self) -> dict[float, bool]:
        """Whether there were values beyond the upper and the lower end."""
        least, greatest = self.paint.seen
        return {1.0: greatest > self.paint.limit, -1.0: least < -self.paint.limit}

    @property
    def width(self) -> int:
        """The width with the gap before it and the numbers behind it."""
        texts = [*self.numbers.values(), *([_BEYOND] if any(self.beyond.values()) else [])]
        return _GAP + _THICKNESS + _TICK + 4 + math.ceil(max(NUMBERS.width(text) for text in texts))

    @property
    def least_height(self) -> int:
        """The height that keeps the numbers apart."""
        return (len(self.numbers) + sum(self.beyond.values())) * NUMBERS.height

    def draw(self, canvas: Image.Image, corner: tuple[int, int], height: int) -> None:
        """Draw the bar, so high, with its gap's upper left corner there."""
        x, y = corner[0] + _GAP, corner[1]
        lowest = -1.0 if self.paint.colours.diverging else 0.0
        shares = np.repeat(np.linspace(1.0, lowest, height)[:, None], _THICKNESS, axis=1)
        canvas.paste(Image.fromarray(self.paint.colours(shares)), (x, y))
        draw = ImageDraw.Draw(canvas)
        draw.rectangle((x - 1, y - 1, x + _THICKNESS, y + height), outline=(196, 196, 196))
        right = x + _THICKNESS
        half = NUMBERS.size // 2
        for share, text in self.numbers.items():
            place = y + round((1.0 - share) / (1.0 - lowest) * (height - 1))
            draw.line((right, place, right + _TICK, place), fill=GREY)
            # The outer numbers stay within the ends of the bar.
            place = min(max(place, y + half - 2), y + height - half + 1)
            NUMBERS.draw(draw, (right + _TICK + 4, place), text, INK)
            if self.beyond.get(share, False):
                NUMBERS.draw(draw, (right + _TICK + 4, place + share * NUMBERS.height), _BEYOND, GREY)
