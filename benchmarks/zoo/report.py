"""The table of results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

#: What every row must reach.
BARS = {"conserved": 1e-6, "conserved32": 1e-1, "unexplained": 1e-9, "unexplained32": 1e-3}


def failed(row: dict[str, Any]) -> bool:
    """Whether a row misses a bar."""
    return bool(faults(row))


def faults(row: dict[str, Any]) -> list[str]:
    """Return what is wrong with a row, in words."""
    if row.get("error"):
        return [f"error: {row['error']}"]
    found = []
    for name in ("conserved", "unexplained", "unexplained32"):
        value = row.get(name)
        if value is not None and not value <= BARS[name]:
            found.append(f"{name} {value:.1e}")
    if row.get("identical") is False:
        found.append("forward not bit-identical")
    found += [f"fell back: {message}" for message in row.get("fallbacks") or []]
    if row.get("default"):
        found.append(f"default composite: {row['default']}")
    return found


def line(row: dict[str, Any]) -> str:
    """Return a row for the terminal."""

    def number(name: str) -> str:
        value = row.get(name)
        return "-" if value is None else f"{value:.1e}"

    numbers = f"cons {number('conserved')}/{number('conserved32')} canc {number('cancellation')} off {number('offset')}"
    ratio = row.get("ratio")
    numbers += f" x{ratio:.2f}" if ratio is not None else ""
    words = "; ".join([*faults(row), *(row.get("notes") or [])])
    return f"{row['key']} {numbers} {row.get('wall', 0):.0f}s {words}"


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the table."""
    path.write_text("\n".join(line(row) for row in rows) + "\n", encoding="utf-8")
