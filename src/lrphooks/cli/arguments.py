"""What the options that commands share stand for."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import torch

from lrphooks import digits
from lrphooks.cli import memory
from lrphooks.cli.command import CommandError, UsageError
from lrphooks.cli.explaining import Explainer, reason
from lrphooks.cli.methods import Method, method
from lrphooks.cli.options import DIGITS, SEVERAL
from lrphooks.models import MissingExtraError, ModelError, PictureModel, Request, UnknownModelError, load
from lrphooks.models.weights import RANDOM

#: The packaged digit that is explained when no picture is given.
SAMPLE = "digit-7.png"


def composites_of(options: argparse.Namespace) -> list[Method]:
    """Return the methods that are set beside each other."""
    return options.composites or [method(name) for name in SEVERAL]


def model_of(options: argparse.Namespace) -> PictureModel:
    """Return the model that is asked for, on its device.

    Raises
    ------
    CommandError
        If it cannot be had.
    """
    weights: str | None = options.weights
    if weights is not None and weights != RANDOM and not os.path.exists(weights):  # noqa: PTH110  it never raises
        raise CommandError(f"there is no file of weights {weights}: check the path.")
    if options.size is not None:
        height, width = options.size
        memory.check(
            memory.PER_PIXEL * height * width, f"--size {height}x{width}, one picture,", "give a smaller --size"
        )
    request = Request(weights, options.classes, options.size, options.mean, options.std)
    try:
        model = load(options.model, request, labels=options.labels)
    except UnknownModelError as error:
        raise UsageError(str(error)) from error
    except (ModelError, MissingExtraError) as error:
        raise CommandError(str(error)) from error
    device = _device(options)
    if device.type != "cpu":
        try:
            model.network.to(device)
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise CommandError(f"{model.name} does not go to --device {options.device}: {reason(error)}") from error
    return model


def _device(options: argparse.Namespace) -> torch.device:
    """Return the device that is asked for, if it is there."""
    try:
        device = torch.device(options.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        first = str(error).strip().partition("\n")[0]
        raise UsageError(f"--device {options.device} cannot be used here: {first}") from error
    return device


def explainer_of(options: argparse.Namespace, model: PictureModel, composite: Method) -> Explainer:
    """Return what explains pictures as it is asked for."""
    return Explainer(model, composite.make(model), options.target)


def sample() -> Path:
    """Return the packaged picture."""
    return next(path for path in digits.images() if path.name == SAMPLE)


def check_picture_given(options: argparse.Namespace, given: Any) -> None:
    """Refuse to explain the packaged digit to another network."""
    if not given and options.model != DIGITS:
        raise UsageError(
            f"--model {options.model} needs a photograph: lrphooks {options.command} IMAGE "
            f"--model {options.model}. Only the digit network has a picture packaged."
        )
