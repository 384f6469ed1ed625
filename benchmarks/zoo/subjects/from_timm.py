"""timm: the smallest model of every module, at the smallest image that it takes."""

from __future__ import annotations

import json
from functools import partial
from typing import Any

import torch

from benchmarks.zoo.case import Case, Subject
from benchmarks.zoo.subjects import shim as _shim  # noqa: F401  (before timm, which imports torchvision)
from benchmarks.zoo.subjects.timm_sizes import PATH

# isort: split
import timm


def subjects() -> list[Subject]:
    """Return one subject a module, and a second where the smallest is one of timm's own test models."""
    known: dict[str, list[dict[str, Any]]] = json.loads(PATH.read_text(encoding="utf-8"))
    return [
        Subject("timm", entry["model"], partial(_build, entry))
        for module in timm.list_modules()
        for entry in known.get(module, ())
    ]


def _build(entry: dict[str, Any]) -> Case:
    model = timm.create_model(entry["model"], **entry["keywords"])
    channels = model.default_cfg["input_size"][0]
    rows = 2 if entry["size"] <= 160 else 1
    return Case(model, (torch.randn(rows, channels, entry["size"], entry["size"]),))
