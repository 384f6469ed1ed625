"""``lrphooks models``: what can be named as a model, and whether it can be used here."""

from __future__ import annotations

import argparse
import json
import sys

from lrphooks.cli import reporting
from lrphooks.cli.command import SUCCESS, CommandError
from lrphooks.cli.output import emit, printable
from lrphooks.models import SOURCES, search


def run(options: argparse.Namespace) -> int:
    """Print where models come from, or which there are."""
    return _sources(options) if options.pattern is None else _search(options)


def _sources(options: argparse.Namespace) -> int:
    if options.json:
        listed = [
            {"form": source.form, "about": source.about, "needs": source.needs or None, "missing": source.missing()}
            for source in SOURCES
        ]
        emit(json.dumps(listed, indent=2))
        return SUCCESS
    missing = {source.form: source.missing() for source in SOURCES}
    rows = [("--model", "what it is", "needs", "here")]
    rows += [(s.form, s.about, s.needs or "nothing", "no" if missing[s.form] else "yes") for s in SOURCES]
    for line in reporting.table(rows):
        emit(line)
    for reason in dict.fromkeys(reason for reason in missing.values() if reason):
        emit()
        for line in reporting.paragraph(reason):
            emit(line)
    emit()
    for line in reporting.paragraph("lrphooks models 'torchvision:*' lists names; so does any other pattern."):
        emit(line)
    return SUCCESS


def _search(options: argparse.Namespace) -> int:
    missing = {source: source.missing() for source in SOURCES}
    found = [name for source in SOURCES if missing[source] is None for name in search(source, options.pattern)]
    unsearched = [reason for reason in missing.values() if reason is not None]
    if not found:
        more = f" Some could not be searched. {' '.join(unsearched)}" if unsearched else ""
        raise CommandError(f"no model's name matches {options.pattern}: try '*{options.pattern.strip('*')}*'.{more}")
    if options.json:
        emit(json.dumps(found, indent=2))
    else:
        emit("\n".join(found))
        for reason in unsearched:
            print(f"lrphooks: not searched: {printable(reason)}", file=sys.stderr)
    return SUCCESS
