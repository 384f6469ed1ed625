"""One picture and one of its classes: what commands are about that look at a single prediction closely."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import Tensor

from lrphooks.cli import arguments, pictures, reporting
from lrphooks.cli.command import CommandError, UsageError
from lrphooks.cli.predictions import Prediction, predict, targets_of
from lrphooks.models import PictureModel


@final
@dataclass(frozen=True)
class Subject:
    """A picture, what a model reads of it, shape (1, C, H, W), and what the model answers; the class to explain."""

    path: Path
    notes: tuple[str, ...]
    model: PictureModel
    x: Tensor
    prediction: Prediction
    target: int

    def lines(self, options: argparse.Namespace) -> list[str]:
        """Return what it is, to be printed."""
        name = str(self.path) if options.image else f"{self.path.name} (comes with the package)"
        return [
            reporting.field("picture", name),
            *(reporting.field("read as", note) for note in self.notes),
            *reporting.of_model(self.model, options.model),
            reporting.field("prediction", str(self.prediction)),
            reporting.field("explained", self.prediction.describe(self.target)),
        ]


def subject_of(options: argparse.Namespace) -> Subject:
    """Return the picture that is asked for, as the model sees it.

    Raises
    ------
    CommandError
        If the picture cannot be read, the model cannot be had, or it has no such class.
    """
    arguments.check_picture_given(options, options.image)
    path = options.image or arguments.sample()
    read = pictures.read(path)
    arguments.choose_model(options, [path] if options.image else [])
    model = arguments.model_of(options)
    if model.rows not in (None, 1):
        raise CommandError(
            f"{model.name} takes {model.rows} pictures at once and no other number, and lrphooks {options.command} "
            "looks at one: export it for one, or with a dynamic batch."
        )
    x = model.batch([pictures.prepared(model, read, path)])
    prediction = predict(model, x)[0]
    targets = targets_of(options.target, prediction)
    if len(targets) > 1:
        raise UsageError(f"--target {options.target} names {len(targets)} classes, and {options.command} takes one.")
    return Subject(path, read.notes, model, x, prediction, targets[0])
