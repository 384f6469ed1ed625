"""The program ``lrphooks``: its commands, and how it ends."""

from __future__ import annotations

import argparse
import io
import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from lrphooks import __version__
from lrphooks.cli import files, memory, output, signals
from lrphooks.cli.command import FAILURE, CommandError
from lrphooks.cli.commands import COMMANDS

#: Set in the environment, it shows where an error that nobody foresaw comes from.
TRACEBACK = "LRPHOOKS_TRACEBACK"


def run(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; without arguments, as the program that the process is."""
    program = arguments is None
    try:
        # A console or pipe that cannot show the sigma gets a question mark, not a traceback.
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")
        options = _options(arguments)
        run_command = next(command for command in COMMANDS if command.name == options.command).load()
        with ExitStack() as stack:
            if program:
                stack.enter_context(signals.stoppable())
            stack.enter_context(output.results_alone(program=program))
            if program and getattr(options, "device", "cpu") == "cpu":
                memory.limit()
            files.begin()
            return run_command(options)
    except CommandError as error:
        output.complain(str(error))
        return error.status
    except KeyboardInterrupt as stop:
        print(f"lrphooks: {signals.word_for(stop)}", file=sys.stderr)
        return signals.status_of(stop)
    except BrokenPipeError:
        # The reader has seen enough, as head does.
        output.settle()
        return FAILURE
    # Whatever it is, a person gets a line; who looks for the cause asks for more.
    except Exception as error:
        if os.environ.get(TRACEBACK):
            raise
        place = traceback.extract_tb(error.__traceback__)[-1]
        output.complain(
            f"{output.reason(error)} (in {Path(place.filename).name}, line {place.lineno}). This was not foreseen: set "
            f"{TRACEBACK}=1 to see where it comes from, and please report it."
        )
        return FAILURE


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    try:
        return parser().parse_args(arguments)
    finally:
        output.settle()  # the help


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    program = argparse.ArgumentParser(
        prog="lrphooks", description="Layer-wise Relevance Propagation for PyTorch models."
    )
    program.add_argument("--version", action="version", version=f"lrphooks {__version__}")
    commands = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.arguments(commands.add_parser(command.name, help=command.help, description=command.description))
    return program
