"""The books of one explanation: where every part of f(x) went."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

#: Up to how many calls of modules a report prints all, how many it prints of more, how wide names and lines may be.
_ALL, _ROWS, _NAME, _LINE = 24, 16, 48, 110
_ROUNDING = 1e-13


@dataclass(frozen=True)
class LayerRow:
    """One call of a module.

    name: as the model registers it, empty for the model itself. rule: the rules of the operations that it ran itself.
    arrived: the relevance at its outputs. handed: what went on to its inputs. absorbed: what stayed inside, also in the
    modules inside.
    """

    name: str
    type: str
    rule: str
    arrived: float
    handed: float
    absorbed: float


@dataclass(frozen=True)
class OperationRow:
    """One kind of operation under one rule: how often it ran, and whether it kept its gradient for want of one."""

    name: str
    rule: str
    count: int
    fell_back: bool = False


@dataclass(frozen=True)
class Imbalance:
    """One operation whose relevance in, out and absorbed do not agree."""

    operation: str
    rule: str
    module: str
    missing: float


@dataclass(frozen=True)
class Report:
    """What became of f(x) = relevance + sum of sinks + what is unexplained. Prints as a table.

    output: the explained value f(x), summed over rows. relevance: the sum over all inputs. sinks: what was absorbed, by
    what absorbed it, each from its own formula. layers: one row a module call, in the order of execution. operations:
    every kind of operation seen, and those that had no rule. hidden: autograd functions inside the model that cannot be
    seen, so that what they absorb is not known; where relevance is missing, also torch's own operations that ran out of
    sight, in TorchScript or in another thread. imbalances: the operations that lose or make relevance without a
    formula that says so, the worst first. taken_out: where values that depend on the input leave the graph and are
    constants from there on, by ``detach``, ``item``, ``numpy`` or with gradients disabled, and how often: as summands
    they are in the sinks, as factors they leave no trace there.
    """

    output: float
    relevance: float
    sinks: dict[str, float]
    layers: tuple[LayerRow, ...]
    operations: tuple[OperationRow, ...]
    hidden: dict[str, int]
    imbalances: tuple[Imbalance, ...]
    taken_out: dict[str, int] = field(default_factory=dict)

    @property
    def scale(self) -> float:
        """The largest amount in the books: of |f(x)|, |sum R| and every sink."""
        return max(abs(self.output), abs(self.relevance), *(abs(amount) for amount in self.sinks.values()), 0.0)

    @property
    def unexplained(self) -> float:
        """|f(x) - sum R - sum of sinks|, as a part of the largest amount in the books."""
        missing = abs(self.output - self.relevance - sum(self.sinks.values()))
        return missing / self.scale if missing else 0.0

    @property
    def fallbacks(self) -> tuple[OperationRow, ...]:
        """The operations that had no rule and kept their plain gradient."""
        return tuple(row for row in self.operations if row.fell_back)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain data, ready for JSON."""
        return {**asdict(self), "unexplained": self.unexplained}

    def __str__(self) -> str:
        return self.text()

    def text(self, *, everything: bool = False) -> str:
        """Return the report as text; of many calls of modules only those that absorbed most, unless ``everything``."""
        number = _numbers(self.scale)
        lines = [
            *self._amounts(number, everything=everything),
            "",
            *self._calls(number, everything=everything),
            "",
            *self._operations(),
        ]
        if self.hidden:
            listed = ", ".join(f"{name} ({count})" for name, count in self.hidden.items())
            lines += ["", f"Not seen, so what they absorb is not known: {listed}."]
        if self.taken_out:
            listed = ", ".join(f"{where} ({count})" for where, count in self.taken_out.items())
            lines += ["", f"Taken out of the graph, so constant from there on: {listed}."]
        if self.imbalances:
            shown = self.imbalances if everything else self.imbalances[:5]
            lines += ["", "Relevance that no formula accounts for, the worst first:"]
            lines += [f"  {row.operation} under {row.rule} in {row.module}: {row.missing:.6g}" for row in shown]
            if len(shown) < len(self.imbalances):
                lines.append(f"  and {len(self.imbalances) - len(shown)} more")
        return "\n".join(lines)

    def _amounts(self, number: Callable[[float], str], *, everything: bool) -> list[str]:
        """Return the books: f(x), the relevance of the inputs and the sinks, each as a part of f(x) too."""
        amounts = [("f(x)", self.output), ("relevance of the inputs", self.relevance)]
        # Below this a sink is what double precision rounds away.
        least = 0.0 if everything else _ROUNDING * self.scale
        amounts += [(f"absorbed: {name}", x) for name, x in _largest_first(self.sinks) if abs(x) >= least]

        def part(amount: float) -> str:
            return f"{amount / self.output:.2%}".replace("-0.00%", "0.00%") if self.output else ""

        rows = [(name, number(amount), part(amount)) for name, amount in amounts]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in rows]
        return [*lines, f"{'unexplained':<{widths[0]}}  {self.unexplained:.1e} of the largest amount"]

    def _calls(self, number: Callable[[float], str], *, everything: bool) -> list[str]:
        """Return the table of module calls."""
        rows = self.layers if everything else worth_reading(self.layers)
        cells = [
            (
                _cut(row.name or row.type, keep_end=True),
                _cut(row.rule),
                number(row.arrived),
                number(row.handed),
                number(row.absorbed),
            )
            for row in rows
        ]
        lines = _table(("module", "rule", "arrived", "handed on", "absorbed"), cells)
        if len(rows) < len(self.layers):
            lines += ["", f"These {len(rows)} of {len(self.layers)} calls of modules absorbed most."]
        return lines

    def _operations(self) -> list[str]:
        """Return what ran under each rule, and how often."""
        under: dict[str, list[str]] = {}
        for row in self.operations:
            rule = "no rule: plain gradient" if row.fell_back else row.rule
            under.setdefault(rule, []).append(f"{row.name} ({row.count})")
        width = max((len(_cut(rule)) for rule in under), default=0)
        lines = [f"{'rule':<{width}}  operations (calls)", "-" * (width + 20)]
        for rule, names in under.items():
            lead = f"{_cut(rule):<{width}}  "
            lines += textwrap.wrap(
                ", ".join(names), _LINE, initial_indent=lead, subsequent_indent=" " * len(lead), break_on_hyphens=False
            )
        return lines


def worth_reading(rows: Sequence[LayerRow], count: int = _ROWS) -> tuple[LayerRow, ...]:
    """Return of many calls ``count``, in their order: those that absorbed most outside of the modules in them.

    Which module is in which is told by the names.
    """
    if len(rows) <= _ALL:
        return tuple(rows)
    own = [row.absorbed for row in rows]
    outer: list[int] = []
    for index, row in enumerate(rows):
        while outer and rows[outer[-1]].name and not row.name.startswith(f"{rows[outer[-1]].name}."):
            outer.pop()
        if outer:
            own[outer[-1]] -= row.absorbed
        outer.append(index)
    ranked = sorted(range(len(rows)), key=lambda index: -abs(own[index]))
    return tuple(rows[index] for index in sorted(ranked[:count]))


def _largest_first(amounts: dict[str, float]) -> list[tuple[str, float]]:
    return sorted(amounts.items(), key=lambda item: -abs(item[1]))


def _numbers(scale: float) -> Callable[[float], str]:
    """Return how to write amounts of which the largest is ``scale``: five digits of that one, and the others below."""
    decimals = 4 - math.floor(math.log10(scale)) if 0 < scale < math.inf else 0

    def number(amount: float) -> str:
        if amount == 0:
            return "0"
        if not 0 <= decimals <= 8:
            return f"{amount:.4e}"
        # What would print as zeros is small, not zero.
        return f"{amount:.{decimals}f}" if abs(amount) >= 10.0**-decimals else f"{amount:.0e}"

    return number


def _cut(text: str, *, keep_end: bool = False) -> str:
    """Return a text no wider than a column may be."""
    if len(text) <= _NAME:
        return text
    return f"...{text[3 - _NAME :]}" if keep_end else f"{text[: _NAME - 3]}..."


def _table(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return lines with columns aligned, numbers to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: tuple[str, ...]) -> str:
        cells = [cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))]
        return "  ".join(cells).rstrip()

    return [line(header), "-" * (sum(widths) + 2 * len(widths) - 2), *(line(row) for row in rows)]
