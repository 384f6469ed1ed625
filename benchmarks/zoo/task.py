"""One measurement, named by plain data so that another process can make it."""

from __future__ import annotations

import traceback
from typing import Any

from benchmarks.zoo.measure import describe, measure
from benchmarks.zoo.peers import PEERS
from benchmarks.zoo.subjects import subjects


def measured(source: str, key: str, kind: str) -> dict[str, Any]:
    """Measure one model by one library, in this process."""
    try:
        subject = next(s for s in subjects(source) if s.key == key)
        if kind == "lrphooks":
            return measure(subject).as_dict()
        return PEERS[kind].measure(subject)
    except Exception as error:  # any error belongs in the row
        return {"error": describe(error), "traceback": traceback.format_exc()[-3000:]}
