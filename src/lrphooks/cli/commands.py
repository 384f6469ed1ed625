"""The commands and their options. What a command does is in the module of its name, and comes with torch."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from lrphooks.cli.command import Command
from lrphooks.cli.inputs import COMPARISON, ENDING
from lrphooks.cli.options import (
    add_against,
    add_composite,
    add_composites,
    add_drawing,
    add_model,
    add_picture,
    add_target,
    positive,
)

#: How many pictures explain hands to the network at once.
BATCH = 8
# What float32 leaves unexplained is a hundredth of this, and less.
TOLERANCE = 1e-3
#: Of evaluate: where results are kept, and how many points a curve has.
RESULTS = Path("evaluation.jsonl")
STEPS = 14


def _explain(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "pictures",
        nargs="*",
        metavar="IMAGE",
        help="pictures, folders (with all folders in them) or patterns in quotes; default: a digit that comes with the "
        "package",
    )
    add_composite(command)
    add_target(command, several=True)
    add_against(command)
    command.add_argument(
        "--output",
        type=Path,
        metavar="PLACE",
        help=f"a folder, or the name of one PNG; default: NAME{ENDING} beside the picture NAME "
        "(in the current directory for the packaged digit)",
    )
    command.add_argument(
        "--again",
        "--overwrite",
        action="store_true",
        help="make results again that are there already, and overwrite other files",
    )
    command.add_argument(
        "--batch-size",
        type=positive,
        default=BATCH,
        metavar="N",
        help=f"how many pictures the network sees at once; default: {BATCH}",
    )
    command.add_argument("--json", action="store_true", help="print a line of JSON for each picture, and nothing else")
    command.add_argument(
        "--save",
        choices=("npz",),
        help="write relevance (targets, C, H, W), targets and input beside each PNG, as arrays of numpy",
    )
    add_drawing(command)
    add_model(command)


def _audit(command: argparse.ArgumentParser) -> None:
    add_picture(command)
    add_composite(command)
    add_target(command, several=False)
    command.add_argument(
        "--tolerance",
        type=_tolerance,
        default=TOLERANCE,
        metavar="T",
        help=f"how much may stay unexplained, as a part of the largest amount in the books; default: {TOLERANCE:g}",
    )
    command.add_argument(
        "--all", action="store_true", help="print every call of a module, not only those that absorbed most"
    )
    command.add_argument("--json", action="store_true", help="print the whole report as JSON, and nothing else")
    add_model(command)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is no tolerance: it must be a number of at least 0")
    return value


def _compare(command: argparse.ArgumentParser) -> None:
    add_picture(command)
    add_composites(command, "compare")
    add_target(command, several=False)
    command.add_argument(
        "--output",
        type=Path,
        metavar="PLACE",
        help=f"a folder, or the name of one PNG; default: NAME{COMPARISON} beside the picture NAME",
    )
    add_model(command)


def _evaluate(command: argparse.ArgumentParser) -> None:
    command.add_argument("pictures", nargs="+", metavar="IMAGE", help="pictures, folders or patterns in quotes")
    add_composites(command, "judge")
    add_target(command, several=False)
    command.add_argument(
        "--patch",
        type=positive,
        metavar="N",
        help="the side in pixels of the patches that are removed; default: a fourteenth of the input",
    )
    command.add_argument(
        "--steps", type=positive, default=STEPS, metavar="N", help=f"points of a curve; default: {STEPS}"
    )
    command.add_argument(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="FILE",
        help="where each result is kept as it comes, a line of JSON, so that a stopped run goes on where it was; "
        f"default: {RESULTS}",
    )
    command.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves there; needs lrphooks[plot]")
    command.add_argument("--json", action="store_true", help="print the table as JSON, and nothing else")
    add_model(command)


def _stream(command: argparse.ArgumentParser) -> None:
    command.add_argument("video", metavar="VIDEO", help="a video file, or the number of a camera: 0 is the first")
    add_composite(command)
    add_target(command, several=False)
    command.add_argument(
        "--output",
        type=Path,
        metavar="PLACE",
        help="the video to write (.mp4 or .avi), or a folder for a PNG of each frame; default: none, predictions and "
        "frames per second are printed",
    )
    command.add_argument(
        "--frames", type=positive, metavar="N", help="stop after so many; default: at the end, or Ctrl-C"
    )
    add_model(command)


def _models(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "pattern",
        nargs="?",
        metavar="PATTERN",
        help="list the models whose names match, such as 'timm:*' or '*resnet*'; default: where models come from",
    )
    command.add_argument("--json", action="store_true", help="print JSON, and nothing else")


def _composites(command: argparse.ArgumentParser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, and nothing else")


#: All commands, in the order of the help.
COMMANDS: tuple[Command, ...] = (
    Command(
        "explain",
        help="explain the prediction for pictures and draw the relevance",
        description="Explain what a trained network sees in pictures. Prints the prediction, the explained output "
        "f(x), the sum of the relevance and what was absorbed, and writes the picture and its heatmap side by side as "
        "a PNG. Of several pictures, those are left out that were finished before with the same settings, so that "
        "what was interrupted goes on where it was. Exits with 1 if a picture failed; the others are explained all the "
        "same.",
        arguments=_explain,
    ),
    Command(
        "audit",
        help="show where every part of the explained output went",
        description="Explain a picture and balance the books: f(x) is the sum of the relevance and of what biases, "
        "stabilizers and others absorbed, each computed from its own formula. Prints f(x), the sums, what the modules "
        "absorbed and which rules the operations had. Exits with 1 if more than a tolerance is unexplained.",
        arguments=_audit,
    ),
    Command(
        "compare",
        help="draw the relevance of one picture by several composites",
        description="Explain one class of one picture by several composites, and draw them one below the other as one "
        "PNG, each on a scale of its own.",
        arguments=_compare,
    ),
    Command(
        "evaluate",
        help="measure how faithful composites are on pictures",
        description="Measure the symmetric relevance gain of composites on pictures: the area between the curves of "
        "the probability of the class when patches are blurred least relevant first and most relevant first. More is "
        "better, and an order by chance has 0. Each result is kept, so that a run that is stopped goes on where it "
        "was.",
        arguments=_evaluate,
    ),
    Command(
        "stream",
        help="explain a video or a camera, frame after frame",
        description="Explain a video or a camera, frame after frame, as fast as the model goes. Prints the prediction "
        "and how many frames a second were explained, and writes each frame beside its heatmap. Needs the package "
        "opencv-python-headless.",
        arguments=_stream,
    ),
    Command(
        "models",
        help="list the models that can be named",
        description="List what --model can name, which extra each needs and whether it can be used here; or, with a "
        "pattern, the names that match.",
        arguments=_models,
    ),
    Command(
        "composites",
        help="list the composites that can be named",
        description="List the composites that --composite can name, with their arguments, what they do, and the paper.",
        arguments=_composites,
    ),
)
