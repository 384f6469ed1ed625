"""``lrphooks audit``: balance the books of one picture."""

from __future__ import annotations

import argparse
import json
import math

from lrphooks import Composite, audit
from lrphooks.audit.report import worth_reading
from lrphooks.cli import arguments, reporting
from lrphooks.cli.command import SUCCESS, Command, CommandError
from lrphooks.cli.explaining import reason
from lrphooks.cli.output import emit
from lrphooks.cli.subject import add_picture, subject_of

# What float32 leaves unexplained is a hundredth of this, and less.
DEFAULT_TOLERANCE = 1e-3


def _arguments(parser: argparse.ArgumentParser) -> None:
    add_picture(parser)
    arguments.add_composite(parser)
    arguments.add_target(parser, several=False)
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=DEFAULT_TOLERANCE,
        metavar="T",
        help="how much may stay unexplained, as a part of the largest amount in the books; default: "
        f"{DEFAULT_TOLERANCE:g}",
    )
    parser.add_argument(
        "--all", action="store_true", help="print every call of a module, not only those that absorbed most"
    )
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON, and nothing else")
    arguments.add_model(parser)


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is no tolerance: it must be a number of at least 0")
    return value


def _run(options: argparse.Namespace) -> int:
    subject = subject_of(options)
    composite = options.composite.make(subject.model)
    if not isinstance(composite, Composite):
        raise CommandError(f"{options.composite.text} is no composite of rules, so there are no books to balance.")
    try:
        report = audit(subject.model.network, subject.x, subject.target, composite)
    # A person's own network fails in any way.
    except Exception as error:
        raise CommandError(reason(error)) from error
    if options.json:
        emit(json.dumps(report.to_dict(), indent=2))
    else:
        for line in (*subject.lines(options), reporting.of_composite(options.composite.text, composite)):
            emit(line)
        emit(f"\n{report.text(everything=options.all)}")
        if len(worth_reading(report.layers)) < len(report.layers) and not options.all:
            emit("\nGive --all to see every call.")
    # A sum that is not a number is no sum that balances.
    if not report.unexplained <= options.tolerance:
        raise CommandError(
            f"{report.unexplained:.1e} of the largest amount in the books is unexplained, above the tolerance of "
            f"{options.tolerance:g}."
        )
    return SUCCESS


COMMAND = Command(
    "audit",
    help="show where every part of the explained output went",
    description="Explain a picture and balance the books: f(x) is the sum of the relevance and of what biases, "
    "stabilizers and others absorbed, each computed from its own formula. Prints f(x), the sums, what the "
    "modules absorbed and which rules the operations had. Exits with 1 if more than a tolerance is unexplained.",
    arguments=_arguments,
    run=_run,
)
