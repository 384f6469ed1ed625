"""Arguments that commands share, and what they stand for."""

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
from lrphooks.cli.methods import DEFAULT, Method, method
from lrphooks.models import SOURCES, MissingExtraError, ModelError, PictureModel, Request, UnknownModelError, load
from lrphooks.models.packaged import DIGITS
from lrphooks.models.weights import RANDOM

#: The packaged digit that is explained when no picture is given.
SAMPLE = "digit-7.png"
#: The composites that are set beside each other where none is named.
SEVERAL = ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonGammaBox", "EpsilonAlpha2Beta1Flat", "AttnLRP")


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say which model, and how it is fed."""
    group = command.add_argument_group("the model")
    group.add_argument(
        "--model",
        default=DIGITS,
        metavar="NAME",
        help=f"one of {', '.join(source.form for source in SOURCES)}; lrphooks models tells more; default: {DIGITS}",
    )
    group.add_argument(
        "--weights",
        metavar="FILE",
        help="weights that torch.save wrote (tensors alone), or .safetensors; 'random' for none; "
        "default: the trained ones that come with the model",
    )
    group.add_argument("--classes", type=int, metavar="N", help="how many classes the model of the weights has")
    group.add_argument(
        "--labels", type=Path, metavar="FILE", help="the names of the classes: a line each, or JSON (.json)"
    )
    group.add_argument(
        "--size", type=_size, metavar="N", help="the pixels of the model's input: N, or HEIGHTxWIDTH, such as 224x320"
    )
    group.add_argument(
        "--mean", type=_numbers, metavar="R,G,B", help="what is subtracted from pixels of 0 to 1, such as 0.5,0.5,0.5"
    )
    group.add_argument("--std", type=_numbers, metavar="R,G,B", help="what they are divided by after that")
    group.add_argument(
        "--device", default="cpu", metavar="NAME", help="where it runs: cpu (default), cuda, cuda:1, mps"
    )


def add_composite(command: argparse.ArgumentParser) -> None:
    """Add the argument that says which rules."""
    command.add_argument(
        "--composite",
        type=method_argument,
        default=method(DEFAULT),
        metavar="NAME",
        help="the rules: a preset, also with arguments, as 'EpsilonGammaBox(gamma=0.5)', or MODULE:COMPOSITE; "
        f"lrphooks composites tells more; default: {DEFAULT}",
    )


def add_composites(command: argparse.ArgumentParser, purpose: str) -> None:
    """Add the argument that says which rules are set beside each other, and for what."""
    command.add_argument(
        "--composite",
        type=method_argument,
        action="append",
        dest="composites",
        metavar="NAME",
        help=f"the rules; give it for each composite to {purpose}; default: {', '.join(SEVERAL)}",
    )


def composites_of(options: argparse.Namespace) -> list[Method]:
    """Return the methods that are set beside each other."""
    return options.composites or [method(name) for name in SEVERAL]


def add_target(command: argparse.ArgumentParser, *, several: bool) -> None:
    """Add the argument that says which output."""
    more = "; several with commas between them" if several else ""
    command.add_argument(
        "--target",
        metavar="CLASS",
        help=f"the class to explain, by its number or name{more}; default: the predicted one",
    )


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


def method_argument(text: str) -> Method:
    """Return the method of an argument."""
    try:
        return method(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def _size(text: str) -> tuple[int, int]:
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise argparse.ArgumentTypeError(f"{text} is no size: it must be N or HEIGHTxWIDTH, in pixels")
    return int(sides[0]), int(sides[-1])


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} are no numbers with commas between them") from None
