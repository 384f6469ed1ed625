"""The measurements as a table, and as a plot where matplotlib is installed."""

from __future__ import annotations

import importlib.util
import platform
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.speed import growth
from benchmarks.speed.measure import Row


def machine(device: str, threads: int) -> str:
    """Return what the figures depend on, without names of machines."""
    where = torch.cuda.get_device_name() if device.startswith("cuda") else f"{platform.machine()} CPU"
    return f"torch {torch.__version__}, {where}, {threads} {'thread' if threads == 1 else 'threads'}"


def table(rows: Sequence[Row], points: Sequence[growth.Point], command: str, where: str) -> str:
    """Return the page: the rows of each model, and how cost grows."""
    lines = [
        "# Speed",
        "",
        "Time and memory of one explanation of a batch, as ratios to the plain input gradient with frozen parameters,",
        "measured in turn within one run: every subject between two gradients. The spread is that of the middle half",
        "of the repeats. Networks are random, scaled so that activations stay in range; what zennit computes alike was",
        "compared before it was timed, and the difference is relative to the largest relevance.",
        "",
        f"`{command}`, {where}.",
    ]
    for model, batch in dict.fromkeys((row.model, row.batch) for row in rows):
        lines += [
            "",
            f"## {model}, batch {batch}",
            "",
            "| | time | spread | peak memory | per second | difference |",
            "|---|---|---|---|---|---|",
        ]
        lines += [_line(row) for row in rows if (row.model, row.batch) == (model, batch)]
    return "\n".join([*lines, growth.table(points)]).rstrip("\n") + "\n"


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
