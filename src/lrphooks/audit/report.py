"""The books of one explanation: where every part of f(x) went."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerRow:
    """One call of a module: its rule, the relevance that arrived at its outputs, went to its inputs, stayed inside."""

    name: str
    type: str
    rule: str
    arrived: float
    handed: float
    absorbed: float


@dataclass(frozen=True)
class OperationRow:
    """One kind of operation under one rule: how often it ran, and whether it had no rule and kept its gradient."""

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
    """What became of f(x).

    output: the explained value f(x), summed over rows. relevance: the sum over all inputs. sinks: what was absorbed, by
    what absorbed it, each from its own formula. layers: one row a module call, in the order of execution. operations:
    every kind of operation seen, and those that had no rule. hidden: autograd functions inside the model that cannot be
    seen, so that what they absorb is not known; where relevance is missing, also torch's own operations that ran out of
    sight, in TorchScript or in another thread. imbalances: the operations that lose or make relevance without a
    formula that says so, the worst first.
    """

    output: float
    relevance: float
    sinks: dict[str, float]
    layers: tuple[LayerRow, ...]
    operations: tuple[OperationRow, ...]
    hidden: dict[str, int]
    imbalances: tuple[Imbalance, ...]

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
        amounts = [("f(x)", self.output), ("relevance of the inputs", self.relevance)]
        amounts += [(f"  absorbed: {name}", amount) for name, amount in self.sinks.items()]
        width = max(len(name) for name, _ in amounts)
        lines = [f"{name:<{width}}  {amount:>14.6g}" for name, amount in amounts]
        lines.append(f"{'unexplained':<{width}}  {self.unexplained:>14.2e}  of the largest")
        lines += ["", *_table(("module", "rule", "arrived", "handed on", "absorbed"), self._layer_lines())]
        lines += ["", *_table(("operation", "rule", "calls", ""), self._operation_lines())]
        if self.hidden:
            listed = ", ".join(f"{name} ({count})" for name, count in self.hidden.items())
            lines += ["", f"Not seen, so what they absorb is not known: {listed}."]
        if self.imbalances:
            lines += ["", "Relevance that no formula accounts for, the worst first:"]
            lines += [
                f"  {row.operation} under {row.rule} in {row.module}: {row.missing:.6g}" for row in self.imbalances[:5]
            ]
        return "\n".join(lines)

    def _layer_lines(self) -> list[tuple[str, ...]]:
        return [
            (row.name or row.type, row.rule, f"{row.arrived:.6g}", f"{row.handed:.6g}", f"{row.absorbed:.6g}")
            for row in self.layers
        ]

    def _operation_lines(self) -> list[tuple[str, ...]]:
        return [
            (row.name, row.rule, str(row.count), "no rule: plain gradient" if row.fell_back else "")
            for row in self.operations
        ]


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    """Return lines with columns aligned, numbers to the right."""
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]

    def line(row: tuple[str, ...]) -> str:
        cells = [
            cell.ljust(width) if i < 2 or not header[i] else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        return "  ".join(cells).rstrip()

    return [line(header), "-" * (sum(widths) + 2 * len(widths) - 2), *(line(row) for row in rows)]
