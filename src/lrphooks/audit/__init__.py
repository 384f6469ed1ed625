"""Proof that no relevance went missing: :func:`audit` says where every part of f(x) went."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from lrphooks import backward
from lrphooks.audit.recorder import Record, Recorder
from lrphooks.audit.report import Imbalance, LayerRow, OperationRow, Report
from lrphooks.composite import Composite
from lrphooks.engine import containers
from lrphooks.engine.ending import gradients
from lrphooks.engine.errors import LRPError
from lrphooks.explanation import checked
from lrphooks.forward import Inputs, explained
from lrphooks.selection import Target

__all__ = ["Imbalance", "LayerRow", "OperationRow", "Report", "audit"]

#: An operation is named as imbalanced where it misses more than this part of the largest amount in the books, or more
#: than so many units in the last place of the precision that they are in.
_TOLERANCE, _ULPS = 1e-6, 32


def audit(
    model: nn.Module,
    x: Any,
    target: Target = None,
    composite: Composite | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
) -> Report:
    """Return the books of one explanation: f(x) = sum R + what biases, stabilizers, constants and others absorbed.

    Each sink is computed from the formula of its operation and the plain derivatives of torch, never as a remainder, so
    that ``report.unexplained`` is a test that can fail. It costs several times what :func:`lrphooks.lrp` does.

    The books are of amounts: a rule that gives the right amount to the wrong inputs passes, and so does a value of the
    input that comes back as a constant factor, which absorbs nothing. ``report.taken_out`` tells where values leave the
    graph.

    The arguments and errors are those of :func:`lrphooks.lrp`.
    """
    composite = checked(composite, "audit")
    if composite.attribution != "relevance":
        raise LRPError(
            f"audit: {composite!r} leaves a gradient in x.grad, not relevance, so there are no books to balance."
        )
    recorder = Recorder()
    inputs = Inputs(x, kwargs, "audit")
    try:
        with explained(model, inputs, [target], composite, recorder) as (value,):
            (grads,) = backward.each([value], inputs.leaves, 1)
        relevance = sum(float(t.double().sum()) for t in containers.tensors(inputs.arranged(grads)))
        with gradients(enabled=False):
            return _report(recorder, float(value.detach().double().sum()), relevance)
    finally:
        recorder.release()


def _report(recorder: Recorder, output: float, relevance: float) -> Report:
    absorbed = {id(record): record.absorbed() for record in recorder.records}
    sinks: dict[str, float] = {}
    for amounts in absorbed.values():
        for name, amount in amounts.items():
            sinks[name] = sinks.get(name, 0.0) + amount
    # A target that is not linear in the output, such as a difference to a constant, keeps its own part.
    sinks["target"] = output - sum(flow.amount for flow in recorder.result.handed)
    sinks = {name: amount for name, amount in sinks.items() if amount != 0.0}
    operations = [OperationRow(name, rule, count) for (name, rule), count in sorted(recorder.counts.items())]
    operations += [OperationRow(name, "none", count, fell_back=True) for name, count in recorder.fallbacks.items()]
    report = Report(output, relevance, sinks, _layers(recorder, absorbed), tuple(operations), dict(recorder.hidden), ())
    tolerance = max([_TOLERANCE, *(_ULPS * torch.finfo(f.value.dtype).eps for f in recorder.result.handed)])
    if report.unexplained > tolerance:
        # Where nothing is missing, these are tensors whose history merely changed.
        report.hidden.update(recorder.unseen)
    imbalances = _imbalances(recorder, absorbed, tolerance * max(report.scale, 1e-300))
    taken = dict(recorder.taken)
    return Report(output, relevance, sinks, report.layers, report.operations, report.hidden, imbalances, taken)


def _imbalances(recorder: Recorder, absorbed: dict[int, dict[str, float]], least: float) -> tuple[Imbalance, ...]:
    names = {id(frame): name for frame, name in recorder.frames}
    found = []
    for record in recorder.records:
        if not record.balanced:
            continue
        missing = _missing(record, absorbed)
        if abs(missing) > least:
            module = (record.path and names.get(id(record.path[-1]))) or "the model"
            found.append(Imbalance(record.name, repr(record.rule), module, missing))
    return tuple(sorted(found, key=lambda row: -abs(row.missing)))


def _missing(record: Record, absorbed: dict[int, dict[str, float]]) -> float:
    """Return what arrived at an operation and was neither handed on, as far as that was watched, nor absorbed."""
    arrived, handed = (sum(flow.amount for flow in flows) for flows in (record.arrived, record.handed))
    return arrived - handed - sum(absorbed.get(id(record), {}).values())


def _layers(recorder: Recorder, absorbed: dict[int, dict[str, float]]) -> tuple[LayerRow, ...]:
    """Return one row a module call; relevance crosses its border with the flows between operations."""
    arrived: defaultdict[int, float] = defaultdict(float)
    handed: defaultdict[int, float] = defaultdict(float)
    kept: defaultdict[int, float] = defaultdict(float)
    rules: defaultdict[int, list[str]] = defaultdict(list)

    def cross(source: Record, consumer: Record, amount: float) -> None:
        made, used = {id(f) for f in source.path}, {id(f) for f in consumer.path}
        for frame in made - used:
            arrived[frame] += amount
        for frame in used - made:
            handed[frame] += amount

    for record in (*recorder.records, recorder.result):
        for flow in record.handed:
            cross(flow.source or record, record, flow.amount)
        # What it overwrote receives what is left over.
        cross(record.target or record, record, _missing(record, absorbed))
        for frame in record.path:
            kept[id(frame)] += sum(absorbed[id(record)].values())
        if record.path:
            rules[id(record.path[-1])].append(repr(record.rule))
    return tuple(
        LayerRow(
            name,
            type(frame.module).__name__,
            ", ".join(dict.fromkeys(rules[key])),
            arrived[key],
            handed[key],
            kept[key],
        )
        for frame, name in recorder.frames
        if (key := id(frame)) in arrived or key in handed or key in kept
    )
