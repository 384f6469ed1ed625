"""Explanations as one picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from lrphooks.cli.explaining import Explanation
from lrphooks.models import PictureModel
from lrphooks.visualization import pool, side_by_side
from lrphooks.visualization.panels import stacked
from lrphooks.visualization.scale import Style


def draw(model: PictureModel, x: Tensor, explanation: Explanation, method: str) -> Image.Image:
    """Draw what the network saw, shape (1, C, H, W), beside the relevance of each explained class, on one scale."""
    style = Style(percentile=model.percentile)
    limit = style.paint([pool(relevance) for relevance in explanation.relevance]).limit
    return stacked(
        [
            side_by_side(
                model.show(x),
                relevance,
                title=f"explained: {each.name}, f(x) = {each.output:.4g}",
                captions=("input", f"relevance, {method}"),
                limit=limit or None,
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
