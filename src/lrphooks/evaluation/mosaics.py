"""Mosaics of labelled pictures, where it is known which part shows the explained class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrphooks.evaluation.metric import generator, whole


@dataclass(frozen=True, eq=False)
class Mosaics:
    """Mosaics, one row for each cell that is explained."""

    x: Tensor
    """The mosaics, (rows, channels, grid * height, grid * width)."""
    target: Tensor
    """The class that the explained cell shows, (rows,)."""
    truth: Tensor
    """The mask of that cell, (rows, grid * height, grid * width)."""

    def __len__(self) -> int:
        return len(self.target)

    def __repr__(self) -> str:
        return f"Mosaics of shape {tuple(self.x.shape)}, {_classes(self.target)} classes"


def mosaics(images: Tensor, labels: Tensor | Sequence[int], *, grid: int = 2, seed: int = 0) -> Mosaics:
    """Return mosaics of ``grid * grid`` pictures of different classes, each cell explained once.

    The pictures should be some that the model classifies rightly and surely, and the model must take inputs of ``grid``
    times their size. Every picture is used at most once; those that find no place, because too few of other classes are
    left, are left out.

    Parameters
    ----------
    images
        (pictures, channels, height, width).
    labels
        The class of each picture.
    grid
        The number of pictures along each side.
    seed
        The chance that mixes the pictures.

    Raises
    ------
    TypeError, ValueError
        If the shapes do not fit, or there are fewer than ``grid * grid`` classes.

    References
    ----------
    Böhle, Fritz and Schiele, "Convolutional Dynamic Alignment Networks for Interpretable Classifications", CVPR 2021.

    Examples
    --------
    >>> made = mosaics(images, labels)
    >>> GridPointingGame()(model, made.x, made.target, EpsilonPlus(), truth=made.truth)
    """
    whole("mosaics", "grid", grid, minimum=2)
    whole("mosaics", "seed", seed, minimum=0)
    if not isinstance(images, Tensor) or images.dim() != 4:
        found = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"mosaics: images must be a tensor (pictures, channels, height, width), got {found}.")
    labels = torch.as_tensor(labels)
    if labels.shape != images.shape[:1]:
        raise ValueError(
            f"mosaics: {len(images)} pictures and labels of shape {tuple(labels.shape)}; give one label each."
        )
    places = _groups(labels, grid * grid, seed)
    if not places:
        raise ValueError(
            f"mosaics: a mosaic of {grid} by {grid} needs pictures of {grid * grid} classes, got {_classes(labels)}."
        )
    height, width = images.shape[2:]
    index = torch.tensor(places, device=images.device).reshape(-1, grid, grid)
    made = images[index]  # (mosaics, down, across, channels, height, width)
    x = made.permute(0, 3, 1, 4, 2, 5).reshape(len(places), images.shape[1], grid * height, grid * width)
    cells = torch.eye(grid * grid, dtype=torch.bool, device=images.device).reshape(-1, grid, grid)
    cells = cells.repeat_interleave(height, 1).repeat_interleave(width, 2)
    return Mosaics(
        x.repeat_interleave(grid * grid, 0), labels.to(images.device)[index].flatten(), cells.repeat(len(places), 1, 1)
    )


def _classes(labels: Tensor) -> int:
    return len(set(labels.tolist()))


def _groups(labels: Tensor, size: int, seed: int) -> list[list[int]]:
    """Return groups of pictures of different classes, taking first from the classes that have most left."""
    left: dict[int, list[int]] = {}
    for picture in torch.randperm(len(labels), generator=generator(seed)).tolist():
        left.setdefault(int(labels[picture]), []).append(picture)
    groups: list[list[int]] = []
    while len(left) >= size:
        # Sorting keeps the order by chance of classes with equally many.
        fullest = sorted(left, key=lambda label: -len(left[label]))[:size]
        group = [left[label].pop() for label in fullest]
        mixed = torch.randperm(size, generator=generator(seed + len(groups))).tolist()
        groups.append([group[i] for i in mixed])
        left = {label: pictures for label, pictures in left.items() if pictures}
    return groups
