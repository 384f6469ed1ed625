"""The program ``lrphooks``: its commands, and how it ends."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from lrphooks import __version__
from lrphooks.cli import audit, compare, composites, evaluate, explain, models, stream
from lrphooks.cli.command import FAILURE, INTERRUPTED, Command, CommandError

#: All commands, in the order of the help.
COMMANDS: tuple[Command, ...] = (
    explain.COMMAND,
    audit.COMMAND,
    compare.COMMAND,
    evaluate.COMMAND,
    stream.COMMAND,
    models.COMMAND,
    composites.COMMAND,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: all went well. 1: something failed, or the books do not balance. 2: it was called wrongly. 130: Ctrl-C.
    """
    # A console or pipe that cannot show the sigma gets a question mark, not a traceback.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    options = parser().parse_args(arguments)
    command = next(command for command in COMMANDS if command.name == options.command)
    try:
        status = command.run(options)
        sys.stdout.flush()
    except CommandError as error:
        print(f"lrphooks: error: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print("lrphooks: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has seen enough, as head does; Python would complain once more when it closes the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    return status


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
