"""Measure the price of relevance beside the plain gradient and beside other libraries.

python -m benchmarks.speed                                  # all models, batch 4
python -m benchmarks.speed --quick                          # small images, under two minutes
python -m benchmarks.speed --launch                         # small inputs, batch 1: what Python costs, and entering
python -m benchmarks.speed --growth depth --growth targets   # how cost grows
python -m benchmarks.speed --model ResNet-50 --batch 1 --batch 8 --json speed.json --table docs/speed.md
python -m benchmarks.speed --join a.json --join b.json --table docs/speed.md   # one page of several runs
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.speed import cases, growth, report, subjects
from benchmarks.speed.measure import Setting, measure
from benchmarks.speed.memory import keep_freed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    # Only what is asked for, where anything is.
    usual = cases.LAUNCH if options.launch else cases.QUICK if options.quick else cases.USUAL
    names = options.model or (() if options.growth else usual)
    if options.join:
        joined = report.Found.joined(path.read_text() for path in options.join)
        print(_kept(joined, options))
        return _drawn(joined, options)
    keeps = not options.returns and keep_freed()
    found = report.Found([_command(arguments)], report.machine(options.device, options.threads, keeps=keeps))
    page = ""
    for name in names:
        case = cases.CASES[name]
        asked = options.subject or (subjects.QUICK if options.quick else case.subjects)
        chosen = [subjects.SUBJECTS[n] for n in (subjects.SUBJECTS if "all" in asked else asked)]
        if options.compile:
            chosen += subjects.COMPILED
        for batch in options.batch or ([1] if options.quick or options.launch else [4]):
            size = options.size or (case.quick if options.quick else case.size)
            size = cases.LAUNCH.get(name, size) if options.launch and not options.size else size
            repeats = options.repeats or (3 if options.quick else 30 if options.launch else 7)
            setting = Setting(batch, size, repeats, options.device, getattr(torch, options.dtype), keeps)
            found.rows += measure(case, chosen, setting)
            print(f"{name}, batch {batch}: done", file=sys.stderr)
            page = _kept(found, options)
    for name in options.growth:
        setting = Setting(1, 0, options.repeats or 3, options.device, getattr(torch, options.dtype))
        found.points += growth.measure(growth.GROWTHS[name], setting, quick=options.quick, values=options.value)
        print(f"growth with the {name}: done", file=sys.stderr)
        page = _kept(found, options)
    print(page)
    return _drawn(found, options)


def _command(arguments: Sequence[str]) -> str:
    """Return the command line that measures the same, without the places that results were written to."""
    kept = [
        a for i, a in enumerate(arguments) if not {a, *arguments[max(0, i - 1) : i]} & {"--json", "--table", "--plot"}
    ]
    return shlex.join(["python", "-m", "benchmarks.speed", *kept])


def _kept(found: report.Found, options: argparse.Namespace) -> str:
    """Write what was measured so far, so that a run that is stopped leaves it, and return the page."""
    page = report.table(found)
    if options.table:
        options.table.write_text(page)
    if options.json:
        options.json.write_text(found.written())
    return page


def _drawn(found: report.Found, options: argparse.Namespace) -> int:
    if options.plot and not report.plot(found.rows, found.points, options.plot):
        print("no plot: matplotlib is not installed", file=sys.stderr)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="The price of relevance.")
    parser.add_argument("--quick", action="store_true", help="three models, small inputs, batch 1, three repeats")
    parser.add_argument("--launch", action="store_true", help="small inputs, batch 1, where Python decides")
    parser.add_argument("--model", action="append", choices=cases.CASES, help="only this model; may be repeated")
    parser.add_argument(
        "--subject",
        action="append",
        choices=(*subjects.SUBJECTS, "all"),
        help="only this, or all; may be repeated (default: those for the kind of model)",
    )
    parser.add_argument(
        "--growth", action="append", default=[], choices=growth.GROWTHS, help="how cost grows with it; may be repeated"
    )
    parser.add_argument("--value", action="append", type=int, default=[], help="a value of what grows; may be repeated")
    parser.add_argument("--batch", action="append", type=int, help="batch size (default 4); may be repeated")
    parser.add_argument("--size", type=int, help="side of the images, or number of tokens")
    parser.add_argument("--repeats", type=int, help="measurements of each subject (default 7)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument(
        "--returns",
        action="store_true",
        help="let the C library return freed memory to the system, as it would",
    )
    parser.add_argument("--compile", action="store_true", help="time compiled gradients and relevance as well")
    parser.add_argument("--json", type=Path, help="write the measurements there")
    parser.add_argument("--table", type=Path, help="write the page there")
    parser.add_argument("--join", action="append", type=Path, help="the page of such a JSON, or of several")
    parser.add_argument("--plot", type=Path, help="draw the ratios there, where matplotlib is installed")
    return parser


if __name__ == "__main__":
    sys.exit(main())
