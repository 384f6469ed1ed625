"""Layer-wise Relevance Propagation for any PyTorch model, at about the price of a gradient.

What it offers is imported where it is first asked for, and torch with it: the help of the command line needs neither.
"""

import importlib as _importlib
import sys as _sys
from types import ModuleType as _Module
from typing import TYPE_CHECKING, Any

from lrphooks.cli import signals as _signals

if _signals.is_program():
    # Before torch is imported, which takes seconds: Ctrl-C ends the program with a line meanwhile, too.
    _signals.end_at_once()

if TYPE_CHECKING:
    from lrphooks import (
        adapters,
        baselines,
        composites,
        concepts,
        digits,
        evaluation,
        matching,
        models,
        operations,
        rules,
        targets,
        testing,
        visualization,
    )
    from lrphooks.audit import audit
    from lrphooks.compilation import compiled
    from lrphooks.composite import Composite
    from lrphooks.engine.errors import LRPError, UnmatchedError, UnmatchedWarning
    from lrphooks.evaluation import tune
    from lrphooks.explanation import Explanation, explain, lrp, lrp_targets

__all__ = [
    "Composite",
    "Explanation",
    "LRPError",
    "UnmatchedError",
    "UnmatchedWarning",
    "adapters",
    "audit",
    "baselines",
    "compiled",
    "composites",
    "concepts",
    "digits",
    "evaluation",
    "explain",
    "lrp",
    "lrp_targets",
    "matching",
    "models",
    "operations",
    "rules",
    "targets",
    "testing",
    "tune",
    "visualization",
]
__version__ = "0.1.0"

#: Where the names are at home that are no modules of their own.
_HOMES = {
    "Composite": "composite",
    "Explanation": "explanation",
    "LRPError": "engine.errors",
    "UnmatchedError": "engine.errors",
    "UnmatchedWarning": "engine.errors",
    "compiled": "compilation",
    "explain": "explanation",
    "lrp": "explanation",
    "lrp_targets": "explanation",
    "tune": "evaluation",
}


class _Package(_Module):
    """The package, in which ``audit`` is the function, also where its module of that name was imported first."""

    @property
    def audit(self) -> Any:
        return _importlib.import_module(f"{__name__}.audit").audit

    @audit.setter
    def audit(self, _: object) -> None:
        """An import would set the module here."""


_sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        found = getattr(_importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in __all__:
        found = _importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
