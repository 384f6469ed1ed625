"""Finds the smallest model of each module of timm and the smallest image that it takes; writes ``timm_models.json``.

python -m benchmarks.zoo.subjects.timm_sizes
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import torch

from benchmarks.zoo.subjects import shim as _shim  # noqa: F401  (before timm, which imports torchvision)

# isort: split
import timm

PATH = Path(__file__).with_name("timm_models.json")
SIZES = (32, 64, 96, 128, 160, 192, 224, 240, 256, 288, 384, 448, 512, 768, 1024)
#: Tried on models of more parameters than this.
LARGE = 80_000_000
SMALLER: tuple[dict[str, Any], ...] = ({"depth": 2}, {"depths": (1, 1, 1, 1)})


def main() -> None:
    """Look through all modules."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {}
    for module in timm.list_modules():
        counts = sorted((parameters(name), name) for name in timm.list_models(module=module))
        real = [entry for entry in counts if not entry[1].startswith("test_")]
        # Models named test_ are tiny; the smallest of the others is measured beside them.
        names = {counts[0], real[0]} if real else {counts[0]}
        found[module] = [setting(name, count) for count, name in sorted(names)]
        print(module, found[module], flush=True)
    PATH.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def parameters(name: str) -> int:
    """Return how many parameters a model has."""
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def setting(name: str, count: int) -> dict[str, Any]:
    """Return the model's name, the keywords that make it small, and its image size."""
    for extra in (*SMALLER, {}) if count > LARGE else ({},):
        for size in SIZES:
            for keywords in ({"img_size": size, **extra}, dict(extra)):
                if _works(name, keywords, size):
                    return {"model": name, "keywords": keywords, "size": size}
    return {"model": name, "keywords": {}, "size": 224}


def _works(name: str, keywords: dict[str, Any], size: int) -> bool:
    try:
        model = timm.create_model(name, **keywords).eval()
        with torch.no_grad():
            return bool(model(torch.randn(1, 3, size, size)).isfinite().all())
    except Exception:  # any error belongs in the row
        return False


if __name__ == "__main__":
    main()
