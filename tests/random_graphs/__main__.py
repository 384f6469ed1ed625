"""``python -m tests.random_graphs 3000`` makes and checks the graphs of 3,000 seeds under all composites.

    python -m tests.random_graphs COUNT [--start SEED] [--with FEATURE ...] [--all] [--composite NAME ...] [--second]

Each graph is asked in all ways of checks.WAYS and audited, and compared with oracle.py. What fails is shrunk and
printed as code that runs by itself. Features that do not hold yet (kinds.FEATURES) are left out unless ``--with`` names
them, or ``--all``. The exit status is 1 where something fails.
"""

# ruff: noqa: T201 a command prints

import argparse
import sys
import time
import warnings
from collections import Counter

import torch

from .checks import COMPOSITES, failures, runs
from .graph import check_names, code, make
from .kinds import FEATURES, HOLDS
from .shrinking import shrunk


def main():
    """Check graphs, print what fails, and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.random_graphs")
    parser.add_argument("count", type=int)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--with", dest="features", action="append", default=[], choices=sorted(FEATURES))
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--composite", action="append", choices=list(COMPOSITES))
    parser.add_argument("--second", action="store_true", help="second derivatives, by finite differences")
    parser.add_argument("--most", type=int, default=20, help="how many failing graphs are shrunk and printed")
    asked = parser.parse_args()
    allowed = check_names(FEATURES if asked.all else {*HOLDS, *asked.features})
    names = tuple(asked.composite or COMPOSITES)
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    began, checked, failing, kinds = time.monotonic(), 0, 0, Counter()
    for seed in range(asked.start, asked.start + asked.count):
        graph = make(seed, allowed)
        if not runs(graph):
            kinds["not for torch"] += 1
            continue
        checked += 1
        found = failures(graph, names, allowed, second=asked.second)
        if not found:
            continue
        failing += 1
        kinds.update({line.split(":")[0].split(", ")[1] for line in found})
        if failing <= asked.most:
            small, lines = shrunk(graph, found, names, allowed)
            print(f"--- seed {seed}: {len(found)} wrong; first: {found[0]}\n# {lines[0]}\n{code(small)}\n", flush=True)
    print(f"{failing} of {checked} graphs wrong or raising, {time.monotonic() - began:.0f} s; {dict(kinds)}")
    return 1 if failing else 0


sys.exit(main())
