"""Several pictures in one, drawn by matplotlib: panels in rows, with titles and colour bars."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, TypeAlias, final

import numpy as np
from PIL import Image
from torch import Tensor

from lrphooks.visualization.arrays import Floats, Picture, Relevance, floats, to_picture
from lrphooks.visualization.figures import BAR_HEIGHT, CAPTION, bar, bar_width, lettered, picture, subplots
from lrphooks.visualization.image import SIDE, laid_over
from lrphooks.visualization.lettering import wrapped
from lrphooks.visualization.panels import drawn_at, panel_side
from lrphooks.visualization.scale import Paint, Style, pool


@final
@dataclass(frozen=True, eq=False)
class Overlay:
    """A panel of a grid: relevance over the picture that it explains, as :func:`overlay` draws it."""

    picture: Picture
    relevance: Relevance


#: A picture, an array of bytes, relevance, an Overlay, or None. To a type checker, pictures and relevance are arrays.
Panel: TypeAlias = Any
_Content: TypeAlias = "tuple[Image.Image | None, Floats | None]"


def grid(
    panels: Sequence[Panel] | Relevance,
    *,
    titles: Sequence[str] | Sequence[Sequence[str]] | None = None,
    columns: int | None = None,
    shared_scale: bool = True,
    title: str = "",
    pooling: str = "sum",
    percentile: float = 100.0,
    limit: float | None = None,
    colours: Any = None,
    side: int = SIDE,
) -> Image.Image:
    """Draw many panels in rows, with titles, and with a colour bar for the relevance among them.

    Parameters
    ----------
    panels
        A batch of relevance, (N, C, H, W); or a sequence of panels; or a sequence of rows of panels. A panel is a
        picture (PIL, or an array of bytes), the relevance of one image (any other array or tensor), an
        :class:`Overlay`, or None for an empty place.
    titles
        What stands above each panel, in the form of ``panels``. A long one is broken into two lines, then cut.
    columns
        How many panels stand in a row, if ``panels`` has no rows of its own; by default about as many as there are
        rows, at most 5.
    shared_scale
        Whether all relevance has one scale and one colour bar, so that colours can be compared between panels; else
        each panel has its own.
    title
        What stands above all.
    side
        The longer side of each panel is at least so long, in pixels, and at most twice that: small ones are enlarged
        by a whole factor without smoothing, large ones are reduced smoothly.
    pooling, percentile, limit, colours
        As for :func:`lrphooks.visualization.heatmap`.

    Raises
    ------
    ValueError, TypeError
        If there is no panel, titles do not match the panels, a panel is neither a picture nor the relevance of one
        image, or as :func:`lrphooks.visualization.heatmap`.
    ImportError
        If matplotlib, the extra ``plot``, is not there.

    """
    style = Style(pooling, percentile, limit, colours)
    rows, in_rows = _rows(panels, columns)
    captions = _captions(titles, rows, in_rows=in_rows)
    contents = [[_content(panel, style) for panel in row] for row in rows]
    pooled = [relevance for row in contents for _, relevance in row if relevance is not None]
    shared = style.paint(pooled) if shared_scale and pooled else None
    longest = _longest(contents, side)
    paints = [[None if r is None else shared or style.paint([r]) for _, r in row] for row in contents]
    images = [[_drawn(*each, longest) for each in zip(*row, strict=True)] for row in zip(contents, paints, strict=True)]
    drawn = [image for row in images for image in row if image is not None]
    size = max(image.width for image in drawn), max([BAR_HEIGHT if pooled else 1, *(image.height for image in drawn)])
    lines = [len(wrapped(text, size[0], 2, CAPTION.width)) for row in captions for text in row]
    beside = [0 if shared is not None else bar_width(filter(None, column)) for column in zip_longest(*paints)]
    beside[-1] = bar_width([shared]) if shared is not None else beside[-1]
    figure, axes = subplots(len(rows), beside, size, title, above=max(lines) * CAPTION.height)
    for axis in axes.flat:
        axis.set_axis_off()
    for row in zip(axes, images, captions, paints, strict=True):
        for axis, image, caption, paint in zip(*row, strict=False):
            text, how = lettered(caption, CAPTION, longest if image is None else image.width, 2)
            axis.set_title(text, loc="left", **how)
            if image is not None:
                axis.set_axis_on()
                axis.imshow(image, interpolation="nearest", origin="upper", aspect="equal")
                if paint is not None and shared is None:
                    bar(figure, paint, axis, image.size)
    if shared is not None:
        bar(figure, shared, axes[0, -1], size)
    return picture(figure)


def _drawn(content: _Content, paint: Paint | None, longest: int) -> Image.Image | None:
    """Return the picture of a panel, or None for an empty place."""
    shown, relevance = content
    if relevance is None or paint is None:
        return None if shown is None else drawn_at(shown, longest, None)
    return drawn_at(relevance if shown is None else laid_over(shown, relevance, paint), longest, paint)


def _content(panel: Panel, style: Style) -> _Content:
    """Return what a panel shows: a picture, pooled relevance, both for an overlay, or nothing."""
    if panel is None:
        return None, None
    if isinstance(panel, Overlay):
        return to_picture(panel.picture), pool(panel.relevance, style.pooling)
    if isinstance(panel, Image.Image) or _is_bytes(panel):
        return to_picture(panel), None
    return None, pool(panel, style.pooling)


def _rows(panels: Any, columns: int | None) -> tuple[list[list[Panel]], bool]:
    """Return panels in rows, and whether they came so."""
    if isinstance(panels, (Tensor, np.ndarray)) and not _is_bytes(panels):
        values = floats(panels)
        if values.ndim != 4:
            raise ValueError(
                f"an array of shape {values.shape} is no batch of relevance: a grid takes (N, C, H, W), or a list of "
                "panels. Draw one image with heatmap."
            )
        panels = list(values)
    if not isinstance(panels, Sequence) or isinstance(panels, str) or not panels:
        raise ValueError(
            f"a grid needs panels: a batch of relevance, a list of panels or a list of rows, not {panels!r}"
        )
    nested = [isinstance(row, (list, tuple)) and any(_is_panel(panel) for panel in row) for row in panels]
    if any(nested) and not all(nested):
        raise TypeError(
            f"panels: number {nested.index(False)} is no row, but others are. Give rows only, or panels only."
        )
    if all(nested):
        if columns is not None:
            raise ValueError(f"columns={columns}, but the panels come in rows: give one flat list, or no columns.")
        return [list(row) for row in panels], True
    count = columns if columns is not None else min(5, math.ceil(math.sqrt(len(panels))))
    if count < 1:
        raise ValueError(f"columns must be at least 1, not {columns}")
    return [list(panels[start : start + count]) for start in range(0, len(panels), count)], False


def _captions(titles: Any, rows: list[list[Panel]], *, in_rows: bool) -> list[list[str]]:
    """Return titles in rows as long as those of the panels."""
    lengths = [len(row) for row in rows]
    if titles is None:
        return [[""] * length for length in lengths]
    given = [[row] if isinstance(row, str) else list(row) for row in titles]
    flat = [text for row in given for text in row]
    matches = [len(row) for row in given] == (lengths if in_rows else [1] * sum(lengths))
    if not matches or any(isinstance(row, str) == in_rows for row in titles):
        raise ValueError(
            f"{len(flat)} titles for {sum(lengths)} panels: give one for each panel, in rows if the panels are in "
            "rows, '' where there is nothing to say."
        )
    following = iter(flat)
    return [[next(following) for _ in row] for row in rows]


def _longest(contents: list[list[_Content]], side: int) -> int:
    """Return the longer side of all panels: a multiple of the largest relevance, or else of the largest picture."""
    every = [content for row in contents for content in row]
    relevance = [max(values.shape) for picture, values in every if values is not None and picture is None]
    longest = max(relevance or [max(picture.size) for picture, _ in every if picture is not None], default=0)
    if longest == 0:
        raise ValueError("a grid needs at least one panel that is not None.")
    return panel_side(longest, side)


def _is_bytes(panel: Any) -> bool:
    return (isinstance(panel, np.ndarray) and panel.dtype == np.uint8) or (
        isinstance(panel, Tensor) and str(panel.dtype) == "torch.uint8"
    )


def _is_panel(panel: Any) -> bool:
    return panel is None or isinstance(panel, (Image.Image, Tensor, np.ndarray, Overlay))
