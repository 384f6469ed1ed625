"""Explanations as one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from PIL import Image
from torch import Tensor

from lrphooks.cli.command import UsageError
from lrphooks.cli.explaining import Explanation
from lrphooks.models import PictureModel
from lrphooks.visualization import heatmap, overlay, pool, side_by_side
from lrphooks.visualization.colours import colour_map
from lrphooks.visualization.panels import stacked
from lrphooks.visualization.scale import Style


@final
@dataclass(frozen=True)
class Drawing:
    """How pictures are drawn: one of the styles of the command line, and the colours and their scale.

    percentile: None for the model's own. scale: the relevance that has the full colour, None for the percentile.
    """

    style: str = "side"
    colours: str | None = None
    percentile: float | None = None
    scale: float | None = None


def check_colours(name: str | None) -> None:
    """Refuse a colour map that is not there.

    Raises
    ------
    UsageError
        If there is none of that name.
    """
    try:
        if name is not None:
            colour_map(name)
    except (ValueError, ImportError) as error:
        raise UsageError(f"--colours {name}: {error}") from error


def draw(
    model: PictureModel, x: Tensor, explanation: Explanation, method: str, drawing: Drawing | None = None
) -> Image.Image:
    """Draw what the network saw, shape (1, C, H, W), and the relevance of each explained class, on one scale."""
    drawing = drawing or Drawing()
    percentile = model.percentile if drawing.percentile is None else drawing.percentile
    style = Style(percentile=percentile, limit=drawing.scale, colours=drawing.colours)
    limit = style.paint([pool(relevance) for relevance in explanation.relevance]).limit
    if drawing.style == "overlay":
        shown = model.show(x)
        return stacked(
            [overlay(shown, each, limit=limit or None, colours=drawing.colours) for each in explanation.relevance]
        )
    if drawing.style == "heatmap":
        return stacked([heatmap(each, limit=limit or None, colours=drawing.colours) for each in explanation.relevance])
    return stacked(
        [
            side_by_side(
                model.show(x),
                relevance,
                title=f"explained: {each.name}, f(x) = {each.output:.4g}",
                captions=("input", f"relevance, {method}"),
                limit=limit or None,
                colours=drawing.colours,
            )
            for each, relevance in zip(explanation.explained, explanation.relevance, strict=True)
        ]
    )


def draw_methods(
    model: PictureModel, x: Tensor, explanations: Sequence[Explanation], methods: Sequence[str]
) -> Image.Image:
    """Draw what the network saw beside the relevance of one class by several methods, each on a scale of its own."""
    explained = explanations[0].explained[0]
    title = f"explained: {explained.name}, f(x) = {explained.output:.4g}"
    return stacked(
        [
            side_by_side(
                model.show(x),
                explanation.relevance[0],
                title=title if index == 0 else "",
                captions=("input", method),
                percentile=model.percentile,
            )
            for index, (explanation, method) in enumerate(zip(explanations, methods, strict=True))
        ]
    )
