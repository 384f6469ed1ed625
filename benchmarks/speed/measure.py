"""Timing in turn: every subject between two plain gradients, so that a slow minute of the machine slows both."""

from __future__ import annotations

import multiprocessing
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.speed.cases import CASES, Case
from benchmarks.speed.memory import keep_freed, peak
from benchmarks.speed.subjects import SUBJECTS, Run, Subject, gradient_of, sharing
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
    """How it is measured; ``keeps`` tells whether memory that was freed is kept."""

    batch: int
    size: int
    repeats: int = 5
    device: str = "cpu"
    dtype: torch.dtype = torch.float32
    keeps: bool = False


@dataclass(frozen=True)
class _Open:
    """A subject that is ready to run."""

    subject: Subject
    run: Run


def measure(case: Case, subjects: Sequence[Subject], setting: Setting) -> list[Row]:
    """Return a row for each subject on one model, and one for the gradient and one for a context."""
    own, *rows, context = _measure(case, [s for s in subjects if not (s.alone or s.compiled)], setting)
    if compiled := [s for s in subjects if s.compiled]:
        rows += _measure(case, compiled, setting)[1:-1]
    for subject in subjects:
        if subject.alone:
            rows.append(_in_a_process(case, subject, setting))
    order = [subject.name for subject in subjects]
    return [own, *sorted(rows, key=lambda row: order.index(row.subject)), context]


def _in_a_process(case: Case, subject: Subject, setting: Setting) -> Row:
    """Return the row of a subject that is measured beside a gradient in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_alone, case.name, subject.name, setting, torch.get_num_threads()).result()


def _alone(case: str, subject: str, setting: Setting, threads: int) -> Row:
    torch.set_num_threads(threads)
    warnings.simplefilter("ignore")
    if setting.keeps:
        keep_freed()
    return _measure(CASES[case], [SUBJECTS[subject]], setting)[1]


def _measure(case: Case, subjects: Sequence[Subject], setting: Setting) -> list[Row]:
    torch.set_flush_denormal(True)
    model = case.model(setting.size).to(setting.device, setting.dtype)
    x = case.input(setting.batch, setting.size).to(setting.device, setting.dtype)
    rows = {s.name: Row(case.name, setting.batch, s.name, unit=case.unit) for s in subjects}
    gradient = gradient_of(model)
    gradient(x)
    with ExitStack() as stack:
        ready = _opened(model, x, subjects, rows, stack)
        _check(case, ready, rows, x)
        runs = {each.subject.name: each.run for each in ready}
        times, ratios = in_turn(gradient, runs, x, setting.repeats)
        base, plain = statistics.median(times[""]), peak(gradient, x)
        for name, run in runs.items():
            row = rows[name]
            row.ratio, row.seconds = statistics.median(ratios[name]), statistics.median(times[name])
            row.low, row.high = quartiles(ratios[name])
            row.throughput = _amount(row.unit, setting) / row.seconds
            row.memory = peak(run, x) / plain
    own = Row(case.name, setting.batch, "gradient", 1.0, 1.0, 1.0, base, 1.0, unit=case.unit)
    own.throughput = _amount(case.unit, setting) / base
    own.low, own.high = (edge / base for edge in quartiles(times[""]))
    return [own, *rows.values(), _context(case, model, setting, base)]


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


def in_turn(
    base: Run, runs: Mapping[str, Run], x: Tensor, repeats: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Return the seconds of each run, those of the base under an empty name, and the ratios to the base.

    Every run stands between two of the base, so that a slow minute of the machine slows both.
    """
    before = _seconds(base, x)
    times: dict[str, list[float]] = {"": [before], **{name: [] for name in runs}}
    ratios: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            taken = _seconds(run, x)
            after = _seconds(base, x)
            times[name].append(taken)
            ratios[name].append(2 * taken / (before + after))
            before = after
            times[""].append(after)
    return times, ratios


def _amount(unit: str, setting: Setting) -> int:
    return setting.batch * (setting.size if unit == "tokens" else 1)


def quartiles(values: list[float]) -> tuple[float, float]:
    """Return the lower and the upper quartile."""
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


def _context(case: Case, model: nn.Module, setting: Setting, base: float) -> Row:
    """Return what it costs to enter and leave a context."""
    times = []
    shared = sharing(model)
    for _ in range(max(3, setting.repeats)):
        start = time.perf_counter()
        with composites.EpsilonPlus().context(shared):
            pass
        times.append(time.perf_counter() - start)
    low, high = (edge / base for edge in quartiles(times))
    middle = statistics.median(times)
    return Row(case.name, setting.batch, "enter and leave a context", middle / base, low, high, middle, unit=case.unit)
