"""Finds the types of transformers that build and run at a small size; writes ``transformers_types.json``.

python -m benchmarks.zoo.subjects.transformers_types
"""

from __future__ import annotations

import json
from typing import Any

from benchmarks.zoo.pool import Pool


def main() -> None:
    """Try every type in a process of its own."""
    from benchmarks.zoo.subjects.from_transformers import ATTENTION, CONFIG_MAPPING, PATH  # noqa: PLC0415 - slow

    pool = Pool(60, 6)
    found: dict[str, list[str]] = {}
    for name in sorted(CONFIG_MAPPING):
        for attention in ATTENTION:
            result = pool.call(tried, name, attention)
            print(name, attention, result, flush=True)
            if not result.get("error"):
                found.setdefault(name, []).append(attention)
    PATH.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def tried(name: str, attention: str) -> dict[str, Any]:
    """Build and run one type."""
    from benchmarks.zoo.measure import describe  # noqa: PLC0415 - in the other process
    from benchmarks.zoo.subjects.from_transformers import build  # noqa: PLC0415

    try:
        case = build(name, attention)
        case.model.eval()
        count = sum(p.numel() for p in case.model.parameters())
        outputs = case(case.inputs())
        if count > 30_000_000:
            return {"error": f"{count / 1e6:.0f} million parameters"}
        return {"parameters": count, "shapes": [list(t.shape) for t in outputs]}
    except Exception as error:  # noqa: BLE001 - a type refuses small sizes in whatever way it likes
        return {"error": describe(error)}


if __name__ == "__main__":
    main()
