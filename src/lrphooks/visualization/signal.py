"""Relevance of signals: curves over the colours of their relevance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from lrphooks.visualization.arrays import Floats, Relevance, floats
from lrphooks.visualization.bar import Bar
from lrphooks.visualization.lettering import GREY, INK, MINUS, Lettering, number
from lrphooks.visualization.panels import CAPTION, GAP, MARGIN, TITLE, frame
from lrphooks.visualization.scale import Paint, Style

NUMBERS = Lettering(14)
_TICK = 4
# Curves are drawn larger and reduced, for smooth edges.
_FINE = 3


def curves(
    signal: Relevance,
    relevance: Relevance,
    *,
    names: Sequence[str] | None = None,
    rate: float = 1.0,
    unit: str = "",
    title: str = "",
    size: tuple[int, int] = (720, 120),
    percentile: float = 100.0,
    limit: float | None = None,
    colours: Any = None,
) -> Image.Image:
    """Draw the channels of a signal as curves, one below the other, each sample on the colour of its relevance.

    All channels share one scale of colour. Where there are more samples than pixels, each column of pixels shows the
    range of its samples, and the largest relevance among them in size.

    Parameters
    ----------
    signal
        The signal, (T,), (C, T) or (1, C, T).
    relevance
        Its relevance, of the same shape.
    names
        What stands above each channel.
    rate, unit
        How many samples make a unit of the axis, and what the axis is called: ``rate=16_000, unit="time in s"``.
    title
        What stands above all.
    size
        Width and height of each channel, in pixels.
    percentile, limit, colours
        As for :func:`lrphooks.visualization.heatmap`.

    Raises
    ------
    ValueError
        If signal and relevance differ in shape, are no signal or not finite, there is not a name for each channel, or
        an argument is out of range.

    """
    values, shown = _channels(relevance, "relevance"), _channels(signal, "signal")
    if values.shape != shown.shape:
        raise ValueError(f"a signal of shape {shown.shape} and relevance of shape {values.shape} do not match.")
    if names is not None and (isinstance(names, str) or len(names) != len(values)):
        raise ValueError(f"names {names!r} for {len(values)} channels: give a list with one for each.")
    if not 0.0 < rate < math.inf or min(size) < 2 * NUMBERS.height:
        raise ValueError(
            f"rate={rate}, size={size}: the rate must be above 0, and width and height at least "
            f"{2 * NUMBERS.height} pixels."
        )
    paint = Style("sum", percentile, limit, colours).paint([values])
    return _stacked(shown, values, names, title, paint, size, _Axis(0.0, shown.shape[1] / rate, unit))


def _stacked(
    signal: Floats,
    values: Floats,
    names: Sequence[str] | None,
    title: str,
    paint: Paint,
    size: tuple[int, int],
    axis: _Axis,
) -> Image.Image:
    """Draw channels in rows of one width, with the axes' numbers on the left and below, and the colour bar."""
    width, height = size
    bar = Bar(paint)
    heights = [_Axis(*_padded(channel)) for channel in signal]
    labels = [own.ticks(max(1, height // 30)) for own in heights]
    left = MARGIN + math.ceil(max((NUMBERS.width(text) for row in labels for _, text in row), default=0.0)) + _TICK + 4
    heading = TITLE.wrapped(title, width, 3) if title.strip() else []
    above = 0 if names is None else CAPTION.height + 6
    top = MARGIN + len(heading) * TITLE.height + (GAP // 2 if heading else 0)
    bottom = top + len(signal) * (above + height) + (len(signal) - 1) * GAP
    tall = max(min(bottom - top - above, 2 * max(120, height)), bar.least_height)
    below = _TICK + 4 + NUMBERS.height + (NUMBERS.height if axis.name else 0)
    canvas = Image.new(
        "RGB", (left + width + bar.width + MARGIN, max(bottom + below, top + above + tall) + MARGIN), "white"
    )
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(heading):
        TITLE.draw(draw, (MARGIN, MARGIN + (index + 0.42) * TITLE.height), line, INK)
    bar.draw(canvas, (left + width, top + above), tall)
    for index, (own, ticks) in enumerate(zip(heights, labels, strict=True)):
        y = top + index * (above + height + GAP)
        if names is not None:
            CAPTION.draw(draw, (left, y + CAPTION.height // 2), CAPTION.shortened(names[index], width), GREY)
        y += above
        canvas.paste(_curve(signal[index], values[index], own, paint, size), (left, y))
        frame(draw, (left, y), size)
        for share, text in ticks:
            place = y + round((1.0 - share) * (height - 1))
            draw.line((left - 1 - _TICK, place, left - 2, place), fill=GREY)
            NUMBERS.draw(draw, (left - 5 - _TICK - NUMBERS.width(text), place), text, GREY)
    for share, text in axis.ticks(max(1, width // 90)):
        place = left + round(share * (width - 1))
        draw.line((place, bottom + 1, place, bottom + _TICK), fill=GREY)
        middle = place - NUMBERS.width(text) / 2
        NUMBERS.draw(draw, (middle, bottom + _TICK + 4 + NUMBERS.height / 2), text, GREY)
    if axis.name:
        name = NUMBERS.shortened(axis.name, width)
        NUMBERS.draw(draw, (left + (width - NUMBERS.width(name)) / 2, bottom + below - NUMBERS.height / 2), name, GREY)
    return canvas


@final
@dataclass(frozen=True)
class _Axis:
    """A range of numbers with round ones to write."""

    low: float
    high: float
    name: str = ""

    def ticks(self, count: int) -> list[tuple[float, str]]:
        """Return about so many multiples of 1, 2 or 5 times a power of ten: their share of the way, and their text."""
        raw = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= 0.7 * raw)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        multiples = [index * step for index in range(first, last + 1)]
        return [((value - self.low) / (self.high - self.low), _plain(value, step)) for value in multiples]


def _plain(value: float, step: float) -> str:
    """Return a number with the digits that the step has; far from 1, with a power of ten."""
    if not 1e-3 <= step < 1e5:
        return number(value, signed=value < 0)
    text = f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
    return text.replace("-", MINUS) if float(text) else text.removeprefix("-")


def _padded(channel: Floats) -> tuple[float, float]:
    """Return the range of a channel with room above and below; a constant gets one around it."""
    low, high = float(channel.min()), float(channel.max())
    room = 0.08 * (high - low) or 0.5 * abs(low) or 1.0
    return low - room, high + room


def _curve(signal: Floats, values: Floats, axis: _Axis, paint: Paint, size: tuple[int, int]) -> Image.Image:
    """Draw a curve in dark ink with a light edge, over columns in the colours of its relevance."""
    width, height = size
    count = len(signal)
    if count > width:
        starts = np.ceil(np.arange(width) * count / width).astype(int)
        columns = _largest(values, starts)
        ends = np.stack([np.minimum.reduceat(signal, starts), np.maximum.reduceat(signal, starts)], axis=1)
        x = np.repeat(np.arange(width) + 0.5, 2)
        shown = ends.ravel()
    else:
        columns = values[((np.arange(width) + 0.5) * count / width).astype(int)]
        x, shown = (np.arange(count) + 0.5) * width / count, signal
    y = (axis.high - shown) / (axis.high - axis.low) * (height - 1) + 0.5
    stripes = Image.fromarray(np.repeat(paint(columns)[None], height, axis=0))
    fine = stripes.resize((width * _FINE, height * _FINE), Image.Resampling.NEAREST)
    ground = fine.copy()
    draw = ImageDraw.Draw(fine)
    points = [(float(across) * _FINE, float(down) * _FINE) for across, down in zip(x, y, strict=True)]
    for ink, thickness in (((255, 255, 255), 4.0), (INK, 1.6)):
        if len(points) > 1:
            draw.line(points, fill=ink, width=round(thickness * _FINE), joint="curve")
        else:
            draw.circle(points[0], round(thickness * _FINE), fill=ink)
    # A dense curve is an area: the colours must be seen through it.
    fine = Image.blend(ground, fine, 0.4) if count > 4 * width else fine
    return fine.resize(size, Image.Resampling.BOX)


def _largest(values: Floats, starts: NDArray[np.int_]) -> Floats:
    """Return the value that is largest in size of each part, with its sign."""
    high, low = np.maximum.reduceat(values, starts), np.minimum.reduceat(values, starts)
    return np.where(high >= -low, high, low)


def _channels(signal: Relevance, what: str) -> Floats:
    """Return a signal as (C, T)."""
    values = floats(signal, what)
    if values.ndim == 3 and len(values) == 1:
        values = values[0]
    if values.ndim not in (1, 2) or values.size == 0:
        hint = f" Draw one signal of the batch: {what}[0]." if values.ndim == 3 else ""
        raise ValueError(
            f"{what} of shape {tuple(values.shape)} is no signal: curves need (C, T) or (T,), none of them 0.{hint}"
        )
    return values if values.ndim == 2 else values[None]
