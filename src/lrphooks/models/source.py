"""Where models come from: what a source is asked, and what it says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

import torch
from torch import nn

from lrphooks.models.errors import ModelError
from lrphooks.models.picture_model import PictureModel
from lrphooks.models.preparation import Pixels, Size
from lrphooks.models.weights import RANDOM, load_weights

if TYPE_CHECKING:
    from collections.abc import Iterator


@final
@dataclass(frozen=True)
class Request:
    """What is asked of a model beside its name: whatever is None is the model's own.

    weights: a file of weights, or "random". classes: how many classes the network has. size (height, width), mean, std:
    the preparation of pictures, with pixels from 0 to 1.
    """

    weights: str | None = None
    classes: int | None = None
    size: Size | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    @property
    def own_weights(self) -> bool:
        """Whether the weights that come with the model are wanted."""
        return self.weights is None

    def refuse_classes(self, name: str) -> None:
        """Refuse a number of classes for a model that has its own."""
        if self.classes is not None:
            raise ModelError(f"{name} has its own number of classes: --classes is for models of torchvision and timm.")

    def fill(self, network: nn.Module) -> tuple[str, ...]:
        """Give a network whose weights are random the weights that are asked for, and return what was done."""
        if self.weights in (None, RANDOM):
            return ("random, from seed 0",)
        assert self.weights is not None
        return load_weights(network, Path(self.weights))

    def pixels(self, what: str, channels: int, size: Size | None = None) -> Pixels:
        """Return the preparation for a network that comes with none.

        Raises
        ------
        ModelError
            If the size is not known, or the network takes neither one nor three channels.
        """
        size = self.size or size
        if size is None:
            raise ModelError(
                f"{what} does not say how large its input is: give --size, such as --size 224, and --mean and --std if "
                "it was trained on normalised pictures."
            )
        if channels not in (1, 3):
            raise ModelError(f"{what} takes {channels} channels: pictures have 1 (grey) or 3.")
        base = Pixels(size, min(size) if size[0] == size[1] else size, (0.0,) * channels, (1.0,) * channels)
        changed = base.changed(None, self.mean, self.std)
        assert isinstance(changed, Pixels)
        return changed


class Source(ABC):
    """A place that models come from."""

    #: How one of its models is named, what that is, and what to install for it.
    form: str
    about: str
    needs: str

    @abstractmethod
    def has(self, name: str) -> bool:
        """Whether a name is of the form of this source."""

    @abstractmethod
    def missing(self) -> str | None:
        """Return why the source cannot be used here, or None if it can."""

    @abstractmethod
    def names(self) -> tuple[str, ...]:
        """Return the full names of its models, as far as they can be listed."""

    @abstractmethod
    def load(self, name: str, request: Request) -> PictureModel:
        """Return the model of that full name, with the weights that are asked for.

        Raises
        ------
        ModelError, MissingExtraError
            If it cannot be loaded; the message says why, and the way out.
        """


@contextmanager
def seeded() -> Iterator[None]:
    """Draw the same random weights every time, and leave the random state as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield
