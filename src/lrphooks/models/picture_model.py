"""A classifier of pictures, with what it takes to feed it and to name its answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from PIL import Image
from torch import Tensor, nn

from lrphooks.models.preparation import Preparation


@final
@dataclass(frozen=True)
class PictureModel:
    """A classifier of pictures, with what it takes to feed it and to name its answers.

    Parameters
    ----------
    name
        What messages call it.
    network
        Takes (rows, C, H, W) and returns one value a class, (rows, classes). In evaluation mode.
    preparation
        How a picture becomes an input.
    class_names
        The names of the classes in their order; none where the classes have numbers alone.
    percentile
        The percentile of absolute relevance that gets the full colour in a heatmap: a few pixels of a photograph tower
        over the rest, which would look empty beside them.
    rows
        How many rows the network takes, where it takes no other number.
    notes
        What was done to load it, a line each, for people to read.
    """

    name: str
    network: nn.Module
    preparation: Preparation
    class_names: tuple[str, ...] = ()
    percentile: float = 99.5
    rows: int | None = None
    notes: tuple[str, ...] = ()

    def prepare(self, picture: Image.Image) -> Tensor:
        """Make a picture into the network's input, shape (1, C, H, W)."""
        return self.preparation.prepare(picture)

    def batch(self, inputs: Sequence[Tensor]) -> Tensor:
        """Return inputs, each of shape (1, C, H, W), as one batch of the precision and on the device of the network."""
        weights = (each for each in self.network.parameters() if each.is_floating_point())
        return torch.cat([*inputs]).to(next(weights, inputs[0]))

    def show(self, x: Tensor) -> Image.Image:
        """Make an input back into the picture that the network sees."""
        return self.preparation.show(x)

    @property
    def low(self) -> float | Tensor:
        """The least value that an input can hold (black)."""
        return self.preparation.low

    @property
    def high(self) -> float | Tensor:
        """The greatest value that an input can hold (white)."""
        return self.preparation.high

    def class_name(self, index: int) -> str:
        """Return the name of a class, or its number where it has none."""
        return self.class_names[index] if self.class_names else str(index)
