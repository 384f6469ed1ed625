"""What is drawn by matplotlib (the extra ``plot``), which is imported when something is drawn.

Figures are made of matplotlib's objects, not by pyplot: no backend is chosen, and nothing global is changed.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from PIL import Image

from lrphooks.extras import install
from lrphooks.visualization.bar import FRAME
from lrphooks.visualization.colours import Colour
from lrphooks.visualization.image import SIDE
from lrphooks.visualization.lettering import GREY, INK, Lettering, wrapped
from lrphooks.visualization.panels import GAP, MARGIN
from lrphooks.visualization.scale import Paint

TITLE, CAPTION, NUMBERS = Lettering(20, own=False), Lettering(15, own=False), Lettering(13, own=False)
#: The least height of a colour bar, which keeps its numbers apart.
BAR_HEIGHT = 3 * NUMBERS.height
# With as many pixels as points to an inch, sizes of letters and lines are pixels.
_DPI = 72
_EXTEND = {(False, False): "neither", (True, False): "min", (False, True): "max", (True, True): "both"}


def subplots(
    rows: int,
    beside: Sequence[int],
    size: tuple[int, int],
    title: str,
    *,
    above: int = 0,
    left: int = MARGIN,
    below: int = MARGIN,
) -> tuple[Any, Any]:
    """Return a figure with a title and its axes, (rows, columns), without ticks; all lengths are in pixels.

    Parameters
    ----------
    rows, beside
        How many rows there are, and the room beside each column for its colour bars.
    size, above
        Width and height of each of the axes, and the room above it for its caption.
    left, below
        The margins left of all axes and below them.

    Raises
    ------
    ImportError
        If matplotlib is not there.

    """
    width, height = size
    *lefts, end = accumulate((width + room + GAP for room in beside), initial=left)
    heading = wrapped(title, max(end - GAP - MARGIN, 2 * SIDE), 3, TITLE.width)
    across = max([end - GAP + MARGIN, *(math.ceil(TITLE.width(line)) + 2 * MARGIN for line in heading)])
    top = MARGIN + len(heading) * TITLE.height + (GAP if heading else 0) + above
    bottoms = [top + height + row * (height + above + GAP) for row in range(rows)]
    down = bottoms[-1] + below
    # Rounding may not take a pixel away, or below give one.
    inches = (across + 1e-6) / _DPI, (down + 1e-6) / _DPI
    figure = part("figure").Figure(inches, _DPI, facecolor="white", layout="none")
    places = [[(x / across, 1 - y / down) for x in lefts] for y in bottoms]
    inner = (width - 1e-3) / across, (height - 1e-3) / down
    axes = np.array([[figure.add_axes((*place, *inner)) for place in row] for row in places])
    for one in axes.flat:
        # The frame's pixels lie around the axes: a white heatmap has no edge of its own.
        one.spines[:].set_position(("outward", 0.5))
        one.spines[:].set(color=hexadecimal(FRAME), linewidth=1, antialiased=False, snap=False)
        one.set(xticks=(), yticks=(), facecolor="none", anchor="NW")
        one.tick_params(color=hexadecimal(GREY), labelcolor=hexadecimal(GREY), labelsize=NUMBERS.size)
    text, how = lettered("\n".join(heading), TITLE, across, 3, INK)
    figure.text(MARGIN / across, 1 - MARGIN / down, text, va="top", **how)
    return figure, axes


def lettered(
    text: str, letters: Lettering, width: float, lines: int, colour: Colour = GREY
) -> tuple[str, dict[str, Any]]:
    """Return a text in lines that fit, and how matplotlib writes it: as it is, without regard to formulas in it."""
    file, _ = letters.font(text)
    shown = "\n".join(letters.font(line)[1] for line in wrapped(text, width, lines, letters.width))
    font = part("font_manager").FontProperties(fname=file or None, size=letters.size)
    return shown, {"fontproperties": font, "color": hexadecimal(colour), "parse_math": False, "usetex": False}


def bar(figure: Any, paint: Paint, axis: Any, size: tuple[int, int]) -> None:
    """Draw a colour bar beside what fills so much of the axes, pointed where values lie beyond its end."""
    colours = part("colors").ListedColormap(paint.colours(np.linspace(paint.lowest, 1.0, 255)) / 255)
    painted = part("cm").ScalarMappable(part("colors").Normalize(paint.lowest, 1.0), colours)
    across, down = figure.get_size_inches() * _DPI
    corner, tall = axis.get_position(original=True), max(size[1], BAR_HEIGHT)
    place = figure.add_axes((corner.x0 + (size[0] + 14) / across, corner.y1 - tall / down, 14 / across, tall / down))
    drawn = figure.colorbar(painted, cax=place, extend=_EXTEND[paint.beyond], extendfrac=10 / tall)
    drawn.set_ticks(list(paint.numbers), labels=list(paint.numbers.values()), parse_math=False, usetex=False)
    drawn.outline.set(edgecolor=hexadecimal(FRAME), linewidth=1)
    place.grid(visible=False)
    place.tick_params(color=hexadecimal(GREY), labelcolor=hexadecimal(INK), labelsize=NUMBERS.size)


def bar_width(paints: Iterable[Paint]) -> int:
    """Return the room that colour bars need beside axes."""
    return max((38 + math.ceil(NUMBERS.width(text)) for paint in paints for text in paint.numbers.values()), default=0)


def picture(figure: Any) -> Image.Image:
    """Return what was drawn."""
    agg = part("backends.backend_agg").FigureCanvasAgg(figure)
    agg.draw()
    return Image.fromarray(np.asarray(agg.buffer_rgba())).convert("RGB")


def part(name: str) -> Any:
    """Import a part of matplotlib."""
    try:
        return importlib.import_module(f"matplotlib.{name}")
    except ImportError as error:
        raise ImportError(
            f"grids and curves are drawn by matplotlib, which could not be imported ({error}). Install it: "
            f"{install('plot')}. Pillow alone draws heatmap, heatmaps, overlay and side_by_side."
        ) from error


def hexadecimal(colour: Colour) -> str:
    """Return a colour as web pages and matplotlib take it."""
    return "#{:02x}{:02x}{:02x}".format(*colour)
