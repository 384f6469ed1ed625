"""Several pictures in one: panels in rows, with titles and a colour bar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from lrphooks.visualization.arrays import Floats, Picture, Relevance, floats, image_floats, resized, to_picture
from lrphooks.visualization.bar import Bar
from lrphooks.visualization.image import SIDE, laid_over
from lrphooks.visualization.lettering import GREY, INK, Lettering
from lrphooks.visualization.scale import POOLINGS, Paint, Style

MARGIN = 20
GAP = 16
TITLE = Lettering(22)
CAPTION = Lettering(16)
CAPTION_LINES = 2
_FRAME = (196, 196, 196)


@final
@dataclass(frozen=True, eq=False)
class Overlay:
    """A panel of a grid: relevance over the picture that it explains, as :func:`overlay` draws it."""

    picture: Picture
    relevance: Relevance


#: A picture, an array of bytes, relevance, an Overlay, or None. To a type checker, pictures and relevance are arrays.
Panel: TypeAlias = Any


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
    pooling, percentile, limit, colours, side
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
    return grid(
        [[shown, values]],
        titles=[captions],
        title=title,
        pooling=pooling,
        percentile=percentile,
        limit=limit,
        colours=colours,
        side=side,
    )


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

    """
    style = Style(pooling, percentile, limit, colours)
    rows, in_rows = _rows(panels, columns)
    captions = _captions(titles, rows, in_rows=in_rows)
    contents = [[_Content.of(panel, style) for panel in row] for row in rows]
    pooled = [content.pooled for row in contents for content in row if content.pooled is not None]
    shared = style.paint(pooled) if shared_scale and pooled else None
    longest = _display_side(contents, side)
    cells = [
        [_Cell.of(content, caption, longest, shared, style) for content, caption in zip(*row, strict=True)]
        for row in zip(contents, captions, strict=True)
    ]
    return _arranged(cells, title, Bar(shared) if shared is not None else None)


@final
@dataclass(frozen=True, eq=False)
class _Content:
    """What a panel shows: a picture, pooled relevance, both for an overlay, or nothing."""

    picture: Image.Image | None = None
    pooled: Floats | None = None

    @staticmethod
    def of(panel: Panel, style: Style) -> _Content:
        if panel is None:
            return _Content()
        if isinstance(panel, Overlay):
            return _Content(to_picture(panel.picture), _pooled(panel.relevance, style))
        if isinstance(panel, Image.Image) or _is_bytes(panel):
            return _Content(to_picture(panel))
        return _Content(pooled=_pooled(panel, style))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        if self.picture is not None:
            return self.picture.size
        return (0, 0) if self.pooled is None else (self.pooled.shape[1], self.pooled.shape[0])

    def drawn(self, longest: int, paint: Paint | None) -> Image.Image | None:
        """Return the panel with its longer side of so many pixels."""
        share = longest / max(1, *self.size)
        size = (max(1, round(self.size[0] * share)), max(1, round(self.size[1] * share)))
        if self.pooled is None or paint is None:
            return None if self.picture is None else self.picture.resize(size, _resampling(share, _LANCZOS))
        if self.picture is not None:
            return laid_over(self.picture, self.pooled, paint).resize(size, _resampling(share, _LANCZOS))
        return paint.image(resized(self.pooled, size, _resampling(share, Image.Resampling.BOX)))


_LANCZOS = Image.Resampling.LANCZOS


@final
@dataclass(frozen=True, eq=False)
class _Cell:
    """A panel as it is drawn, its lines of text above it, and its own colour bar beside it if it has one."""

    image: Image.Image | None
    caption: list[str]
    bar: Bar | None

    @staticmethod
    def of(content: _Content, caption: str, longest: int, shared: Paint | None, style: Style) -> _Cell:
        own = style.paint([content.pooled]) if content.pooled is not None and shared is None else None
        image = content.drawn(longest, shared or own)
        width = longest if image is None else image.width
        return _Cell(image, CAPTION.wrapped(caption, width, CAPTION_LINES), None if own is None else Bar(own))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, without the caption."""
        width, height = (0, 0) if self.image is None else self.image.size
        if self.bar is None:
            return width, height
        return width + self.bar.width, max(height, self.bar.least_height)


def _arranged(cells: list[list[_Cell]], title: str, bar: Bar | None) -> Image.Image:
    """Draw cells in columns as wide as their widest, in rows as high as their highest."""
    widths = [max(row[column].size[0] for row in cells if column < len(row)) for column in range(max(map(len, cells)))]
    heights = [max(cell.size[1] for cell in row) for row in cells]
    lines = [max(len(cell.caption) for cell in row) for row in cells]
    inner = sum(widths) + GAP * (len(widths) - 1) + (0 if bar is None else bar.width)
    heading = TITLE.wrapped(title, max(inner, 2 * SIDE), 3) if title.strip() else []
    width = max([inner, *(math.ceil(TITLE.width(line)) for line in heading)]) + 2 * MARGIN
    above = [count * CAPTION.height + (6 if count else 0) for count in lines]
    top = MARGIN + len(heading) * TITLE.height + (GAP // 2 if heading else 0)
    height = sum(heights) + sum(above) + GAP * (len(cells) - 1)
    tall = 0 if bar is None else max(heights[0], bar.least_height)
    height = top + max(height, above[0] + tall) + MARGIN
    canvas = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(canvas)
    for index, line in enumerate(heading):
        TITLE.draw(draw, (MARGIN, MARGIN + (index + 0.42) * TITLE.height), line, INK)
    if bar is not None:
        bar.draw(canvas, (width - MARGIN - bar.width, top + above[0]), tall)
    y = top
    for row, row_height, row_above, count in zip(cells, heights, above, lines, strict=True):
        x = MARGIN
        for cell, column_width in zip(row, widths, strict=False):
            # The last line stands on the panel, whatever the number of lines.
            for index, line in enumerate(reversed(cell.caption)):
                CAPTION.draw(draw, (x, y + (count - index - 0.5) * CAPTION.height), line, GREY)
            if cell.image is not None:
                canvas.paste(cell.image, (x, y + row_above))
                frame(draw, (x, y + row_above), cell.image.size)
                if cell.bar is not None:
                    tall = max(cell.image.height, cell.bar.least_height)
                    cell.bar.draw(canvas, (x + cell.image.width, y + row_above), tall)
            x += column_width + GAP
        y += row_above + row_height + GAP
    return canvas


def frame(draw: ImageDraw.ImageDraw, corner: tuple[int, int], size: tuple[int, int]) -> None:
    """Draw a thin line around a panel: a white heatmap has no edge of its own."""
    x, y = corner
    draw.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=_FRAME)


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


def _display_side(contents: list[list[_Content]], side: int) -> int:
    """Return the longer side of all panels: a multiple of the largest relevance, or else of the largest picture."""
    if side < 1:
        raise ValueError(f"side must be at least 1 pixel, not {side}")
    every = [content for row in contents for content in row]
    longest = max(
        [max(content.size) for content in every if content.pooled is not None and content.picture is None]
        or [max(content.size) for content in every]
    )
    if longest == 0:
        raise ValueError("a grid needs at least one panel that is not None.")
    return min(longest * math.ceil(side / longest), 2 * side)


def _pooled(relevance: Any, style: Style) -> Floats:
    return POOLINGS[style.pooling](image_floats(relevance), 0)


def _is_bytes(panel: Any) -> bool:
    return (isinstance(panel, np.ndarray) and panel.dtype == np.uint8) or (
        isinstance(panel, Tensor) and str(panel.dtype) == "torch.uint8"
    )


def _is_panel(panel: Any) -> bool:
    return panel is None or isinstance(panel, (Image.Image, Tensor, np.ndarray, Overlay))


def _resampling(share: float, smooth: Image.Resampling) -> Image.Resampling:
    """Enlarged pixels keep their edges; reduced ones are averaged."""
    whole = share >= 1.0 and (share >= 2.0 or share == 1.0)
    return Image.Resampling.NEAREST if whole else smooth
