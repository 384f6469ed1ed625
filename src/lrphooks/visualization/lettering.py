"""Letters in pictures: lines of text in the first font that has their glyphs, numbers as they are typeset."""

from __future__ import annotations

import importlib.util
import math
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lrphooks.visualization.colours import Colour

INK: Colour = (38, 38, 38)
GREY: Colour = (105, 105, 105)
ELLIPSIS = "…"
MINUS = "−"

# Where Pillow's own font lacks a glyph (it has ASCII and little more), these are looked for, in this order.
_FALLBACKS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "LiberationSans-Regular.ttf",
    "segoeui.ttf",
    "Arial Unicode.ttf",
    "Arial.ttf",
    "NotoSansCJK-Regular.ttc",
    "msyh.ttc",
    "PingFang.ttc",
)
_RAISED = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789−", strict=True))


@final
@dataclass(frozen=True)
class Lettering:
    """Text of one size, in pixels."""

    size: int

    @property
    def height(self) -> int:
        """The height of a line."""
        return math.ceil(1.25 * self.size)

    def width(self, text: str) -> float:
        """Return the width of a line."""
        return sum(run.width for run in self._runs(text))

    def draw(self, draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, fill: Colour = INK) -> None:
        """Draw a line; ``place`` is its left end, halfway up a capital letter."""
        x, y = place
        # The baseline lies on whole pixels, for sharp letters.
        baseline = round(y + 0.36 * self.size)
        for run in self._runs(text):
            if run.text == MINUS:
                _draw_minus(draw, x, baseline - run.rise, run, fill)
            else:
                draw.text((x, baseline - run.rise), run.text, fill=fill, font=run.font, anchor="ls")
            x += run.width

    def shortened(self, text: str, width: float) -> str:
        """Return the text, cut with an ellipsis where it is wider than ``width``."""
        if self.width(text) <= width:
            return text
        end = len(text)
        while end and self.width(text[:end].rstrip() + ELLIPSIS) > width:
            end -= 1
        return text[:end].rstrip() + ELLIPSIS

    def wrapped(self, text: str, width: float, lines: int) -> list[str]:
        """Break a text at spaces into at most so many lines no wider than ``width``; what is left over is cut."""
        result: list[str] = []
        for paragraph in text.splitlines():
            result.append("")
            for word in paragraph.split():
                longer = f"{result[-1]} {word}".lstrip()
                if result[-1] and self.width(longer) > width:
                    result.append(word)
                else:
                    result[-1] = longer
        if len(result) > lines:
            result[lines - 1 :] = [" ".join(result[lines - 1 :])]
        return [self.shortened(line, width) for line in result]

    def _runs(self, text: str) -> Iterator[_Run]:
        """Cut a line into pieces of one font each."""
        piece = _Run("", _font(0, self.size), 0)
        text = _drawable(text)
        whole = _font_with(text)
        for written in text:
            character = _RAISED.get(written, written)
            raised = character != written
            size, rise = (round(0.68 * self.size), round(0.38 * self.size)) if raised else (self.size, 0)
            font = _font(max(0, whole if whole >= 0 or character == MINUS else _font_with(character)), size)
            if (font, rise) == (piece.font, piece.rise) and MINUS not in (character, piece.text):
                piece = _Run(piece.text + character, font, rise)
            else:
                yield piece
                piece = _Run(character, font, rise)
        yield piece


@final
@dataclass(frozen=True)
class _Run:
    """A piece of a line in one font, ``rise`` pixels above the baseline."""

    text: str
    font: ImageFont.FreeTypeFont
    rise: int

    @property
    def width(self) -> float:
        """How far the line goes on behind it; a minus is as wide as a plus."""
        return self.font.getlength("+" if self.text == MINUS else self.text)


def number(value: float, *, signed: bool = True) -> str:
    """Return a number with three digits, a typographic minus and a power of ten where it needs one."""
    if value == 0.0:
        return "0"
    sign = MINUS if value < 0 else "+" if signed else ""
    mantissa, _, power = f"{abs(value):.2e}".partition("e")
    exponent = int(power)
    if -3 <= exponent <= 3:
        return sign + f"{float(f'{abs(value):.2e}'):.{max(0, 2 - exponent)}f}"
    raised = {plain: raised for raised, plain in _RAISED.items()}
    return f"{sign}{mantissa}·10" + "".join(raised[character] for character in str(exponent).replace("-", MINUS))


def _draw_minus(draw: ImageDraw.ImageDraw, x: float, baseline: int, run: _Run, fill: Colour) -> None:
    """Draw the horizontal bar of the font's plus: Pillow's own font has no minus."""
    mask, (left, top) = run.font.getmask2("+", mode="L", anchor="ls")
    plus = np.frombuffer(bytes(mask), dtype=np.uint8).reshape(mask.size[::-1])
    inked = plus.sum(axis=1, dtype=np.int64)
    (rows,) = np.nonzero(2 * inked > inked.max())
    bar = Image.fromarray(plus[rows[0] : rows[-1] + 1])
    draw.bitmap((round(x) + left, baseline + top + int(rows[0])), bar, fill=fill)


def _drawable(text: str) -> str:
    """Return a line of characters that some font has; others are written as their escapes, never as empty boxes."""
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return "".join(
        character
        if character in _RAISED or character == MINUS or (character.isprintable() and _font_with(character) >= 0)
        else character.encode("ascii", "backslashreplace").decode("ascii")
        if ord(character) > 127
        else repr(character)[1:-1]
        for character in text
    )


def _font_with(text: str) -> int:
    """Return the number of the first font that has all characters of a text; -1 if none has."""
    characters = {_RAISED.get(character, character) for character in text} - {MINUS}
    fonts = range(len(_font_files()))
    return next((index for index in fonts if all(_has(index, character) for character in characters)), -1)


@lru_cache(maxsize=4096)
def _has(index: int, character: str) -> bool:
    """Whether a font has a glyph: what no font has, a noncharacter, is drawn as its sign for missing glyphs."""
    font = _font(index, 16)
    missing, found = font.getmask("\U0010ffff"), font.getmask(character)
    return (found.size, bytes(found)) != (missing.size, bytes(missing))


@lru_cache(maxsize=64)
def _font(index: int, size: int) -> ImageFont.FreeTypeFont:
    file = _font_files()[index]
    font = ImageFont.truetype(file, size) if file else ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@lru_cache(maxsize=1)
def _font_files() -> tuple[str, ...]:
    """Return the fonts of this machine: Pillow's own (no file), and the fallbacks that are installed."""
    found = [_installed(name) for name in _FALLBACKS]
    matplotlib = importlib.util.find_spec("matplotlib")
    if matplotlib is not None and matplotlib.origin is not None:
        bundled = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        found.insert(1, str(bundled) if bundled.is_file() else "")
    return ("", *filter(None, found))


def _installed(name: str) -> str:
    """Return where a font is, as Pillow finds it on this system; nothing if it is not there."""
    try:
        return str(ImageFont.truetype(name, 16).path)
    except OSError:
        return ""
