"""What commands print of a picture and its explanation."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence

from lrphooks.baselines import Baseline
from lrphooks.cli.methods import Explaining
from lrphooks.cli.output import printable
from lrphooks.cli.results import Explained
from lrphooks.composite import Composite
from lrphooks.matching import describe
from lrphooks.models import PictureModel
from lrphooks.models.packaged import DIGITS, PACKAGED

WIDTH = 80
#: So many entries of a composite are shown.
ENTRIES = 6
_COLUMN = 12


def field(name: str, value: str) -> str:
    """Return a name and its value as a line."""
    return f"{name:<{_COLUMN}}{printable(value)}"


def of_model(model: PictureModel, name: str) -> list[str]:
    """Return which model it is, where its weights are from, and what is done to pictures.

    ``name`` is what was given as --model.
    """
    if name == DIGITS and model.notes == PACKAGED:
        return [field("model", f"{name}, which comes with the package")]
    return [
        field("model", name),
        *(field("weights", note) for note in model.notes),
        field("prepared", str(model.preparation)),
    ]


def of_composite(text: str, composite: Explaining) -> str:
    """Return what a method is in full, or if it has many entries its first ones and its last."""
    shown = repr(composite)
    if isinstance(composite, Composite) and len(composite.entries) > ENTRIES:
        parts = [f"({describe(matcher)}, {rule!r})" for matcher, rule in composite.entries]
        shown = f"{len(parts)} entries, [{', '.join([*parts[: ENTRIES - 2], '...', parts[-1]])}]"
    return field("composite", f"{text}: {shown}")


def of_explained(each: Explained, composite: Explaining) -> list[str]:
    """Return the amounts of an explained class."""
    return [
        field("f(x)", f"{each.output:.6g}"),
        field("Σ R", f"{each.relevance:.6g}"),
        field("absorbed", _absorbed(each, composite)),
    ]


def _absorbed(each: Explained, composite: Explaining) -> str:
    if isinstance(composite, Baseline):
        return "undefined: this is no rule of LRP, and need not sum to f(x)"
    if each.absorbed is None:
        return "undefined: this composite gives a modified gradient, which need not sum to f(x)"
    share = f" ({each.absorbed / each.output:.2%} of f(x))" if each.output else ""
    return f"{each.absorbed:.6g}{share}"


def paragraph(text: str, indent: int = 0, hanging: int | None = None) -> Iterable[str]:
    """Return a text in lines that a terminal has room for."""
    lead, rest = " " * indent, " " * (indent if hanging is None else hanging)
    return textwrap.wrap(
        text, WIDTH, initial_indent=lead, subsequent_indent=rest, break_on_hyphens=False, break_long_words=False
    )


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows in aligned columns, the first row as their heads."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], "-" * min(WIDTH, max(map(len, lines))), *lines[1:]]
