"""One measurement, named by plain data so that another process can make it."""

from __future__ import annotations

import traceback
from typing import Any

import torch

from benchmarks.zoo.measure import describe, measure
from benchmarks.zoo.peers import PEERS
from benchmarks.zoo.subjects import subjects


def measured(source: str, key: str, kind: str) -> dict[str, Any]:
    """Measure one model by one library, in this process."""
    torch.set_flush_denormal(False)
    try:
        subject = next(s for s in subjects(source) if s.key == key)
        return measure(subject).as_dict() if kind == "lrphooks" else PEERS[kind].measure(subject)
    except Exception as error:  # any error belongs in the row
        return {"error": describe(error), "traceback": traceback.format_exc()[-3000:]}
