"""Import this before torchvision, and before whatever imports it: the shim of the tests."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_PATH = Path(__file__).parents[3] / "tests" / "torchvision_shim.py"
_specification = importlib.util.spec_from_file_location("torchvision_shim", _PATH)
assert _specification is not None
assert _specification.loader is not None
_shim = importlib.util.module_from_spec(_specification)
_specification.loader.exec_module(_shim)
