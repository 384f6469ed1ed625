"""The command line: ``lrphooks explain`` draws the relevance of pictures, ``lrphooks audit`` balances its books.

Each command is a module of its own with a ``COMMAND``, and is listed in :data:`lrphooks.cli.program.COMMANDS`.
"""

from lrphooks.cli.program import main

__all__ = ["main"]
