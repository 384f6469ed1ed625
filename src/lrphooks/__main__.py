"""Run the command line: ``python -m lrphooks``."""

import sys

from lrphooks.cli import main

if __name__ == "__main__":
    sys.exit(main())
