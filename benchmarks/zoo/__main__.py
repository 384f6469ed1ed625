"""Measure relevance on the models of the usual libraries, and write the table.

python -m benchmarks.zoo                       # lrphooks on every model, to docs/coverage.md
python -m benchmarks.zoo --resume --peers      # what no earlier run has measured, and the other libraries
python -m benchmarks.zoo --only 'timm/*' --workers 4
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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

#: Sources whose models fill a process; of others, so many measurements share one.
LARGE, BATCH = ("timm", "torchvision"), 24


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
    parser.add_argument("--workers", type=int, default=1, help="measurements at a time (default 1)")
    parser.add_argument("--seconds", type=int, default=180, help="processor time for one measurement (default 180)")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="memory for one measurement (default 8)")
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
    own = [Job(place, source, key, "lrphooks") for place, (source, key) in enumerate(wanted)]
    _measure(own, results, options)
    if options.peers:
        # The cheapest models first, so that a run that is stopped has the most.
        cheapest = sorted(own, key=lambda job: results.seconds(job.key))
        _measure([replace(job, kind=name) for job in cheapest for name in _peers(job.source)], results, options)


def _measure(jobs: list[Job], results: Results, options: argparse.Namespace) -> None:
    missing = [job for job in jobs if not results.has(job.key, job.kind, again=options.again)]
    pool = Pool(measured, options.seconds, options.gigabytes)
    engine = _commit()
    start, done, lock = time.perf_counter(), itertools.count(1), threading.Lock()

    def work(batch: Sequence[Job]) -> None:
        for job, result in zip(batch, pool.call([(j.source, j.key, j.kind) for j in batch]), strict=True):
            row = {"key": job.key, "by": job.kind, "place": job.place, "engine": engine, **result}
            with lock:
                results.add(row)
                passed = time.perf_counter() - start
                print(f"{next(done)}/{len(missing)} {passed:.0f}s {job.kind:9}{report.line(row)}", flush=True)

    with ThreadPoolExecutor(options.workers) as threads:
        for future in [threads.submit(work, batch) for batch in _batches(missing)]:
            future.result()


def _batches(jobs: list[Job]) -> Iterator[Sequence[Job]]:
    """Yield jobs that may share a process: a few of small models, or all of one large model."""
    for source, group in itertools.groupby(jobs, lambda job: job.source):
        alike = list(group)
        if source in LARGE:
            for _, same in itertools.groupby(alike, lambda job: job.key):
                yield list(same)
        else:
            yield from (alike[i : i + BATCH] for i in range(0, len(alike), BATCH))


def _peers(source: str) -> Iterator[str]:
    return (name for name, peer in PEERS.items() if peer.serves(source))


def _commit() -> str:
    """Return the commit of the checkout that is measured."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


@dataclass(frozen=True)
class Job:
    """One measurement to make: of which model, by which library; ``place`` is the model's among all rows."""

    place: int
    source: str
    key: str
    kind: str


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

    def seconds(self, key: str) -> float:
        """Return how long lrphooks took on a model, 0 where that is not known."""
        return float(self._rows.get((key, "lrphooks"), {}).get("wall", 0.0))

    def rows(self) -> list[dict[str, Any]]:
        """Return the last measurement of each model by each library."""
        return list(self._rows.values())


if __name__ == "__main__":
    main()
