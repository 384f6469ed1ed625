"""The results as a page with a table for each network, and as a plot."""

from __future__ import annotations

import datetime as dt
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from benchmarks.faithfulness.measure import Row
from benchmarks.faithfulness.methods import STRONGEST, SUBJECTS
from lrphooks.evaluation import Difference, Result, SymmetricRelevanceGain, difference


def machine() -> str:
    """Return what the figures depend on, without names of machines."""
    today = dt.datetime.now(dt.timezone.utc).date()
    return f"torch {torch.__version__}, zennit {version('zennit')}, {platform.machine()} CPU, {today}"


def table(rows: Sequence[Row], command: str) -> str:
    """Return the page."""
    lines = [
        "# Faithfulness",
        "",
        "How well the order of relevance tells what a network needs. SRG is the symmetric relevance gain, the area",
        "between the curves of probability when patches are removed least relevant first and most relevant first: 0",
        "is chance. Pointing is the grid pointing game, the part of the positive relevance that lies in the cell of",
        "a 2 by 2 mosaic that shows the explained class: 0.25 is chance. Each is a mean over pictures that the",
        "network gets right, with its standard error. The difference is the paired difference in SRG to the best",
        "baseline or other library on the same pictures, with its 95 % interval. No method is left out because it",
        f'wins or loses. "against {STRONGEST}" explains the class against the {STRONGEST} strongest others,',
        f"`AgainstOthers(target, {STRONGEST})`. Parameters were chosen on other pictures, one in four of those that a",
        "network gets right, which are not counted here: those that presets have by default once, for all networks;",
        '"tuned" are those that `lrphooks.tune` finds best of eight for the network.',
        "",
        f"`{command}`, {machine()}. Time is processor time of one explanation on one thread of a shared machine.",
    ]
    lines += ["", "![The symmetric relevance gain of every method on every network](images/faithfulness.png)"]
    for network in dict.fromkeys(row.network for row in rows):
        found = [row for row in rows if row.network == network]
        lines += ["", f"## {network}", "", *_network(found)]
    return "\n".join(lines) + "\n"


def _network(rows: Sequence[Row]) -> list[str]:
    judged = sorted((row for row in rows if not row.error), key=lambda row: -float(np.mean(row.gain)))
    best = best_peer(judged)
    setting, count = rows[0].setting, len(judged[0].gain) if judged else 0
    lines = [
        f"{count} pictures, {setting['steps']} steps, blur; {setting['mosaics']} mosaics.",
        "",
        "| method | of | SRG | difference to the best peer | pointing | s a picture |",
        "|---|---|---|---|---|---|",
    ]
    for row in judged:
        gain = result(row.gain)
        apart = "" if best is None or row is best else _apart(difference(gain, result(best.gain)))
        pointing = f"{np.mean(row.pointing):.3f} ± {result(row.pointing).standard_error:.3f}" if row.pointing else ""
        name = f"**{row.method}**" if row.family == "lrphooks" else row.method
        srg = f"{gain.mean:.3f} ± {gain.standard_error:.3f}"
        lines.append(f"| {name} | {row.family} | {srg} | {apart} | {pointing} | {row.seconds:.2g} |")
    missing = [subject.name for subject in SUBJECTS if subject.name not in {row.method for row in rows}]
    for row in rows:
        if row.error:
            text = row.error.replace("|", "\\|").replace("\n", " ")[:200]
            lines.append(f"| {row.method} | {row.family} | {text} | | | |")
    plain = next((row.gain for row in rows if row.method == "gradient"), None)
    if blind := [row.method for row in rows if row.family == "zennit" and row.gain and row.gain == plain]:
        lines += ["", f"{', '.join(blind)}: zennit sees no layer of this network, and gives its gradient."]
    chosen = [f"{row.method}: {row.chosen}." for row in rows if row.chosen]
    # A run that was stopped must not look like a whole one.
    return [
        *lines,
        *(["", *chosen] if chosen else []),
        *(["", f"Not measured yet: {', '.join(missing)}."] if missing else []),
    ]


def best_peer(rows: Sequence[Row]) -> Row | None:
    """Return the best method that is not lrphooks'."""
    peers = [row for row in rows if row.family in ("baseline", "zennit") and not row.error]
    return max(peers, key=lambda row: float(np.mean(row.gain)), default=None)


def result(values: Sequence[float]) -> Result:
    """Return numbers as a result of one metric, so that they can be compared."""
    return Result(SymmetricRelevanceGain(), np.array(values))


def _apart(found: Difference) -> str:
    return f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def plot(rows: Sequence[Row], path: Path) -> None:
    """Draw the gain of each method on each network."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    colours = {"lrphooks": "#c8442e", "baseline": "#8a8a8a", "zennit": "#3c7ad8"}
    rows = [row for row in rows if not row.error]
    networks = list(dict.fromkeys(row.network for row in rows))
    if not networks:
        return
    columns = min(3, len(networks))
    lines = -(-len(networks) // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(5.5 * columns, 6.5 * lines), squeeze=False, layout="constrained"
    )
    axes = grid.flatten()
    for axis in axes[len(networks) :]:
        axis.remove()
    for network, axis in zip(networks, axes, strict=False):
        shown = [row for row in rows if row.network == network]
        shown.sort(key=lambda row: float(np.mean(row.gain)))
        axis.barh(
            [row.method for row in shown],
            [np.mean(row.gain) for row in shown],
            xerr=[result(row.gain).standard_error for row in shown],
            color=[colours[row.family] for row in shown],
            ecolor="#444444",
        )
        axis.axvline(0.0, color="black", linewidth=0.8)
        axis.set_title(f"{network}, {len(shown[0].gain)} pictures")
        axis.set_xlabel("symmetric relevance gain")
        axis.spines[["top", "right"]].set_visible(False)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in colours.values()]
    axes[0].legend(handles, colours, loc="lower right", frameon=False)
    figure.savefig(path, dpi=80)
    plt.close(figure)
