"""``lrphooks explain``: draw the relevance of pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lrphooks import __version__
from lrphooks.cli import arguments, inputs, signals
from lrphooks.cli.batch import Batch
from lrphooks.cli.command import FAILURE, SUCCESS, Command
from lrphooks.cli.explaining import Explainer
from lrphooks.cli.inputs import ENDING
from lrphooks.cli.printing import printer_for
from lrphooks.cli.progress import progress
from lrphooks.cli.results import LAYOUT, Store, fingerprint

BATCH = 8


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "pictures",
        nargs="*",
        metavar="IMAGE",
        help="pictures, folders (with all folders in them) or patterns in quotes; default: a digit that comes with the "
        "package",
    )
    arguments.add_composite(parser)
    arguments.add_target(parser, several=True)
    parser.add_argument(
        "--output",
        type=Path,
        metavar="PLACE",
        help=f"a folder, or the name of one PNG; default: NAME{ENDING} beside the picture NAME "
        "(in the current directory for the packaged digit)",
    )
    parser.add_argument(
        "--again",
        "--overwrite",
        action="store_true",
        help="make results again that are there already, and overwrite other files",
    )
    parser.add_argument(
        "--batch-size",
        type=arguments.positive,
        default=BATCH,
        metavar="N",
        help=f"how many pictures the network sees at once; default: {BATCH}",
    )
    parser.add_argument("--json", action="store_true", help="print a line of JSON for each picture, and nothing else")
    arguments.add_model(parser)


def _run(options: argparse.Namespace) -> int:
    arguments.check_picture_given(options, options.pictures)
    found = inputs.find(options.pictures or [str(arguments.sample())])
    output = options.output if options.pictures else options.output or Path()
    outputs = inputs.outputs(found, output)
    model = arguments.model_of(options)
    explainer = arguments.explainer_of(options, model, options.composite)
    chosen = inputs.output_file(options.output) is not None
    # A single picture is always explained: whoever asks for one wants it now.
    store = Store(_settings(options, explainer), again=options.again, chosen=chosen, resumed=found.many)
    batch = Batch(explainer, store, options.composite.text, model.rows or options.batch_size)
    printer = printer_for(options, explainer, found)
    tally = {"explained": 0, "kept": 0, "failed": 0}
    try:
        with progress(len(found.items)) as display:
            printer.begin(display)
            for record in batch.run(zip((item.path for item in found.items), outputs, strict=True)):
                printer.show(record, display)
                display.advance()
                tally[record.status] += 1
            printer.end(display, tally)
    except KeyboardInterrupt as stop:
        if not found.many:
            raise
        print(
            f"lrphooks: {signals.word_for(stop)}: {tally['explained'] + tally['kept']} of {len(found.items)} pictures "
            "are done. The same command goes on from there.",
            file=sys.stderr,
        )
        return signals.status_of(stop)
    return FAILURE if tally["failed"] else SUCCESS


def _settings(options: argparse.Namespace, explainer: Explainer) -> dict[str, Any]:
    """Return all that a result depends on beside the picture."""
    model = explainer.model
    return {
        "lrphooks": __version__,
        "layout": LAYOUT,
        "model": options.model,
        "network": fingerprint(model),
        "classes": list(model.class_names) if options.labels else None,
        "prepared": str(model.preparation),
        "percentile": model.percentile,
        "composite": f"{options.composite.text}: {explainer.composite!r}",
        "target": options.target,
    }


COMMAND = Command(
    "explain",
    help="explain the prediction for pictures and draw the relevance",
    description="Explain what a trained network sees in pictures. Prints the prediction, the "
    "explained output f(x), the sum of the relevance and what was absorbed, and writes "
    "the picture and its heatmap side by side as a PNG. Of several pictures, those are left out that were finished "
    "before with the same settings, so that what was interrupted goes on where it was. Exits with 1 if a picture "
    "failed; the others are explained all the same.",
    arguments=_arguments,
    run=_run,
)
