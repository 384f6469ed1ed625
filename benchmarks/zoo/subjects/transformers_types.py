"""Finds the types of transformers that build and run at a small size; writes ``transformers_types.json``.

python -m benchmarks.zoo.subjects.transformers_types
"""

from __future__ import annotations

import json
from typing import Any

import torch

from benchmarks.zoo.measure import describe
from benchmarks.zoo.pool import Pool
from benchmarks.zoo.subjects.from_transformers import CONFIG_MAPPING, PATH, build, kinds

#: Types that stay larger than this are left out.
LARGEST = 30_000_000


def main() -> None:
    """Try every type in a process of its own."""
    pool = Pool(60, 6)
    found: dict[str, list[str]] = {}
    for name in sorted(CONFIG_MAPPING):
        for kind in pool.call(listed, name).get("kinds", ()):
            result = pool.call(tried, name, kind)
            print(name, kind, result, flush=True)
            if not result.get("error"):
                found.setdefault(name, []).append(kind)
    PATH.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def listed(name: str) -> dict[str, Any]:
    """Return what there is to try of a type."""
    try:
        return {"kinds": kinds(name)}
    except Exception as error:  # any error belongs in the row
        return {"error": describe(error)}


def tried(name: str, kind: str) -> dict[str, Any]:
    """Build and run one type."""
    try:
        case = build(name, kind)
        case.model.eval()
        count = sum(p.numel() for p in case.model.parameters())
        if count > LARGEST:
            return {"error": f"{count / 1e6:.0f} million parameters"}
        inputs = case.inputs()
        outputs = case(inputs)
        gradients = torch.autograd.grad(outputs[0].sum(), inputs, allow_unused=True)
        if all(gradient is None for gradient in gradients):
            return {"error": "the output does not depend on the input"}
        if not all(bool(t.isfinite().all()) for t in outputs):
            return {"error": "the output is not finite"}
        return {"parameters": count, "shapes": [list(t.shape) for t in outputs]}
    except Exception as error:  # any error belongs in the row
        return {"error": describe(error)}


if __name__ == "__main__":
    main()
