"""Relevance of signals, drawn by matplotlib: curves over the colours of their relevance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lrphooks.visualization.arrays import Floats, Relevance, floats
from lrphooks.visualization.figures import (
    CAPTION,
    NUMBERS,
    bar,
    bar_width,
    hexadecimal,
    lettered,
    part,
    picture,
    subplots,
)
from lrphooks.visualization.lettering import GREY, INK
from lrphooks.visualization.panels import MARGIN
from lrphooks.visualization.scale import Paint, Style

# The least height, and the room for numbers on the left.
_LEAST, _LEFT = 36, 72


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
    ImportError
        If matplotlib, the extra ``plot``, is not there.

    """
    values, shown = _channels(relevance, "relevance"), _channels(signal, "signal")
    if values.shape != shown.shape:
        raise ValueError(f"a signal of shape {shown.shape} and relevance of shape {values.shape} do not match.")
    if names is not None and (isinstance(names, str) or len(names) != len(values)):
        raise ValueError(f"names {names!r} for {len(values)} channels: give a list with one for each.")
    if not 0.0 < rate < math.inf or min(size) < _LEAST:
        raise ValueError(
            f"rate={rate}, size={size}: the rate must be above 0, and width and height at least {_LEAST} pixels."
        )
    paint = Style("sum", percentile, limit, colours).paint([values])
    above = CAPTION.height + 14 if names else 0
    below = 2 * MARGIN + (CAPTION.height if unit else 0)
    figure, axes = subplots(len(shown), [bar_width([paint])], size, title, above=above, left=_LEFT, below=below)
    for axis, channel, own, name in zip(axes[:, 0], shown, values, names or [""] * len(shown), strict=True):
        _draw(axis, channel, paint, own, size, rate)
        text, how = lettered(name, CAPTION, size[0], 1)
        axis.set_title(text, loc="left", **how)
        axis.tick_params(labelbottom=axis is axes[-1, 0], bottom=axis is axes[-1, 0])
    text, how = lettered(unit, CAPTION, size[0], 1)
    axes[-1, 0].set_xlabel(text, **how)
    bar(figure, paint, axes[0, 0], size)
    return picture(figure)


def _draw(axes: Any, signal: Floats, paint: Paint, values: Floats, size: tuple[int, int], rate: float) -> None:
    """Draw a curve in dark ink with a light edge, over columns in the colours of its relevance."""
    width, height = size
    count = len(signal)
    x, shown = (np.arange(count) + 0.5) / rate, signal
    if count > width:
        starts = np.ceil(np.arange(width) * count / width).astype(int)
        ends = np.minimum.reduceat(signal, starts), np.maximum.reduceat(signal, starts)
        values = _largest(values, starts)
        x, shown = np.repeat((np.arange(width) + 0.5) * count / width / rate, 2), np.stack(ends, axis=1).ravel()
    room = 0.08 * float(np.ptp(signal)) or 0.5 * float(abs(signal[0])) or 1.0
    limits = 0, count / rate, signal.min() - room, signal.max() + room
    axes.imshow(paint(values)[None], extent=limits, aspect="auto", interpolation="nearest")
    # A dense curve is an area: the colours must be seen through it.
    alpha = 0.4 if count > 4 * width else 1.0
    (line,) = axes.plot(x, shown, color=hexadecimal(INK), linewidth=1.6, linestyle="-", alpha=alpha)
    line.set_path_effects([part("patheffects").withStroke(linewidth=4, foreground="white", alpha=alpha)])
    line.set(marker="o" if count == 1 else "", solid_joinstyle="round")
    axes.set(xlim=limits[:2], ylim=limits[2:])
    for axis, ticks in ((axes.xaxis, width // 90), (axes.yaxis, height // 30)):
        axis.set_major_locator(part("ticker").MaxNLocator(max(1, ticks), steps=[1, 2, 5, 10]))
        axis.set_major_formatter(part("ticker").ScalarFormatter())
        axis.OFFSETTEXTPAD = 6
        axis.get_offset_text().set(color=hexadecimal(GREY), fontsize=NUMBERS.size, horizontalalignment="right")


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
