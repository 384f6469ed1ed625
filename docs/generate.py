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
from lrphooks.engine.conventions import CONVENTIONS
from lrphooks.engine.serving import SERVED
from lrphooks.operations import Kind, catalog, names
from lrphooks.rules.base import Rule

PAGE = Path(__file__).with_name("any-graph.md")


@dataclass(frozen=True)
class About:
    """What the page says of one kind of operation, under the rule by convention.

    absorbs: the sinks, as the audit names them, that its operations may have.
    """

    what: str
    formula: str
    source: str
    absorbs: tuple[str, ...] = ()


_PLAIN = "G_a = (∂z/∂a)ᵀ G"
BACH, MONTAVON, ARRAS = "Bach 2015", "Montavon 2019", "Arras 2017"
ALI, ACHTIBAT, OWN = "Ali 2022", "Achtibat 2024", "lrphooks"

KINDS: dict[Kind, About] = {
    "linear": About("linear layers", "the rule of the composite; without one, an error", BACH, ("bias", "stabilizer")),
    "relu": About("ReLU", "G_a = G where a > 0, else 0; so R_a = R_z", BACH),
    "shape": About("moves elements", f"{_PLAIN}: R goes with the elements", BACH),
    "split": About("cuts into several tensors", f"{_PLAIN}: R goes with the elements", BACH),
    "select": About(
        "selects values, or scales each piecewise", f"{_PLAIN}: the winners take all", MONTAVON, ("constants",)
    ),
    "clamp": About(
        "clips to bounds",
        "G_a = G z / a, so R_a = R_z; 0 where a lower bound above 0, or an upper one below it, wins",
        ACHTIBAT,
        ("constants",),
    ),
    "combination": About(
        "linear in all operands together", f"{_PLAIN}: R in proportion to the contributions", BACH, ("constants",)
    ),
    "product": About("multiplies n activations", f"{_PLAIN} / n: R_z / n to each", ACHTIBAT, ("constants",)),
    "added product": About(
        "a summand and a product", f"summand: {_PLAIN}; factors: {_PLAIN} / n", ACHTIBAT, ("constants",)
    ),
    "division": About("divides", f"numerator: {_PLAIN}; denominator: 0", ALI, ("constants",)),
    "power": About("powers", "positive exponent: G_a = G z / a, so R_a = R_z; others: 0", OWN),
    "activation": About("elementwise, f(0) = 0", "G_a = G f(a) / a, so R_a = R_z", ACHTIBAT),
    "gate": About("GLU, z = a σ(b)", "G_a = G σ(b), so R_a = R_z; G_b = 0", ARRAS),
    "constant": About("does not vanish with its input", "0: a gate or a factor takes no share", ARRAS),
    "moments": About("variance with the mean", f"mean: {_PLAIN}; variance: 0", ALI),
    "shift": About("log-softmax, z = a - c", "G_a = G: the log-sum-exp c is a constant", OWN, ("constants",)),
    "softmax": About("softmax, p", "G_a = p (G - pᵀ G)", ACHTIBAT, ("softmax offset",)),
    "attention": About(
        "softmax(q kᵀ + mask) v, fused",
        "plain gradients, times 1/2 for v, 1/4 for q and for k, 1/2 for a mask that depends on the input",
        ACHTIBAT,
        ("softmax offset",),
    ),
    "normalization": About(
        "layer, RMS, group and instance norm", "G_a = C (G w / σ), σ constant, C centres", ALI, ("bias",)
    ),
    "batch norm": About(
        "batch norm", "evaluated: G_a = G w / σ, merged into a layer before it; in training as above", ALI, ("bias",)
    ),
    "composed": About("functions made of others", "run again with each operation inside in view", OWN),
    "recurrent": About("recurrent layers and cells", "the unrolled cells, operation by operation", ARRAS),
}


def kinds() -> str:
    """Return the table of kinds."""
    lines = [
        "| kind | what it does | rule by convention | formula | source | absorbs | other rules |",
        "|---|---|---|---|---|---|---|",
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
        cells = (kind, about.what, convention, about.formula, about.source, absorbs, others)
        lines.append(f"| {' | '.join(cells)} |")
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


_BASES = (Rule, rules.LayerRule, rules.LinearRule, rules.InputRule)


def table_of_rules() -> str:
    """Return the table of rules, from their docstrings."""
    lines = ["| rule | formula | source |", "|---|---|---|"]
    for name in rules.__all__:
        rule = getattr(rules, name)
        if not issubclass(rule, Rule) or inspect.isabstract(rule) or rule in _BASES:
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
