"""Measure relevance on the models of the usual libraries, and write the table.

python -m benchmarks.zoo                     # everything, to docs/coverage.md
python -m benchmarks.zoo --resume            # what no earlier run has measured
python -m benchmarks.zoo --only 'timm/*' --print
"""

from __future__ import annotations

import argparse
import json
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from benchmarks.zoo import preload as _preload  # noqa: F401  (first: it sets what the libraries read on import)
from benchmarks.zoo import report
from benchmarks.zoo.peers import PEERS
from benchmarks.zoo.pool import Pool
from benchmarks.zoo.subjects import SOURCES, subjects
from benchmarks.zoo.task import measured

ROOT = Path(__file__).parents[2]


def main() -> None:
    """Run the command line."""
    options = _parser().parse_args()
    results = Results(options.results, resume=options.resume or options.report or options.list)
    if not options.report:
        wanted = _wanted(options.source or SOURCES, options.only)
        if options.list:
            print("\n".join(key for _, key in wanted))
            return
        _run(wanted, results, options)
    report.write(results.rows(), options.table)
    print(f"wrote {options.table}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description="Relevance on many models.")
    parser.add_argument("--source", action="append", choices=SOURCES, help="only models of this source")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="only models like timm/vit*")
    parser.add_argument("--resume", action="store_true", help="keep earlier results, measure what is missing")
    parser.add_argument("--again", action="store_true", help="with --resume, measure what had failed again")
    parser.add_argument("--peers", action="store_true", help="run zennit, captum, LXT and autoLRP beside")
    parser.add_argument("--list", action="store_true", help="print the models and leave")
    parser.add_argument("--report", action="store_true", help="write the table from earlier results and leave")
    parser.add_argument("--seconds", type=float, default=180.0, help="limit for one model (default 180)")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="limit for one model (default 8)")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks/zoo/results.jsonl", help="where results are kept"
    )
    parser.add_argument("--table", type=Path, default=ROOT / "docs/coverage.md", help="where the table is written")
    return parser


def _wanted(sources: Any, patterns: list[str]) -> list[tuple[str, str]]:
    found = []
    for source in sources:
        try:
            keys = [subject.key for subject in subjects(source)]
        except ImportError as error:
            print(f"{source}: left out, {error}")
            continue
        found += [(source, k) for k in keys if not patterns or any(fnmatchcase(k, p) for p in patterns)]
    return found


def _run(wanted: list[tuple[str, str]], results: Results, options: argparse.Namespace) -> None:
    pool = Pool(options.seconds, options.gigabytes)
    start = time.perf_counter()
    for number, (source, key) in enumerate(wanted, 1):
        kinds = ["lrphooks"]
        if options.peers:
            kinds += [name for name, peer in PEERS.items() if peer.serves(source)]
        for kind in kinds:
            if results.has(key, kind, again=options.again):
                continue
            row = {"key": key, "by": kind, **pool.call(measured, source, key, kind)}
            results.add(row)
            print(f"{number}/{len(wanted)} {time.perf_counter() - start:.0f}s {kind:9}{report.line(row)}", flush=True)


class Results:
    """Measurements, one JSON object a line, appended as they come."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self._path = path
        self._rows: dict[tuple[str, str], dict[str, Any]] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        if not resume:
            path.write_text("", encoding="utf-8")
        else:
            for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
                row = json.loads(text)
                self._rows[row["key"], row["by"]] = row
        self._earlier = set(self._rows)

    def has(self, key: str, kind: str, *, again: bool) -> bool:
        """Whether the measurement is there and need not be repeated."""
        found = (key, kind) in self._earlier
        return found and not (again and report.failed(self._rows[key, kind]))

    def add(self, row: dict[str, Any]) -> None:
        """Keep a measurement."""
        self._rows[row["key"], row["by"]] = row
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """Return the last measurement of each model by each library."""
        return list(self._rows.values())


if __name__ == "__main__":
    main()
