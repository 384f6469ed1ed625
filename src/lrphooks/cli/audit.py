"""``lrphooks audit``: balance the books of one picture."""

from __future__ import annotations

import argparse
import json

from lrphooks import Composite, audit
from lrphooks.audit.report import worth_reading
from lrphooks.cli import reporting
from lrphooks.cli.command import SUCCESS, CommandError
from lrphooks.cli.explaining import reason
from lrphooks.cli.output import emit
from lrphooks.cli.subject import subject_of


def run(options: argparse.Namespace) -> int:
    """Balance the books of one picture."""
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
