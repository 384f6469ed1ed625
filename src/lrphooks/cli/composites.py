"""``lrphooks composites``: the presets, what they take, do and come from."""

from __future__ import annotations

import argparse
import inspect
import json

from lrphooks.cli import reporting
from lrphooks.cli.command import SUCCESS, Command
from lrphooks.cli.methods import PRESETS, described, documented


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, and nothing else")


def _run(options: argparse.Namespace) -> int:
    if options.json:
        listed = []
        for name, preset in PRESETS.items():
            about, paper = documented(name)
            listed.append(
                {"name": name, "arguments": [*inspect.signature(preset).parameters], "about": about} | {"paper": paper}
            )
        print(json.dumps(listed, indent=2))
        return SUCCESS
    for name in PRESETS:
        about, paper = documented(name)
        for line in (described(name), *reporting.paragraph(about, 4), *reporting.paragraph(paper, 4), ""):
            print(line)
    for line in reporting.paragraph(
        "Arguments are given as 'EpsilonGammaBox(gamma=0.5)'. A composite of your own is named as MODULE:COMPOSITE, a "
        "lrphooks.Composite or a function that returns one; modules of the current directory are found."
    ):
        print(line)
    return SUCCESS


COMMAND = Command(
    "composites",
    help="list the composites that can be named",
    description="List the composites that --composite can name, with their arguments, what they do, and the paper.",
    arguments=_arguments,
    run=_run,
)
