"""Timing in turn: every subject between two plain gradients, so that a slow minute of the machine slows both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.speed.cases import Case
from benchmarks.speed.subjects import Run, Subject, gradient_of, sharing
from lrphooks import composites

#: Rules for which zennit computes the same on networks of these cases, and how far apart the two may be.
EQUAL_ON = ("VGG-16", "tiny")
TOLERANCE = 1e-3


@dataclass
class Row:
    """What was measured of one subject on one model; ratios are to the plain gradient of the same run.

    low, high: the quartiles of the ratio. difference: to lrphooks under the same rule, over the largest relevance.
    """

    model: str
    batch: int
    subject: str
    ratio: float = 0.0
    low: float = 0.0
    high: float = 0.0
    seconds: float = 0.0
    memory: float = 0.0
    throughput: float = 0.0
    unit: str = "images"
    difference: float | None = None
    error: str = ""


@dataclass(frozen=True)
class Setting:
    """How it is measured."""

    batch: int
    size: int
    repeats: int = 5
    device: str = "cpu"
    dtype: torch.dtype = torch.float32


@dataclass
class _Open:
    """A subject that is ready to run."""

    subject: Subject
    run: Run
    ratios: list[float] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


def measure(case: Case, subjects: Sequence[Subject], setting: Setting) -> list[Row]:
    """Return a row for each subject on one model, and one for the gradient and one for a context."""
    torch.set_flush_denormal(True)
    model = case.model(setting.size).to(setting.device, setting.dtype)
    x = case.input(setting.batch, setting.size).to(setting.device, setting.dtype)
    rows = {s.name: Row(case.name, setting.batch, s.name, unit=case.unit) for s in subjects}
    gradient = gradient_of(model)
    gradient(x)
    with ExitStack() as stack:
        ready = _opened(model, x, subjects, rows, stack)
        _check(case, ready, rows, x)
        base, everything = _timed_in_turn(gradient, ready, x, setting)
        plain = _peak(gradient, x)
        for each in ready:
            _fill(rows[each.subject.name], each, setting, plain, x)
    own = Row(case.name, setting.batch, "gradient", 1.0, 1.0, 1.0, base, 1.0, unit=case.unit)
    own.throughput = _amount(case.unit, setting) / base
    own.low, own.high = (edge / base for edge in _quartiles(everything))
    return [own, *rows.values(), _context(case, model, setting, base)]


def as_records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as they are written to JSON."""
    return [asdict(row) for row in rows]


def _opened(
    model: nn.Module, x: Tensor, subjects: Sequence[Subject], rows: dict[str, Row], stack: ExitStack
) -> list[_Open]:
    ready = []
    for subject in subjects:
        run = _started(model, x, subject, rows[subject.name], stack)
        if run is not None:
            ready.append(_Open(subject, run))
    return ready


def _started(model: nn.Module, x: Tensor, subject: Subject, row: Row, stack: ExitStack) -> Run | None:
    """Run a subject once; where it fails, its row shows the error."""
    try:
        run = subject.open(model, stack)
        run(x)
    except Exception as error:
        row.error = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        return None
    return run


def _check(case: Case, ready: list[_Open], rows: dict[str, Row], x: Tensor) -> None:
    """Compare the peers with lrphooks before anything is timed, and refuse to time what should be equal and is not."""
    own = {each.subject.rule: each.run for each in ready if each.subject.peer == "lrphooks"}
    for each in ready:
        rule = each.subject.rule
        if each.subject.peer in ("lrphooks", "torch") or rule not in own:
            continue
        expected = own[rule](x)
        largest = expected.abs().max()
        difference = float((each.run(x) - expected).abs().max() / largest)
        rows[each.subject.name].difference = difference
        if case.name in EQUAL_ON and x.dtype == torch.float32:
            assert difference < TOLERANCE, f"{each.subject.name} differs by {difference:.2g} on {case.name}"


def _timed_in_turn(gradient: Run, ready: list[_Open], x: Tensor, setting: Setting) -> tuple[float, list[float]]:
    """Fill in the times; return the median of the gradient and all its times."""
    before = _seconds(gradient, x)
    plain = [before]
    for _ in range(setting.repeats):
        for each in ready:
            taken = _seconds(each.run, x)
            after = _seconds(gradient, x)
            each.times.append(taken)
            each.ratios.append(2 * taken / (before + after))
            before = after
            plain.append(after)
    return statistics.median(plain), plain


def _fill(row: Row, each: _Open, setting: Setting, plain: int, x: Tensor) -> None:
    row.ratio, row.seconds = statistics.median(each.ratios), statistics.median(each.times)
    row.low, row.high = _quartiles(each.ratios)
    row.throughput = _amount(row.unit, setting) / row.seconds
    row.memory = _peak(each.run, x) / plain


def _amount(unit: str, setting: Setting) -> int:
    return setting.batch * (setting.size if unit == "tokens" else 1)


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, high


def _seconds(run: Run, x: Tensor) -> float:
    _wait(x)
    start = time.perf_counter()
    run(x)
    _wait(x)
    return time.perf_counter() - start


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize()


def _peak(run: Run, x: Tensor) -> int:
    """Return the most bytes allocated at a time during one run, beyond those before it."""
    if x.is_cuda:
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(x)
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run(x)
    current = most = 0
    results = found.profiler.kineto_results
    assert results is not None
    changes = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda e: e.start_ns()):
        current += event.nbytes()
        most = max(most, current)
    return most


def _context(case: Case, model: nn.Module, setting: Setting, base: float) -> Row:
    """Return what it costs to enter and leave a context."""
    times = []
    shared = sharing(model)
    for _ in range(max(3, setting.repeats)):
        start = time.perf_counter()
        with composites.EpsilonPlus().context(shared):
            pass
        times.append(time.perf_counter() - start)
    low, high = (edge / base for edge in _quartiles(times))
    middle = statistics.median(times)
    return Row(case.name, setting.batch, "enter and leave a context", middle / base, low, high, middle, unit=case.unit)
