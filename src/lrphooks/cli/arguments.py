"""What the options that commands share stand for."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lrphooks import digits
from lrphooks.cli import memory, pictures
from lrphooks.cli.command import CommandError, UsageError
from lrphooks.cli.explaining import Explainer, reason
from lrphooks.cli.methods import Method, method
from lrphooks.cli.options import DIGITS, PHOTOGRAPHS, SEVERAL
from lrphooks.models import SOURCES, MissingExtraError, ModelError, PictureModel, Request, UnknownModelError, load
from lrphooks.models.weights import RANDOM

#: The packaged digit that is explained when no picture is given.
SAMPLE = "digit-7.png"
#: A picture is looked at in so many pixels a side, and is no photograph where one tone covers so much of it.
_SIDE, _PAPER = 64, 0.4


def composites_of(options: argparse.Namespace) -> list[Method]:
    """Return the methods that are set beside each other."""
    return options.composites or [method(name) for name in SEVERAL]


def choose_model(options: argparse.Namespace, paths: Sequence[Path]) -> None:
    """Choose a model where none was named: the ImageNet network if the first picture that can be read is a photograph.

    Raises
    ------
    CommandError
        If it is a photograph, and the network for it is not installed.
    """
    if options.model is not None:
        return
    options.model = DIGITS
    for path in paths:
        try:
            picture = pictures.read(path)
        except CommandError:  # said where it is explained
            continue
        if not is_photograph(picture.image):
            return
        missing = next(source for source in SOURCES if source.has(PHOTOGRAPHS)).missing()
        if missing is not None:
            raise CommandError(
                f"{path} looks like a photograph, and the network that comes with the package reads handwritten digits "
                f"alone. The one for photographs is not here: {missing} Or name another with --model; --model {DIGITS} "
                "has the picture read as a digit."
            )
        options.model = PHOTOGRAPHS
        return


def is_photograph(picture: Image.Image) -> bool:
    """Whether no tone covers most of a picture, as paper does where something is drawn or written on it."""
    small = picture.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BOX)
    # Neighbouring tones count together, wherever the borders between eight levels lie.
    shares = []
    for shift in (0, 16):
        levels = (np.asarray(small).astype(np.int64) + shift) // 32 @ (81, 9, 1)
        shares.append(np.unique(levels, return_counts=True)[1].max() / _SIDE**2)
    return bool(max(shares) < _PAPER)


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
    if options.model is None:
        options.model = DIGITS
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
    return Explainer(model, composite.make(model), options.target, getattr(options, "against", None))


def sample() -> Path:
    """Return the packaged picture."""
    return next(path for path in digits.images() if path.name == SAMPLE)


def check_picture_given(options: argparse.Namespace, given: Any) -> None:
    """Refuse to explain the packaged digit to another network."""
    if not given and options.model not in (None, DIGITS):
        raise UsageError(
            f"--model {options.model} needs a photograph: lrphooks {options.command} IMAGE "
            f"--model {options.model}. Only the digit network has a picture packaged."
        )
