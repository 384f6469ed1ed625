"""Explanations as one picture."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from lrphooks.cli.explaining import Explanation
from lrphooks.models import PictureModel
from lrphooks.visualization import grid, side_by_side


def draw(model: PictureModel, x: Tensor, explanation: Explanation, method: str) -> Image.Image:
    """Draw what the network saw, shape (1, C, H, W), beside the relevance of each explained class, on one scale."""
    shown = model.show(x)
    names = [f"{each.name}, f(x) = {each.output:.4g}" for each in explanation.explained]
    if len(names) == 1:
        return side_by_side(
            shown,
            explanation.relevance[0],
            title=f"explained: {names[0]}",
            captions=("input", f"relevance, {method}"),
            percentile=model.percentile,
        )
    return grid(
        [shown, *explanation.relevance],
        titles=["input", *names],
        title=f"relevance, {method}",
        percentile=model.percentile,
    )


def draw_methods(
    model: PictureModel, x: Tensor, explanations: Sequence[Explanation], methods: Sequence[str]
) -> Image.Image:
    """Draw what the network saw beside the relevance of one class by several methods, each on a scale of its own."""
    explained = explanations[0].explained[0]
    return grid(
        [model.show(x), *(explanation.relevance[0] for explanation in explanations)],
        titles=["input", *methods],
        title=f"explained: {explained.name}, f(x) = {explained.output:.4g}",
        shared_scale=False,
        percentile=model.percentile,
    )
