"""What a network answers to pictures, and which of its outputs are explained."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from lrphooks.cli import memory, output
from lrphooks.cli.command import CommandError, UsageError
from lrphooks.models import PictureModel

_CLOSE = 5


@final
@dataclass(frozen=True)
class Prediction:
    """What the network answers to one picture: its outputs, and how probable each class is, where that is known."""

    model: PictureModel
    outputs: Tensor
    probabilities: Tensor | None

    @property
    def predicted(self) -> int:
        """The class with the largest output."""
        return int(self.outputs.argmax())

    def describe(self, index: int) -> str:
        """Return the name and the number of a class."""
        name = self.model.class_name(index)
        return name if name == str(index) else f"{name} (class {index})"

    def __str__(self) -> str:
        if self.probabilities is None:
            return "a model of one output, which has no classes"
        return f"{self.describe(self.predicted)}, probability {float(self.probabilities[self.predicted]):.4f}"

    def to_dict(self, most: int = 5) -> list[dict[str, Any]]:
        """Return the classes with the largest outputs as plain data, ready for JSON."""
        order = self.outputs.argsort(descending=True, stable=True)[:most].tolist()
        return [
            {
                "class": index,
                "name": self.model.class_name(index),
                "output": float(self.outputs[index]),
                "probability": None if self.probabilities is None else float(self.probabilities[index]),
            }
            for index in order
        ]


def predict(model: PictureModel, x: Tensor) -> list[Prediction]:
    """Return what the network answers to each row of an input, shape (rows, C, H, W).

    Raises
    ------
    CommandError
        If it fails, or does not return one value a class.
    """
    try:
        with torch.no_grad():
            outputs = model.network(x)
    # A person's own network fails in any way.
    except Exception as error:
        if memory.is_used_up(error):
            raise
        reason = output.reason(error).rstrip(".!")
        raise CommandError(
            f"{model.name} failed on an input of shape {tuple(x.shape)}: {reason}. Does it take another --size?"
        ) from error
    # As models of transformers answer.
    outputs = getattr(outputs, "logits", outputs)
    if not isinstance(outputs, Tensor) or outputs.dim() not in (1, 2) or len(outputs) != len(x):
        kind = f"shape {tuple(outputs.shape)}" if isinstance(outputs, Tensor) else f"a {type(outputs).__name__}"
        raise CommandError(
            f"{model.name} returns {kind} for an input of shape {tuple(x.shape)}, not one value a class (rows, "
            "classes). Give a network that does: lrphooks.lrp explains any output, with a function as its target."
        )
    # Half precision would round probabilities.
    outputs = outputs.reshape(len(x), -1).cpu().to(torch.promote_types(outputs.dtype, torch.float32))
    classes = outputs.shape[1]
    if model.class_names and len(model.class_names) != classes:
        raise CommandError(
            f"{model.name} has {classes} classes, and {len(model.class_names)} names for them: give a file with as "
            "many names as --labels."
        )
    # What sums to 1 are probabilities already.
    sums = outputs.double().sum(1)
    shares = outputs if bool((outputs >= 0).all() and ((sums - 1).abs() < 1e-3).all()) else outputs.softmax(1)
    return [Prediction(model, row, share if classes > 1 else None) for row, share in zip(outputs, shares, strict=True)]


def targets_of(text: str | None, prediction: Prediction) -> list[int]:
    """Return the classes that ``--target`` names: numbers or names, with commas between them; the predicted by default.

    Raises
    ------
    UsageError
        If the model has no such class.
    """
    if text is None:
        return [prediction.predicted]
    # A name may hold a comma itself.
    parts = [text] if _with_name(text, prediction.model) else text.split(",")
    found = [_target(part.strip(), prediction) for part in parts]
    return list(dict.fromkeys(found))


def _target(text: str, prediction: Prediction) -> int:
    model, last = prediction.model, len(prediction.outputs) - 1
    named = _with_name(text, model)
    if len(named) == 1:
        return named[0]
    if len(named) > 1:
        raise UsageError(
            f"--target {text} is the name of {len(named)} classes of {model.name}: give the number, one of "
            f"{', '.join(map(str, named))}."
        )
    try:
        index = int(text)
    except ValueError:
        raise UsageError(
            f"--target {text}: {model.name} has no class of that name. {_advice(text, model, last)}"
        ) from None
    if not 0 <= index <= last:
        raise UsageError(
            f"--target {text} is out of range: the classes of {model.name} are 0 to {last}. "
            "Leave --target out to explain the predicted one."
        )
    return index


def _with_name(text: str, model: PictureModel) -> list[int]:
    return [index for index, name in enumerate(model.class_names) if name.casefold() == text.strip().casefold()]


def _advice(text: str, model: PictureModel, last: int) -> str:
    if not model.class_names:
        return f"Its classes have numbers alone, 0 to {last}: give one, or names with --labels FILE."
    lower = {name.casefold(): name for name in model.class_names}
    wanted = text.casefold()
    close: Sequence[str] = [name for name in lower if wanted and wanted in name]
    close = [*difflib.get_close_matches(wanted, lower, _CLOSE), *close]
    names = [lower[name] for name in dict.fromkeys(close)][:_CLOSE]
    return f"Did you mean {', '.join(names)}?" if names else f"Give its number, 0 to {last}."
