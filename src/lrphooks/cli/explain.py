"""``lrphooks explain``: draw the relevance of pictures."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from lrphooks import __version__
from lrphooks.cli import arguments, inputs, signals
from lrphooks.cli.batch import Batch
from lrphooks.cli.command import FAILURE, SUCCESS
from lrphooks.cli.drawing import Drawing, check_colours
from lrphooks.cli.explaining import Explainer
from lrphooks.cli.printing import printer_for
from lrphooks.cli.progress import progress
from lrphooks.cli.results import LAYOUT, Store, fingerprint


def run(options: argparse.Namespace) -> int:
    """Explain pictures, and write and print what was found."""
    arguments.check_picture_given(options, options.pictures)
    found = inputs.find(options.pictures or [str(arguments.sample())])
    arguments.choose_model(options, [item.path for item in found.items] if options.pictures else [])
    output = options.output if options.pictures else options.output or Path()
    outputs = inputs.outputs(found, output)
    model = arguments.model_of(options)
    explainer = arguments.explainer_of(options, model, options.composite)
    chosen = inputs.output_file(options.output) is not None
    # A single picture is always explained: whoever asks for one wants it now.
    store = Store(_settings(options, explainer), again=options.again, chosen=chosen, resumed=found.many)
    drawing = Drawing(options.style, options.colours, options.percentile, options.scale)
    check_colours(options.colours)
    batch = Batch(
        explainer, store, options.composite.text, model.rows or options.batch_size, drawing, options.save is not None
    )
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
        "against": options.against,
        "drawing": [options.style, options.colours, options.percentile, options.scale],
        "save": options.save,
    }
