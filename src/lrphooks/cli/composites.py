"""``lrphooks composites``: the presets, what they take, do and come from."""

from __future__ import annotations

import argparse
import json
from typing import Any

from lrphooks.cli import reporting
from lrphooks.cli.command import SUCCESS
from lrphooks.cli.methods import BASELINES, METHODS, PRESETS, described, documented
from lrphooks.cli.output import emit


def run(options: argparse.Namespace) -> int:
    """Print the composites."""
    if options.json:
        emit(json.dumps([_to_dict(name) for name in METHODS], indent=2))
        return SUCCESS
    for name in PRESETS:
        _print(name)
    emit("To compare with, these are named in the same way, though they are no rules of LRP:\n")
    for name in BASELINES:
        _print(name)
    for line in reporting.paragraph(
        "Arguments are given as 'EpsilonGammaBox(gamma=0.5)', with quotes for the shell. A composite of your own is "
        "named as MODULE:COMPOSITE, a lrphooks.Composite or a function that returns one; modules of the current "
        "directory are found."
    ):
        emit(line)
    return SUCCESS


def _to_dict(name: str) -> dict[str, Any]:
    about, paper = documented(name)
    return {"name": name, "call": described(name), "rules": name in PRESETS, "about": about, "paper": paper}


def _print(name: str) -> None:
    about, paper = documented(name)
    for line in (
        *reporting.paragraph(described(name), 0, 4),
        *reporting.paragraph(about, 4),
        *reporting.paragraph(paper, 4),
        "",
    ):
        emit(line)
