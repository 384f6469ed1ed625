"""What a notebook shows of an explanation: a picture where its shape tells what to draw, and a short table."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image
from torch import Tensor

from lrphooks.visualization.arrays import Floats, floats, to_picture
from lrphooks.visualization.image import SIDE
from lrphooks.visualization.lettering import number
from lrphooks.visualization.panels import drawn_at, in_a_row, panel_side, side_by_side, stacked
from lrphooks.visualization.scale import Style, pool
from lrphooks.visualization.signal import curves

#: A signal has at most so many channels; (B, T, E) with more rows is taken for embedded text, and not drawn.
MOST_CHANNELS = 16
#: A few pixels of a photograph tower over the rest, which would look empty beside them.
PERCENTILE = 99.5


def picture_of(inputs: Any, relevance: Any, *, title: str = "", most: int = 4) -> Image.Image | None:
    """Draw inputs beside their relevance, if they are images or signals.

    Images, (B, C, H, W), stand in one row each, with a scale of their own, its full colour at the 99.5th percentile;
    inputs that are not in [0, 1] are stretched to their own range, which the caption tells. Signals, (B, C, T) of at
    most 16 channels, are curves, one scale for each row of the batch.

    Parameters
    ----------
    inputs, relevance
        What :func:`lrphooks.lrp` took and returned. A tuple or list of one tensor is that tensor.
    title
        What stands above all.
    most
        How many rows of the batch are drawn; the title tells if there are more.

    Returns
    -------
    Image or None
        None for inputs of any other shape or structure: there is nothing to draw.

    Raises
    ------
    ValueError
        If the relevance is not finite.
    ImportError
        If there are signals, and matplotlib, the extra ``plot``, is not there.

    """
    inputs, relevance = (
        value[0] if isinstance(value, (tuple, list)) and len(value) == 1 else value for value in (inputs, relevance)
    )
    drawable = isinstance(inputs, Tensor) and isinstance(relevance, Tensor) and inputs.shape == relevance.shape
    if not drawable or not relevance.numel() or inputs.is_complex():
        return None
    count = len(inputs)
    if count > most:
        title = f"{title}, " * bool(title) + f"the first {most} of {count}"
    x, values = floats(inputs[:most], "input"), floats(relevance[:most])
    if x.ndim == 4:
        return _images(x, values, title)
    if x.ndim == 3 and x.shape[1] <= MOST_CHANNELS:
        return _signals(x, values, title)
    return None


def png_of(picture: Image.Image | None) -> bytes | None:
    """Return a picture as the bytes of a PNG file, for ``_repr_png_``; None of None."""
    if picture is None:
        return None
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def html_of(summary: Mapping[str, str], picture: Image.Image | None = None) -> str:
    """Return a table of names and texts, with a picture below, as HTML for ``_repr_html_``.

    The table has the colours of the page, dark or light.
    """
    cell = "text-align:left;vertical-align:top;padding:0.15em 1em 0.15em 0"
    rows = "".join(
        f'<tr><th style="{cell};font-weight:600">{html.escape(name)}</th>'
        f'<td style="{cell}">{html.escape(text)}</td></tr>'
        for name, text in summary.items()
    )
    data = png_of(picture)
    image = ""
    if data is not None:
        source = base64.b64encode(data).decode("ascii")
        image = f'<img alt="inputs and their relevance" style="max-width:100%" src="data:image/png;base64,{source}">'
    return f"<div><table>{rows}</table>{image}</div>"


def _images(x: Floats, values: Floats, title: str) -> Image.Image:
    side = SIDE if len(x) == 1 else SIDE // 2
    return stacked(
        [_image(*row, title if index == 0 else "", side) for index, row in enumerate(zip(x, values, strict=True))]
    )


def _image(x: Floats, values: Floats, title: str, side: int) -> Image.Image:
    if len(x) not in (1, 3):
        pooled = pool(values)
        paint = Style(percentile=PERCENTILE).paint([pooled])
        return in_a_row([drawn_at(pooled, panel_side(max(pooled.shape), side), paint)], [""], paint, title)
    low, high = float(x.min()), float(x.max())
    caption = "input"
    if low < 0.0 or high > 1.0:
        caption = f"input, black {number(low, signed=False)}, white {number(high, signed=False)}"
        x = (x - low) / ((high - low) or 1.0)
    captions = (caption, "relevance")
    return side_by_side(to_picture(x), values, title=title, captions=captions, percentile=PERCENTILE, side=side)


def _signals(x: Floats, values: Floats, title: str) -> Image.Image:
    return stacked(
        [curves(*row, title=title if index == 0 else "") for index, row in enumerate(zip(x, values, strict=True))]
    )
