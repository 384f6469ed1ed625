"""The command line: ``lrphooks explain`` draws the relevance of pictures, ``lrphooks audit`` balances its books.

Each command is listed with its options in :data:`lrphooks.cli.commands.COMMANDS`, and does what ``run`` of the module
of its name does. This module imports nothing, for :mod:`lrphooks` asks it first of all what Ctrl-C means.
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status; without arguments, those that the program was called with.

    0: all went well. 1: something failed, or the books do not balance. 2: it was called wrongly. 130: Ctrl-C; another
    signal that ends it gives 128 and its number, as shells expect.
    """
    from lrphooks.cli import program  # noqa: PLC0415  only now: it imports all the rest

    return program.run(arguments)
