"""The table of results, and what counts as a fault."""

from __future__ import annotations

import contextlib
import datetime as dt
import statistics
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

#: What every row must reach.
BARS = {"conserved": 1e-6, "unexplained": 1e-9, "unexplained32": 1e-3}
#: A model that gives more than this part of f(x) at x = 0 adds constants of its own.
OFFSET = 1e-9
#: The other libraries, and the sources that they are made for; all if empty.
PEERS: dict[str, tuple[str, ...]] = {"zennit": (), "captum": (), "lxt": ("transformers",), "autolrp": ()}
_VERSIONS = ("torch", "timm", "torchvision", "transformers", "keras", "torch-geometric", *PEERS)

_LEGEND = f"""\
Each model is built with random weights; biases, gains and running statistics are perturbed. The explained value f(x)
is the largest output of each row. Columns:

- **unexplained**: what `lrphooks.audit` cannot account for, under AttnLRP, with all parameters, in float64 and in
  float32 (bars {BARS["unexplained"]:.0e} and {BARS["unexplained32"]:.0e}).
- **conserved**: |f(x) - ΣR| over the larger of both, with everything additive (biases, shifts, position embeddings,
  running means) set to zero and the softmax constant (`CPLRP(epsilon=0)`), in float64 (bar {BARS["conserved"]:.0e}).
  "constants" stands for a model whose code adds constants (f(0) is not 0), so that the sum need not be f(x),
  "not finite" for one that divides by 0 without them.
- **same**: whether the forward value is bit-identical to the plain model's.
- **time**: relevance over the plain gradient, forward pass included, one thread, the shortest of three runs each.
  Small models show the overhead of Python. The machine did other work beside, so single ratios may be far off; the
  medians of the table below are not, and [speed.md](speed.md) has times of their own.
- The other libraries on the same model: what they lose of f(x) (the same measure as "conserved"), or the error that
  they raise. "not run" stands for what was not tried, "–" for a library that is not made for such models.

Models that turn to float32 on their way are kept in double precision for the two columns in float64; "float32 only"
stands for those that torch cannot run in double precision (grouped products of experts)."""

_ENTRIES = """\
These models compute in autograd functions of their own, which cannot be looked into and are refused by default. They
are measured with the entry that the error asks for, in front of the composite's own."""


def failed(row: dict[str, Any]) -> bool:
    """Whether a row misses a bar."""
    return bool(faults(row))


def faults(row: dict[str, Any]) -> list[str]:
    """Return what is wrong with a row, in words."""
    if row.get("error"):
        return [f"error: {row['error']}"]
    found = []
    for name, bar in BARS.items():
        value = row.get(name)
        if name == "conserved" and (row.get("offset") or 0.0) > OFFSET:
            continue
        if value is not None and not value <= bar:
            found.append(f"{name} {value:.1e}")
    if row.get("identical") is False:
        found.append("forward not bit-identical")
    found += [f"fell back: {message}" for message in row.get("fallbacks") or []]
    if row.get("default"):
        found.append(f"default composite: {row['default']}")
    return found


def line(row: dict[str, Any]) -> str:
    """Return a row for the terminal."""
    numbers = "/".join(_number(row.get(name)) for name in ("unexplained", "unexplained32", "conserved", "conserved32"))
    words = "; ".join([*faults(row), *(row.get("notes") or [])])
    return f"{row['key']} {numbers} {_ratio(row)} {row.get('wall', 0):.0f}s {words}"


def _number(value: float | None) -> str:
    return "" if value is None else "0" if value == 0 else f"{value:.0e}"


def _ratio(row: dict[str, Any]) -> str:
    value = row.get("ratio")
    return "" if value is None else f"{value:.1f}×"


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Write the table."""
    path.write_text("\n".join(line.rstrip() for line in _document(rows)) + "\n", encoding="utf-8")


def _document(rows: list[dict[str, Any]]) -> Iterator[str]:
    rows = sorted(rows, key=lambda row: row.get("place", 0))
    own = [row for row in rows if row["by"] == "lrphooks"]
    peers = {(row["key"], row["by"]): row for row in rows if row["by"] != "lrphooks"}
    names = [name for name in PEERS if any(by == name for _, by in peers)]
    yield "# Coverage"
    yield ""
    yield from _summary(own)
    yield ""
    yield _LEGEND
    yield ""
    today = dt.datetime.now(dt.timezone.utc).date()
    command = f"python -m benchmarks.zoo{' --peers' if names else ''}"
    yield f"Made by `{command}` on {today}, on a CPU, with {', '.join(_versions())}."
    yield ""
    yield from _engines(own)
    yield from _peers_summary(own, peers, names)
    faulty = [row for row in own if failed(row)]
    if faulty:
        yield from ("", "## Rows that miss a bar", "")
        yield from (f"- **{row['key']}**: {_words(faults(row))}" for row in faulty)
    served = [row for row in own if row.get("entries")]
    if served:
        yield from ("", "## Rows with an entry of their own", "", _ENTRIES, "")
        yield from (
            f"- **{row['key']}**: `{', '.join(row['entries'])}`; without it {_words([row['refused']])}"
            for row in served
        )
    for source in dict.fromkeys(row["key"].split("/")[0] for row in own):
        yield from ("", f"## {source}", "")
        yield from _table([row for row in own if row["key"].startswith(f"{source}/")], peers, names)


def _summary(own: list[dict[str, Any]]) -> Iterator[str]:
    sources = dict.fromkeys(row["key"].split("/")[0] for row in own)
    yield "| source | models | reach every bar | largest unexplained, float64 | float32 |"
    yield "|---|---|---|---|---|"
    for source in sources:
        rows = [row for row in own if row["key"].startswith(f"{source}/")]
        good = sum(not failed(row) for row in rows)
        largest = [
            max((row.get(name) or 0.0 for row in rows), default=0.0) for name in ("unexplained", "unexplained32")
        ]
        yield f"| {source} | {len(rows)} | {good} | {_number(largest[0])} | {_number(largest[1])} |"
    good = sum(not failed(row) for row in own)
    yield f"| all | {len(own)} | {good} | | |"


def _engines(own: list[dict[str, Any]]) -> Iterator[str]:
    """Say which commits of lrphooks the rows were measured at."""
    counts = Counter(row.get("engine", "an unknown commit") for row in own)
    if len(counts) == 1:
        yield f"lrphooks was measured at {next(iter(counts))}."
        return
    listed = []
    for name, count in counts.most_common():
        sources = Counter(row["key"].split("/")[0] for row in own if row.get("engine", "an unknown commit") == name)
        listed.append(f"{count} models at {name} ({', '.join(f'{n} of {source}' for source, n in sources.items())})")
    yield f"lrphooks was measured at several commits: {'; '.join(listed)}."


def _peers_summary(
    own: list[dict[str, Any]], peers: dict[tuple[str, str], dict[str, Any]], names: list[str]
) -> Iterator[str]:
    if not names:
        return
    head = "| library | models | not run | raise an error | run | lose less than 1 % of f(x) | median time |"
    yield from ("", "Of the models that add no constants, by library:", "", head, "|---|---|---|---|---|---|---|")
    compared = [row["key"] for row in own if (row.get("offset") or 0.0) <= OFFSET and not row.get("error")]
    for name in names:
        keys = [key for key in compared if _made_for(name, key)]
        tried = [peers[key, name] for key in keys if (key, name) in peers]
        ran = [row for row in tried if not row.get("error")]
        good = [row for row in ran if (row.get("conserved") or 0.0) < 0.01]
        numbers = (len(keys), len(keys) - len(tried), len(tried) - len(ran), len(ran), len(good))
        yield f"| {name} | {' | '.join(map(str, numbers))} | {_median(ran)} |"


def _median(rows: list[dict[str, Any]]) -> str:
    ratios = [row["ratio"] for row in rows if row.get("ratio") is not None]
    return f"{statistics.median(ratios):.1f}×" if ratios else ""


def _made_for(name: str, key: str) -> bool:
    return not PEERS[name] or key.startswith(tuple(f"{source}/" for source in PEERS[name]))


def _table(own: list[dict[str, Any]], peers: dict[tuple[str, str], dict[str, Any]], names: list[str]) -> Iterator[str]:
    yield "| model | unexplained | float32 | conserved | same | time |" + "".join(f" {name} |" for name in names)
    yield "|---|" + "---|" * (5 + len(names))
    for row in own:
        cells = [row["key"].split("/", 1)[1], *_cells(row)]
        cells += [_peer_cell(peers.get((row["key"], name))) if _made_for(name, row["key"]) else "–" for name in names]
        yield "| " + " | ".join(cells) + " |"


def _cells(row: dict[str, Any]) -> list[str]:
    if row.get("error"):
        return [_words([row["error"]]), "", "", "", ""]
    constants = (row.get("offset") or 0.0) > OFFSET
    conserved = "constants" if constants else _number(row.get("conserved"))
    if any("not finite without" in note for note in row.get("notes") or ()):
        conserved = "not finite"
    same = {True: "yes", False: "no", None: ""}[row.get("identical")]
    single = any("double precision" in note for note in row.get("notes") or ())
    double = "float32 only" if single and row.get("unexplained") is None else _number(row.get("unexplained"))
    return [double, _number(row.get("unexplained32")), conserved, same, _ratio(row)]


def _peer_cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not run"
    if row.get("error"):
        return str(row["error"]).split(":")[0]
    return _number(row.get("conserved"))


def _words(texts: list[str]) -> str:
    joined = "; ".join(texts)
    # Paths belong to the machine, not to the finding.
    words = [Path(word).name if "/" in word and word.lstrip("(").startswith("/") else word for word in joined.split()]
    return " ".join(words).replace("|", "\\|")[:400]


def _versions() -> Iterator[str]:
    for name in _VERSIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            yield f"{name} {metadata.version(name)}"
