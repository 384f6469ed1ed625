"""Relevance of tokens: a text whose words are coloured, for web pages and terminals."""

from __future__ import annotations

import html
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from PIL import Image, ImageDraw, ImageOps

from lrphooks.visualization.arrays import Floats, Relevance, floats
from lrphooks.visualization.colours import Colour
from lrphooks.visualization.lettering import Lettering, number, wrapped
from lrphooks.visualization.panels import in_a_row
from lrphooks.visualization.scale import POOLINGS, Paint, Style
from lrphooks.visualization.tokens import Join, Piece, pieces

LETTERS = Lettering(18)
_RESET = "\x1b[0m"
_NEWLINE = "↵"
# On a terminal, what has less than this share of the full colour keeps the terminal's own colours.
_LEAST_SHARE = 0.05
_STEPS = (0, 95, 135, 175, 215, 255)
_SIXTEEN: tuple[Colour, ...] = (
    *((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128), (0, 128, 128), (192, 192, 192)),
    *((128, 128, 128), (255, 0, 0), (0, 255, 0), (255, 255, 0), (0, 0, 255), (255, 0, 255), (0, 255, 255)),
    (255, 255, 255),
)
# The fixed part of a terminal's 256 colours, numbers 16 to 255: a cube, and greys.
_CUBE: tuple[Colour, ...] = (
    *((red, green, blue) for red in _STEPS for green in _STEPS for blue in _STEPS),
    *((grey, grey, grey) for grey in range(8, 248, 10)),
)


@final
@dataclass(frozen=True)
class Text:
    """A text with the relevance of its pieces; a notebook shows it in colour.

    pieces: tokens with what they add to the text.
    relevance: one value for each piece.
    paint: the colours of the values.
    """

    pieces: tuple[Piece, ...]
    relevance: tuple[float, ...]
    paint: Paint

    def __str__(self) -> str:
        """The text without colours."""
        return "".join(piece.text for piece in self.pieces)

    def html(self, *, legend: bool = True) -> str:
        """Return the text as HTML of its own colours, for pages dark or light: each piece tells its relevance.

        Parameters
        ----------
        legend
            Whether to say below which values the colours stand for.

        """
        ground = self.paint.colours.zero
        spans = "".join(self._span(piece, value) for piece, value in zip(self.pieces, self.relevance, strict=True))
        style = (
            f"background:{_hex(ground)};color:{_hex(ink_on(ground))};padding:0.6em 0.8em;border-radius:0.4em;"
            "line-height:1.7;font-family:system-ui,sans-serif"
        )
        below = self._legend() if legend and self.paint.limit > 0.0 else ""
        return f'<div style="{style}"><div style="white-space:pre-wrap">{spans}</div>{below}</div>'

    def ansi(self, colours: int | None = None) -> str:
        """Return the text with the escape codes of a terminal.

        Parameters
        ----------
        colours
            How many colours the terminal has: 2**24, 256, 16, or 0 for no codes at all; None asks the environment, see
            :func:`terminal_colours`.

        Raises
        ------
        ValueError
            If there is no such number of colours.

        """
        count = terminal_colours(os.environ) if colours is None else colours
        if count not in (2**24, 256, 16, 0):
            raise ValueError(f"colours={colours}: terminals have 2**24, 256, 16 or 0 colours.")
        return "".join(
            self._coded(piece, value, count) for piece, value in zip(self.pieces, self.relevance, strict=True)
        )

    def image(self, *, width: int = 640) -> Image.Image:
        """Return the text as a picture with a colour bar, its lines broken between words at this width in pixels."""
        ground = self.paint.colours.zero
        placed, height = self._placed(width)
        card = Image.new("RGB", (width, height), ground)
        draw = ImageDraw.Draw(card)
        for (x, y), text, value in placed:
            colour = _colour(self.paint, value)
            box = (x, y - LETTERS.height // 2 - 1, x + LETTERS.width(text), y + LETTERS.height // 2 + 2)
            draw.rounded_rectangle(box, radius=3, fill=colour)
            LETTERS.draw(draw, (x, y), text, ink_on(colour))
        return in_a_row([ImageOps.expand(card, 8, ground)], [""], self.paint)

    def _placed(self, width: int) -> tuple[list[tuple[tuple[float, int], str, float]], int]:
        """Return where each piece of text starts, halfway up its letters, and the height of all."""
        step, space = round(1.6 * LETTERS.height), 0.3 * LETTERS.size
        placed: list[tuple[tuple[float, int], str, float]] = []
        x, y = 0.0, step // 2
        parts = [_parted(piece.text) for piece in self.pieces]
        for index, (before, text) in enumerate(parts):
            x += space * before.count(" ")
            # A word is as long as its pieces up to the next space.
            tail = next((i for i, part in enumerate(parts[index + 1 :], index + 1) if part[0]), len(parts))
            word = sum(LETTERS.width(part[1]) for part in parts[index:tail])
            if x and x + (word if before else LETTERS.width(text)) > width:
                x, y = 0.0, y + step
            for below, whole in enumerate(text.split("\n")):
                x, y = (0.0, y + step) if below else (x, y)
                fits = LETTERS.width(whole) <= width
                line = whole if fits else "".join(wrapped(whole, width, 1, LETTERS.width))
                placed += [((x, y), line, self.relevance[index])] if line else []
                x += LETTERS.width(line)
        return placed, y + step // 2

    def _repr_html_(self) -> str:
        return self.html()

    def _span(self, piece: Piece, value: float) -> str:
        before, text = _parted(piece.text)
        if not text:
            return html.escape(before)
        ground = _colour(self.paint, value)
        style = (
            f"background:{_hex(ground)};color:{_hex(ink_on(ground))};padding:0.15em 0;border-radius:0.2em;"
            "box-decoration-break:clone"
        )
        title = html.escape(f"{_printable(piece.token)}: {number(value)}")
        return f'{html.escape(before)}<span title="{title}" style="{style}">{html.escape(text)}</span>'

    def _legend(self) -> str:
        signed = self.paint.colours.diverging
        stops = ",".join(_hex(colour) for colour in self.paint.colours.colours)
        ends = number(-self.paint.limit) if signed else "0", number(self.paint.limit, signed=signed)
        scale = f'<span style="display:inline-block;width:8em;height:0.7em;background:linear-gradient(90deg,{stops});'
        scale += 'margin:0 0.5em;border:1px solid #c4c4c4"></span>'
        low, high = self.paint.beyond
        less, more = " and less" * low, " and more" * high
        return f'<div style="font-size:0.8em;margin-top:0.5em">{ends[0]}{less}{scale}{ends[1]}{more}</div>'

    def _coded(self, piece: Piece, value: float, count: int) -> str:
        before, text = _parted(piece.text)
        if not text or count == 0 or abs(float(self.paint.shares(value))) < _LEAST_SHARE:
            return before + text
        ground = _colour(self.paint, value)
        codes = f"{_code(ink_on(ground), count, ground=False)};{_code(ground, count, ground=True)}"
        # A line end inside of the codes would colour the rest of the terminal's line.
        return before + "\n".join(f"\x1b[{codes}m{line}{_RESET}" if line else "" for line in text.split("\n"))


def highlight(
    tokens: Sequence[str],
    relevance: Relevance,
    *,
    join: Join = "auto",
    pooling: str = "sum",
    percentile: float = 100.0,
    limit: float | None = None,
    colours: Any = None,
) -> Text:
    """Colour the tokens of a text by their relevance.

    Parameters
    ----------
    tokens
        The tokens, as the tokenizer names them: ``tokenizer.convert_ids_to_tokens(ids)``.
    relevance
        One value for each token, (T,) or (1, T), or the relevance of its embedding, (T, E) or (1, T, E), pooled.
    join
        How tokens make a text: see :func:`lrphooks.visualization.tokens.pieces`.
    pooling, percentile, limit, colours
        As for :func:`lrphooks.visualization.heatmap`.

    Returns
    -------
    Text
        Shown in colour by a notebook; ``text.html()`` and ``text.ansi()`` return it for a page and a terminal. Tokens
        that make one character together are one piece, with the sum of their relevance.

    Raises
    ------
    TypeError, ValueError
        If the numbers of tokens and values differ, a token is no string, or as :func:`lrphooks.visualization.heatmap`.

    """
    style = Style(pooling, percentile, limit, colours)
    if isinstance(tokens, str):
        raise TypeError(f"highlight takes the tokens of a text in a list, not the text {tokens[:40]!r} itself.")
    values = _of_tokens(floats(relevance), len(tokens), style)
    found = pieces(tokens, join)
    ends = np.cumsum([piece.count for piece in found])
    summed = np.array([part.sum() for part in np.split(values, ends[:-1])])
    return Text(tuple(found), tuple(float(value) for value in summed), style.paint([summed]))


def terminal_colours(environment: Mapping[str, str]) -> int:
    """Return how many colours a terminal has, by its environment: 2**24, 256, 16, or 0.

    None if NO_COLOR is set (https://no-color.org), or TERM is not or "dumb".
    """
    term = environment.get("TERM", "")
    if environment.get("NO_COLOR"):
        return 0
    if environment.get("COLORTERM", "").lower() in ("truecolor", "24bit") or "WT_SESSION" in environment:
        return 2**24
    if term in ("", "dumb"):
        return 0
    return 2**24 if term.endswith("-direct") else 256 if "256" in term else 16


def ink_on(ground: Colour) -> Colour:
    """Return black or white, whichever has more contrast on a ground (WCAG 2: at least 4.58 to 1)."""
    linear = [
        share / 12.92 if share <= 0.04045 else ((share + 0.055) / 1.055) ** 2.4 for share in np.array(ground) / 255
    ]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return (0, 0, 0) if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else (255, 255, 255)


def _of_tokens(values: Floats, count: int, style: Style) -> Floats:
    """Return one value for each token."""
    if values.ndim in (2, 3) and len(values) == 1 and values.shape[1] == count and (values.ndim == 3 or count > 1):
        values = values[0]
    if count == 0 or values.ndim not in (1, 2) or len(values) != count or values.size == 0:
        raise ValueError(
            f"relevance of shape {tuple(values.shape)} does not belong to {count} tokens: it needs (T,), or (T, E) of "
            "embeddings, with T tokens. Explain one text of the batch at a time, and count special tokens and padding."
        )
    return values if values.ndim == 1 else POOLINGS[style.pooling](values, 1)


def _parted(text: str) -> tuple[str, str]:
    """Part a piece into the space before it, which is not coloured, and what is; a line end is made visible."""
    text = _printable(text)
    word = text.lstrip(" ") or text
    return text[: len(text) - len(word)], word.replace("\n", f"{_NEWLINE}\n") if not word.strip() else word


def _printable(text: str) -> str:
    """Write control characters as their escapes: a token must not command the terminal."""
    return "".join(repr(c)[1:-1] if unicodedata.category(c) in ("Cc", "Cs") and c not in "\n\t" else c for c in text)


def _colour(paint: Paint, value: float) -> Colour:
    red, green, blue = (int(channel) for channel in paint(value))
    return red, green, blue


def _hex(colour: Colour) -> str:
    return "#{:02x}{:02x}{:02x}".format(*colour)


def _code(colour: Colour, count: int, *, ground: bool) -> str:
    """Return the code for a colour, or for the nearest that the terminal has."""
    if count == 2**24:
        return "{};2;{};{};{}".format(48 if ground else 38, *colour)
    if count == 256:
        return f"{48 if ground else 38};5;{16 + _nearest(colour, _CUBE)}"
    index = _nearest(colour, _SIXTEEN)
    return str((40 if ground else 30) + index if index < 8 else (100 if ground else 90) + index - 8)


def _nearest(colour: Colour, palette: tuple[Colour, ...]) -> int:
    return int(np.square(np.subtract(palette, colour)).sum(axis=1).argmin())
