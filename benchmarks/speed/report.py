"""The measurements as a table, and as a plot where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path

import torch

from benchmarks.speed import growth
from benchmarks.speed.measure import Row


def machine(device: str, threads: int, *, keeps: bool) -> str:
    """Return what the figures depend on, without names of machines, and the day."""
    memory = "kept by the process" if keeps else "returned to the system"
    where = torch.cuda.get_device_name() if device.startswith("cuda") else f"{platform.machine()} CPU"
    day = datetime.now(timezone.utc).date().isoformat()
    threading = f"{threads} {'thread' if threads == 1 else 'threads'}"
    return f"torch {torch.__version__}, {where}, {threading}, freed memory {memory}, {day}"


@dataclass
class Found:
    """What was measured: by which commands, on what, and the figures."""

    commands: list[str]
    where: str
    rows: list[Row] = field(default_factory=list)
    points: list[growth.Point] = field(default_factory=list)

    def written(self) -> str:
        """Return it as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def joined(cls, texts: Iterable[str]) -> Found:
        """Return what several runs measured, as JSON, in one."""
        found = cls([], "")
        for text in texts:
            part = json.loads(text)
            found.commands += part["commands"]
            found.where = part["where"]
            found.rows += [Row(**row) for row in part["rows"]]
            found.points += [growth.Point(**point) for point in part["points"]]
        return found


def table(found: Found) -> str:
    """Return the page: all models side by side, the rows of each, and how cost grows."""
    rows = found.rows
    lines = [
        "# Speed",
        "",
        "Time and memory of one explanation of a batch, as ratios to the plain input gradient with frozen parameters,",
        "measured in turn within one run: every subject between two gradients. The spread is that of the middle half",
        "of the repeats. Networks are random, scaled so that activations stay in range; what zennit computes alike was",
        "compared before it was timed, and the difference is relative to the largest relevance.",
        "",
        *(f"- `{command}`" for command in found.commands),
        "",
        f"{found.where}.",
    ]
    lines += _side_by_side(rows)
    for model, batch in dict.fromkeys((row.model, row.batch) for row in rows):
        lines += [
            "",
            f"## {model}, batch {batch}",
            "",
            "| | time | spread | peak memory | per second | difference |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in rows if (row.model, row.batch) == (model, batch)]
    return "\n".join([*lines, growth.table(found.points)]).rstrip("\n") + "\n"


def _side_by_side(rows: Sequence[Row]) -> list[str]:
    """Return time and memory of every rule on every model, where there are several."""
    models = list(dict.fromkeys((row.model, row.batch) for row in rows))
    if len(models) < 2:
        return []
    cells = {(row.subject, row.model, row.batch): row for row in rows if not row.error and row.memory}
    names = [name for name in dict.fromkeys(row.subject for row in rows) if any(key[0] == name for key in cells)]
    batches = {batch for _, batch in models}
    heads = [model if len(batches) == 1 else f"{model}, {batch}" for model, batch in models]
    lines = ["", "## All models", "", "Time, and in brackets peak memory.", "", f"| | {' | '.join(heads)} |"]
    lines.append(f"|---|{'---|' * len(heads)}")
    for name in names:
        found = [cells.get((name, *model)) for model in models]
        shown = ["" if row is None else f"{row.ratio:.2f} ({row.memory:.2f})" for row in found]
        lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def _line(row: Row) -> str:
    if row.error:
        text = row.error.replace("|", "\\|")
        return f"| {row.subject} | {text} | | | | |"
    memory = f"{row.memory:.2f}" if row.memory else ""
    rate = f"{row.throughput:.3g} {row.unit}" if row.throughput else ""
    difference = "" if row.difference is None else f"{row.difference:.0e}"
    # A context takes a thousandth of a gradient.
    digits = 2 if row.ratio > 0.1 else 4
    spread = f"{row.low:.{digits}f} to {row.high:.{digits}f}"
    return f"| {row.subject} | {row.ratio:.{digits}f} | {spread} | {memory} | {rate} | {difference} |"


def plot(rows: Sequence[Row], points: Sequence[growth.Point], path: Path) -> bool:
    """Draw the ratios of each model and how cost grows, and return whether matplotlib is there to do it."""
    if importlib.util.find_spec("matplotlib") is None:
        return False
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys((row.model, row.batch) for row in rows))
    grown = list(dict.fromkeys(point.growth for point in points))
    figure = plt.figure(figsize=(9, 4 * (len(models) + len(grown))), layout="constrained")
    parts = figure.subfigures(len(models) + len(grown), 1, squeeze=False)[:, 0]
    for (model, batch), part in zip(models, parts, strict=False):
        axis = part.subplots()
        shown = [r for r in rows if (r.model, r.batch) == (model, batch) and r.ratio > 0.1]
        spread = [[max(0.0, r.ratio - r.low) for r in shown], [max(0.0, r.high - r.ratio) for r in shown]]
        axis.barh([r.subject for r in shown], [r.ratio for r in shown], xerr=spread)
        axis.axvline(1.0, color="black", linewidth=0.8)
        axis.invert_yaxis()
        axis.set_xlabel("time over that of the plain gradient")
        axis.set_title(f"{model}, batch {batch}")
    for name, part in zip(grown, parts[len(models) :], strict=True):
        growth.draw(part.subplots(1, 2), points, name)
    figure.savefig(path)
    plt.close(figure)
    return True
