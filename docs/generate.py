"""Writes the generated parts of docs/any-graph.md from the code: ``python docs/generate.py``.

A part stands between two comments, ``<!-- begin NAME -->`` and ``<!-- end NAME -->``. tests/test_docs.py fails where
one is out of date, and where an operation absorbs what KINDS does not say.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lrphooks import rules
from lrphooks.engine.handlers import CONVENTIONS
from lrphooks.engine.serving import SERVED
from lrphooks.operations import Kind, catalog, names
from lrphooks.rules.base import Rule

PAGE = Path(__file__).with_name("any-graph.md")


@dataclass(frozen=True)
class About:
    """What the page says of one kind of operation.

    absorbs: the sinks, as the audit names them, that its operations may have under the rule by convention.
    """

    what: str
    relevance: str
    absorbs: tuple[str, ...] = ()


KINDS: dict[Kind, About] = {
    "linear": About("linear layers", "by the rule of the composite; without one, an error", ("bias", "stabilizer")),
    "relu": About("ReLU", "R_a = R_z"),
    "shape": About("moves elements", "R goes with the elements"),
    "split": About("cuts into several tensors", "R goes with the elements"),
    "select": About(
        "selects values, or scales each piecewise",
        "R goes to the values selected: the winners take all",
        ("constants",),
    ),
    "combination": About(
        "linear in all operands together", "in proportion to the contributions (LRP-0)", ("constants",)
    ),
    "product": About("multiplies activations", "R_z / n to each of n activations", ("constants",)),
    "added product": About(
        "a summand and a product", "the summand has its own part, the factors share the rest", ("constants",)
    ),
    "division": About("divides", "all to the numerator: the denominator is a constant", ("constants",)),
    "power": About("powers", "R_a = R_z for a positive exponent; others are constants"),
    "activation": About("elementwise, f(0) = 0", "R_a = R_z"),
    "gate": About("GLU", "all to the half that is not gated: the sigmoid is a constant"),
    "constant": About("does not vanish with its input", "none: gates, statistics, exponentials"),
    "moments": About("variance with the mean", "the mean is linear, the variance a constant"),
    "shift": About("log-softmax", "R_a = G a: the log-sum-exp is a constant that is subtracted", ("constants",)),
    "softmax": About("softmax", "first-order expansion at the logits", ("softmax offset",)),
    "attention": About(
        "softmax(q kᵀ + mask) v, fused",
        "1/2 to v, 1/4 to q and to k, the mask its own part of what the logits receive",
        ("softmax offset",),
    ),
    "normalization": About("layer, RMS, group and instance norm", "centred and scaled by a constant 1/σ", ("bias",)),
    "batch norm": About(
        "batch norm", "evaluated: a factor and a shift, merged into a layer before it; in training as above", ("bias",)
    ),
    "composed": About("functions made of others", "run again with each operation inside in view"),
    "recurrent": About("recurrent layers and cells", "through the unrolled cells, operation by operation"),
}


def kinds() -> str:
    """Return the table of kinds."""
    lines = [
        "| kind | what it does | rule by convention | relevance | absorbs | other rules |",
        "|---|---|---|---|---|---|",
    ]
    for kind, about in KINDS.items():
        convention = f"`{CONVENTIONS[kind]!r}`" if kind in CONVENTIONS else "none"
        default = type(CONVENTIONS[kind]) if kind in CONVENTIONS else None
        others = ", ".join(f"`{rule.__name__}`" for rule in SERVED.get(kind, ()) if rule is not default)
        if kind == "select":
            others = "`Identity`, `Pass` where elementwise"
        absorbs = ", ".join(about.absorbs) or "nothing"
        if kind in ("composed", "recurrent"):
            absorbs = "by operation"
        lines.append(f"| {kind} | {about.what} | {convention} | {about.relevance} | {absorbs} | {others} |")
    return "\n".join(lines)


def operations() -> str:
    """Return the operations of each kind, by their plain names."""
    lines = []
    for kind in KINDS:
        found = sorted(name for name, its in catalog._KINDS.items() if its == kind)
        lines.append(f"- **{kind}**: {', '.join(f'`{name}`' for name in found)}")
    pairs = sorted(names.ALIASES.items())
    lines.append(f"- **second names**: {', '.join(f'`{alias}` is `{name}`' for alias, name in pairs)}")
    return "\n".join(lines)


def table_of_rules() -> str:
    """Return the table of rules, from their docstrings."""
    lines = ["| rule | formula | source |", "|---|---|---|"]
    for name in rules.__all__:
        rule = getattr(rules, name)
        if not issubclass(rule, Rule) or rule in (Rule, rules.LinearRule, rules.InputRule):
            continue
        doc = inspect.getdoc(rule) or ""
        formula = re.search(r"Formula: (.*?)(?:\n\n|\Z)", doc, re.DOTALL)
        source = re.search(r"References\n-+\n(.*)", doc, re.DOTALL)
        if formula is None or source is None:
            raise ValueError(f"the docstring of {name} lacks its formula or its source")
        cells = (" ".join(match[1].replace("``", "`").replace("|", "&#124;").split()) for match in (formula, source))
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    # A vertical bar ends a cell even inside of code, where an entity is not read; code with one is set as text.
    return re.sub(r"`([^`]*&#124;[^`]*)`", r"<code>\1</code>", "\n".join(lines))


def example() -> str:
    """Return what the page's example prints."""
    page = PAGE.read_text(encoding="utf-8")
    code = re.search(r"```python\n(import torch.*?)```", page, re.DOTALL)
    if code is None:
        raise ValueError("the page has no example")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code[1], str(PAGE), "exec"), {})  # noqa: S102  # the page is ours
    return f"```text\n{printed.getvalue().rstrip()}\n```"


PARTS: dict[str, Callable[[], str]] = {
    "kinds": kinds,
    "operations": operations,
    "rules": table_of_rules,
    "example": example,
}


def generated(page: str) -> str:
    """Return the page with all its parts made anew."""
    for name, make in PARTS.items():
        begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
        before, _, rest = page.partition(begin)
        _, found, after = rest.partition(end)
        if not found:
            raise ValueError(f"the page has no part {name}")
        page = f"{before}{begin}\n{make()}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(generated(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
