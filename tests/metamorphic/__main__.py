"""``python -m tests.metamorphic [FUNCTION ...]`` prints the lines of the cases that fail, for failures.py, and why.

Functions are chosen by parts of their names. The lines go to the output, reasons to the error stream.
"""

# ruff: noqa: T201 a command prints

import sys
import warnings
from itertools import groupby

import torch

from .failures import short
from .networks import compare
from .table import TABLE, cases


def main(wanted):
    """Run all cases and print what fails."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    chosen = [case for case in cases() if not wanted or any(part in case[0] for part in wanted)]
    total = failed = 0
    for (name, spelling), group in groupby(chosen, lambda case: case[:2]):
        found = {}
        for _, _, composite in group:
            total += 1
            try:
                different = compare(TABLE[name], spelling, composite)
            except AssertionError as error:
                different = [f"no case: {error}"]
            if different:
                found[composite] = different
        failed += len(found)
        if found:
            print(f"{name} | {spelling} | {short(tuple(found), TABLE[name].composites)}", flush=True)
            composite, different = next(iter(found.items()))
            print(f"  {composite}: {'; '.join(different)}", file=sys.stderr, flush=True)
    print(f"{failed} of {total} cases fail", file=sys.stderr)


main(sys.argv[1:])
