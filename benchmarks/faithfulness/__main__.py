"""Measure how faithful explanations are on trained networks, beside other methods, and write the page.

python -m benchmarks.faithfulness --fetch                   # fetch weights and pictures once, about 270 MB
python -m benchmarks.faithfulness                           # everything that no earlier run has measured
python -m benchmarks.faithfulness --network mobilenet-v2 --method 'EpsilonPlus*' --images 20

Each result is kept as it comes, so a run that is stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path

import benchmarks.zoo.subjects.shim  # noqa: F401  (before torchvision)

# isort: split
import torch

from benchmarks.faithfulness import assets, report
from benchmarks.faithfulness.measure import Bench, Row, Setting
from benchmarks.faithfulness.methods import SUBJECTS
from benchmarks.faithfulness.networks import NETWORKS, load

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)
    if options.fetch:
        for package in assets.ALL:
            print(package.folder)
        return 0
    setting = Setting(options.images, options.mosaics, options.steps)
    rows = _kept(options.results)
    if not options.report:
        for name in options.network or NETWORKS:
            _measure(name, options.method, setting, rows, options)
    command = shlex.join(["python", "-m", "benchmarks.faithfulness", *_measured(arguments)])
    shown = [row for row in rows.values() if row.setting == asdict(setting)]
    if shown:
        options.table.write_text(report.table(shown, command))
        report.plot(shown, options.plot)
        print(f"wrote {options.table} and {options.plot}")
    return 0


def _measure(
    name: str, patterns: Sequence[str], setting: Setting, rows: dict[tuple[str, ...], Row], options: argparse.Namespace
) -> None:
    wanted = [s for s in SUBJECTS if not patterns or any(fnmatchcase(s.name, pattern) for pattern in patterns)]
    network = load(name, setting.images)
    wanted = [s for s in wanted if _key(network.name, s.name, asdict(setting)) not in rows]
    if not wanted:
        return
    bench = Bench.of(network, setting)
    for subject in wanted:
        row = bench.measure(subject)
        rows[_key(row.network, row.method, row.setting)] = row
        with options.results.open("a") as file:
            file.write(json.dumps(row.as_dict()) + "\n")
        found = row.error or f"{report.result(row.gain).mean:.3f}"
        print(f"{row.network}, {row.method}: {found}", file=sys.stderr)


def _key(network: str, method: str, setting: dict[str, object]) -> tuple[str, ...]:
    return network, method, json.dumps(setting, sort_keys=True)


def _kept(path: Path) -> dict[tuple[str, ...], Row]:
    if not path.exists():
        return {}
    rows = [Row(**json.loads(line)) for line in path.read_text().splitlines()]
    return {_key(row.network, row.method, row.setting): row for row in rows}


def _measured(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without the places that results were written to."""
    places = {"--results", "--table", "--plot"}
    kept = [a for i, a in enumerate(arguments) if not {a, *arguments[max(0, i - 1) : i]} & places]
    return [argument for argument in kept if argument != "--report"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faithfulness", description="Faithfulness.")
    parser.add_argument("--fetch", action="store_true", help="fetch weights and pictures into the cache and leave")
    parser.add_argument("--network", action="append", choices=NETWORKS, help="only this network; may be repeated")
    parser.add_argument("--method", action="append", default=[], metavar="PATTERN", help="only methods like Epsilon*")
    parser.add_argument("--images", type=int, default=60, help="pictures at most (default 60)")
    parser.add_argument("--mosaics", type=int, default=4, help="mosaics at most, four explanations each (default 4)")
    parser.add_argument("--steps", type=int, default=14, help="points of a curve (default 14)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    parser.add_argument("--report", action="store_true", help="write the page from earlier results and leave")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks/faithfulness/results.jsonl", help="where results are kept"
    )
    parser.add_argument("--table", type=Path, default=ROOT / "docs/faithfulness.md", help="where the page is written")
    parser.add_argument("--plot", type=Path, default=ROOT / "docs/images/faithfulness.png", help="and the plot")
    return parser


if __name__ == "__main__":
    sys.exit(main())
