"""What is measured on one model: does it run, is anything lost, is the forward value the same, what does it cost."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from benchmarks.zoo.case import Case, Subject, default_dtype, tensors_of
from benchmarks.zoo.weights import perturb, remove_additive
from lrphooks import audit
from lrphooks.composite import Composite
from lrphooks.composites import CPLRP, AttnLRP, EpsilonPlus
from lrphooks.engine.errors import UnmatchedError, UnmatchedWarning
from lrphooks.matching import describe as describe_matcher

#: What the audit may leave unexplained.
UNEXPLAINED = {torch.float64: 1e-9, torch.float32: 1e-3}

#: Noted on a row whose model has no value without additive parameters.
NOT_FINITE = "not finite without additive parameters"

#: Runs of each kind; the shortest counts, which other work on the machine disturbs the least.
REPEATS = 3


@dataclass
class Measurement:
    """One row of the table.

    error: why the model could not be served.
    value: f(x) in float64; offset: what it is at x = 0 without additive parameters, over f(x): not 0, some are left.
    conserved: |f(x) - sum R| over the larger of the two, in float64, without additive parameters, softmax constant.
    conserved32: the same in float32.
    cancellation: sum |R| over |f(x)|: how many digits the sum loses by itself.
    identical: whether the forward value is that of the plain model, bit by bit; None where the plain model does not
    repeat itself.
    unexplained, unexplained32: as the audit tells, with all parameters, in float64 and float32.
    fallbacks: operations that no rule served.
    ratio: time of relevance over the time of the plain gradient, forward pass included.
    default: the error of the default composite, empty if it ran.
    entries: what was put in front of every composite, as code; refused: the error without it.
    """

    key: str
    error: str = ""
    parameters: int = 0
    value: float | None = None
    offset: float | None = None
    conserved: float | None = None
    conserved32: float | None = None
    cancellation: float | None = None
    identical: bool | None = None
    unexplained: float | None = None
    unexplained32: float | None = None
    fallbacks: list[str] = field(default_factory=list)
    ratio: float | None = None
    seconds: float | None = None
    default: str = ""
    entries: list[str] = field(default_factory=list)
    refused: str = ""
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the row as plain data."""
        return asdict(self)


def measure(subject: Subject) -> Measurement:
    """Measure one model."""
    row = Measurement(subject.key)
    with default_dtype(torch.float64):
        _measure_double(subject.case(torch.float64, perturb), row)
    with default_dtype(torch.float32):
        _measure_single(subject.case(torch.float32, perturb), row)
    return row


def _measure_double(case: Case, row: Measurement) -> None:
    try:
        _check_gradient(case)
        _compare_forward(case, row)
    except NoGradientError as error:
        # Some models run in single precision alone; their forward value is compared there.
        row.notes.append(f"does not run in double precision: {error}")
    with Double():
        try:
            _check_gradient(case)
        except NoGradientError:
            return
        _refusal(case, row)
        row.unexplained = _unexplained(case, row)
        _default_composite(case, row)
        remove_additive(case)
        row.conserved = _conserved(case, row)


def _measure_single(case: Case, row: Measurement) -> None:
    _check_gradient(case)
    row.parameters = sum(p.numel() for p in case.model.parameters())
    if row.identical is None:
        _compare_forward(case, row)
    row.unexplained32 = _unexplained(case, row)
    _time(case, row)
    remove_additive(case)
    row.conserved32 = _conserved(case, replace(row))


@contextmanager
def unmatched_in(row: Measurement) -> Iterator[None]:
    """Note operations without a rule on the row."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UnmatchedWarning)
        yield
    for warning in caught:
        message = str(warning.message)
        if issubclass(warning.category, UnmatchedWarning):
            _once(row.fallbacks, message)


def lenient(composite: Composite, case: Case) -> Composite:
    """Return the composite with the case's entries, and so that what has no rule is told of and keeps its gradient."""
    return replace(composite, entries=(*case.entries, *composite.entries), unmatched="warn")


def _refusal(case: Case, row: Measurement) -> None:
    """Note what a composite says without the entries that the case needs."""
    if not case.entries:
        return
    row.entries = [f"({describe_matcher(matcher)}, {rule!r})" for matcher, rule in case.entries]
    try:
        relevance(case, AttnLRP())
    except UnmatchedError as error:
        row.refused = describe(error)
    else:
        row.notes.append("the entries are not needed")


#: Types of fewer digits than float64.
SINGLE = (torch.float32, torch.float16, torch.bfloat16)


class Double(TorchFunctionMode):
    """Keeps a model in double precision where it would turn to float32, so that what is lost is no rounding."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        args = tuple(torch.float64 if a is torch.float32 else a for a in args)
        kwargs = {k: torch.float64 if a is torch.float32 else a for k, a in (kwargs or {}).items()}
        return func(*args, **kwargs)


class Rounding(TorchFunctionMode):
    """Finds out whether a model turns double-precision activations into single ones on its way."""

    def __init__(self) -> None:
        super().__init__()
        self.found = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (
            isinstance(out, Tensor)
            and out.requires_grad
            and out.dtype in (torch.float32, torch.float16, torch.bfloat16)
        ):
            self.found = self.found or any(isinstance(a, Tensor) and a.dtype == torch.float64 for a in args)
        return out


class NoGradientError(Exception):
    """The model has no plain gradient either."""


def _check_gradient(case: Case) -> None:
    try:
        relevance(case, None)
    except Exception as error:
        raise NoGradientError(describe(error)) from error


def _compare_forward(case: Case, row: Measurement) -> None:
    inputs = case.inputs()
    plain = case(inputs)
    with Rounding() as rounding:
        again = case(case.inputs())
    with unmatched_in(row), lenient(AttnLRP(), case).context(case.model):
        ruled = case(case.inputs())
    row.value = float(case.pick(plain, case.choose(plain)).detach())
    if rounding.found:
        row.notes.append("computes in float32 inside")
    if not all(bool(t.isfinite().all()) for t in plain):
        row.notes.append("the plain output is not finite")
    if not _same(plain, again):
        row.notes.append("the plain forward does not repeat itself")
    else:
        row.identical = _same(plain, ruled)
        if not row.identical:
            row.notes.append(f"forward differs by {_difference(plain, ruled):.1e}")


def _same(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


def _difference(first: list[Tensor], second: list[Tensor]) -> float:
    return max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True))


def relevance(case: Case, composite: Composite | None) -> tuple[Tensor, list[Tensor | None]]:
    """Return f(x) and the relevance of each explained input; without a composite, the plain gradient."""
    inputs = case.inputs()
    with nullcontext() if composite is None else composite.context(case.model):
        outputs = case(inputs)
        value = case.pick(outputs, case.choose(outputs))
        return value.detach(), list(torch.autograd.grad(value, inputs, allow_unused=True))


def _conserved(case: Case, row: Measurement) -> float | None:
    with unmatched_in(row):
        value, found = relevance(case, lenient(CPLRP(epsilon=0.0), case))
    parts = [r for r in found if r is not None]
    if not parts:
        row.notes.append("no relevance reaches any input")
        return 1.0
    total = float(sum(r.double().sum() for r in parts))
    f = float(value)
    row.value = f
    if not math.isfinite(f):
        # Some models divide by a norm that is 0 then.
        row.notes.append(NOT_FINITE)
        return None
    row.cancellation = float(sum(r.double().abs().sum() for r in parts)) / max(abs(f), 1e-300)
    row.offset = _offset(case, f)
    larger = max(abs(f), abs(total))
    return abs(f - total) / larger if larger > 0 else 0.0


def _offset(case: Case, value: float) -> float | None:
    """Return |f(0)| over |f(x)| at the largest value of the output, None where the model cannot take zeros."""
    try:
        with torch.no_grad():
            outputs = case([torch.zeros_like(x) for x in case.inputs()])
        return max(float(t.abs().max()) for t in outputs) / max(abs(value), 1e-300)
    except Exception:  # any error belongs in the row
        return None


def _unexplained(case: Case, row: Measurement) -> float:
    """Return what the audit leaves unexplained."""
    outputs = case(case.inputs())
    places = case.choose(outputs)

    def target(output: Any) -> Tensor:
        return case.pick(list(tensors_of(case.outputs(output))), places)

    with unmatched_in(row):
        found = audit(case.model, case.arguments, target, lenient(AttnLRP(), case), kwargs=case.keywords)
    for name, count in found.hidden.items():
        _once(row.fallbacks, f"autograd function {name} ({count} times) is not seen")
    if found.unexplained > UNEXPLAINED[outputs[0].dtype]:
        for worst in found.imbalances[:3]:
            _once(row.notes, f"{worst.operation} under {worst.rule} in {worst.module} misses {worst.missing:.1e}")
    return float(found.unexplained)


def _once(texts: list[str], text: str) -> None:
    if text not in texts:
        texts.append(text)


def _default_composite(case: Case, row: Measurement) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnmatchedWarning)
            _, found = relevance(case, lenient(EpsilonPlus(), case))
        if not all(bool(r.isfinite().all()) for r in found if r is not None):
            row.default = "not finite"
    except Exception as error:  # any error belongs in the row
        row.default = describe(error)


def describe(error: BaseException) -> str:
    """Return type and message of an error on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:600]


def _time(case: Case, row: Measurement) -> None:
    torch.set_flush_denormal(True)
    composite = lenient(AttnLRP(), case)
    plain, ruled = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnmatchedWarning)
        relevance(case, composite)
        for _ in range(REPEATS):
            plain.append(seconds(lambda: relevance(case, None)))
            ruled.append(seconds(lambda: relevance(case, composite)))
    row.ratio, row.seconds = min(ruled) / min(plain), min(plain)


def seconds(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
