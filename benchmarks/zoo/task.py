"""The measurements on one model, named by plain data so that another process can make them."""

from __future__ import annotations

import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.zoo.measure import describe, measure
from benchmarks.zoo.peers import PEERS
from benchmarks.zoo.subjects import subjects


def measured(source: str, key: str, kinds: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Measure one model by each library in turn, in this process."""
    return (_measured(source, key, kind) for kind in kinds)


def _measured(source: str, key: str, kind: str) -> dict[str, Any]:
    try:
        subject = next(s for s in subjects(source) if s.key == key)
        return measure(subject).as_dict() if kind == "lrphooks" else PEERS[kind].measure(subject)
    except Exception as error:  # any error belongs in the row
        return {"error": describe(error), "traceback": traceback.format_exc()[-3000:]}
