"""Options that commands share. Nothing here imports torch, so that the help comes at once."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from lrphooks.cli.command import UsageError

#: The rules where none are named, and those that are set beside each other.
DEFAULT = "EpsilonPlus"
SEVERAL = ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonGammaBox", "EpsilonAlpha2Beta1Flat", "AttnLRP")
#: How models are named (see :data:`lrphooks.models.SOURCES`): the packaged one, one for photographs, others.
MODELS = ("digits", "efficientnet-lite0", "torchvision:NAME", "timm:NAME", "PATH.pt2", "MODULE:FACTORY")
DIGITS, PHOTOGRAPHS = MODELS[:2]
#: How pictures and relevance are drawn together.
STYLES = ("side", "overlay", "heatmap")


def add_model(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say which model, and how it is fed."""
    group = command.add_argument_group("the model")
    group.add_argument(
        "--model",
        metavar="NAME",
        help=f"one of {', '.join(MODELS)}; lrphooks models tells more; default: {PHOTOGRAPHS} for a photograph, "
        f"{DIGITS} for what is drawn on one tone",
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
        type=_method,
        default=DEFAULT,
        metavar="NAME",
        help="the rules: a preset, also with arguments, as 'EpsilonGammaBox(gamma=0.5)', or MODULE:COMPOSITE; "
        f"lrphooks composites tells more; default: {DEFAULT}",
    )


def add_composites(command: argparse.ArgumentParser, purpose: str) -> None:
    """Add the argument that says which rules are set beside each other, and for what."""
    command.add_argument(
        "--composite",
        type=_method,
        action="append",
        dest="composites",
        metavar="NAME",
        help=f"the rules; give it for each composite to {purpose}; default: {', '.join(SEVERAL)}",
    )


def add_target(command: argparse.ArgumentParser, *, several: bool) -> None:
    """Add the argument that says which output."""
    more = "; several with commas between them" if several else ""
    command.add_argument(
        "--target",
        metavar="CLASS",
        help=f"the class to explain, by its number or name{more}; default: the predicted one",
    )


def add_against(command: argparse.ArgumentParser) -> None:
    """Add the argument that sets a class against others."""
    command.add_argument(
        "--against",
        type=positive,
        metavar="N",
        help="explain the class against the mean of the N strongest others, which tells it from what it could be taken "
        "for; default: the class by itself",
    )


def add_drawing(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say how relevance is drawn."""
    group = command.add_argument_group("the drawing")
    group.add_argument(
        "--style",
        choices=STYLES,
        default=STYLES[0],
        help=f"the picture beside its relevance, below it, or the relevance alone; default: {STYLES[0]}",
    )
    group.add_argument(
        "--colours",
        metavar="NAME",
        help="a colour map of two sides, such as fire-ice, or of matplotlib by name; default: red-blue",
    )
    group.add_argument(
        "--percentile",
        type=_percentile,
        metavar="P",
        help="the full colour stands for this percentile of the absolute relevance; default: the model's own",
    )
    group.add_argument(
        "--scale",
        type=_scale,
        metavar="R",
        help="the full colour stands for this relevance, so that pictures can be compared; default: by --percentile",
    )


def _percentile(text: str) -> float:
    value = _number(text)
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text} is no percentile: it must be above 0 and at most 100")
    return value


def _scale(text: str) -> float:
    value = _number(text)
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no scale: it must be a number above 0")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def add_picture(command: argparse.ArgumentParser) -> None:
    """Add the argument for the picture."""
    command.add_argument(
        "image", nargs="?", type=Path, metavar="IMAGE", help="a picture; default: a digit that comes with the package"
    )


def positive(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of at least 1")
    return int(text)


def _method(text: str) -> Any:
    from lrphooks.cli.methods import method  # noqa: PLC0415  it imports torch

    try:
        return method(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


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
