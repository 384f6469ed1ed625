"""Letters: numbers as they are typeset, lines that fit, and fonts of Pillow that have the letters."""

from __future__ import annotations

import importlib.util
import math
import re
import textwrap
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import final

from PIL import ImageDraw, ImageFont

from lrphooks.visualization.colours import Colour

INK: Colour = (38, 38, 38)
GREY: Colour = (105, 105, 105)
MINUS = "−"

_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_RAISE = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
# Where Pillow's own font lacks a glyph (it has ASCII and little more), these are looked for, in this order.
_FALLBACKS = (
    *("DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "segoeui.ttf", "Arial Unicode.ttf"),
    *("Arial.ttf", "NotoSansCJK-Regular.ttc", "msyh.ttc", "PingFang.ttc"),
)


@final
@dataclass(frozen=True)
class Lettering:
    """Text of one size, in pixels.

    own: whether Pillow's own font, which comes first, may be taken: it is no file that others could read.
    """

    size: int
    own: bool = True

    @property
    def height(self) -> int:
        """The height of a line."""
        return math.ceil(1.25 * self.size)

    def width(self, text: str) -> float:
        """Return the width of a line."""
        return sum(font.getlength(piece) for piece, font, _ in self._runs(text))

    def draw(self, draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, fill: Colour = INK) -> None:
        """Draw a line; ``place`` is its left end, halfway up a capital letter."""
        x, y = place
        # The baseline lies on whole pixels, for sharp letters.
        baseline = round(y + 0.36 * self.size)
        for piece, font, rise in self._runs(text):
            draw.text((x, baseline - rise), piece, fill=fill, font=font, anchor="ls")
            x += font.getlength(piece)

    def font(self, text: str) -> tuple[str, str]:
        """Return the file of the first font that has the most of a line, and the line as it can be drawn in it."""
        return _best(text, own=self.own)

    def _runs(self, text: str) -> Iterator[tuple[str, ImageFont.FreeTypeFont, int]]:
        """Cut a line into pieces with their rise: Pillow's own font has no exponents, and as a minus an underscore."""
        file, line = self.font(text)
        for piece in re.split(f"({MINUS}|[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+)", line):
            raised = piece.translate(_RAISED)
            if piece == MINUS:
                yield "_", _font(file, self.size), round(0.36 * self.size)
            elif raised != piece:
                yield raised, _font(file, round(0.68 * self.size)), round(0.38 * self.size)
            else:
                yield piece, _font(file, self.size), 0


def number(value: float, *, signed: bool = True) -> str:
    """Return a number with three digits, a typographic minus and a power of ten where it needs one."""
    if value == 0.0:
        return "0"
    sign = MINUS if value < 0 else "+" if signed else ""
    mantissa, _, power = f"{abs(value):.2e}".partition("e")
    exponent = int(power)
    if -3 <= exponent <= 3:
        return sign + f"{float(f'{abs(value):.2e}'):.{max(0, 2 - exponent)}f}"
    return f"{sign}{mantissa}·10{str(exponent).translate(_RAISE)}"


def wrapped(text: str, width: float, lines: int, measure: Callable[[str], float]) -> list[str]:
    """Break a text into at most so many lines no wider than ``width``; what is left over is cut."""
    letters = max(1, min(len(text), int(width)))
    while True:
        broken = [line for paragraph in text.splitlines() for line in textwrap.wrap(paragraph, letters)]
        if len(broken) > lines:
            broken[lines - 1 :] = [" ".join(broken[lines - 1 :])[: letters - 1].rstrip() + "…"]
        if letters == 1 or all(measure(line) <= width for line in broken):
            return broken
        letters = letters * 19 // 20


@lru_cache(maxsize=4096)
def _best(text: str, *, own: bool) -> tuple[str, str]:
    text = " ".join(unicodedata.normalize("NFC", text).split())
    files = _font_files() if own else _font_files()[1:] or ("",)
    file = max(files, key=lambda file: sum(_has(file, character) for character in set(text)))
    # What no font has is written as its escape, never as an empty box.
    return file, "".join(
        character
        if character.isprintable() and _has(file, character)
        else character.encode("ascii", "backslashreplace").decode("ascii")
        if ord(character) > 127
        else repr(character)[1:-1]
        for character in text
    )


@lru_cache(maxsize=4096)
def _has(file: str, character: str) -> bool:
    """Whether a font has a glyph: what no font has, a noncharacter, is drawn as its sign for missing glyphs."""
    font = _font(file, 16)
    shown = character.replace(MINUS, "_").translate(_RAISED)
    missing, found = font.getmask("\U0010ffff"), font.getmask(shown)
    return (found.size, bytes(found)) != (missing.size, bytes(missing))


@lru_cache(maxsize=64)
def _font(file: str, size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.truetype(file, size) if file else ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@lru_cache(maxsize=1)
def _font_files() -> tuple[str, ...]:
    """Return the fonts of this machine: Pillow's own (no file), matplotlib's, and the fallbacks that are there."""
    found = []
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        found.append(str(Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"))
    return "", *filter(None, map(_installed, (*found, *_FALLBACKS)))


def _installed(file: str) -> str:
    """Return where a font is, as Pillow finds it on this system; nothing if it is not there."""
    try:
        return str(ImageFont.truetype(file, 16).path)
    except OSError:
        return ""
