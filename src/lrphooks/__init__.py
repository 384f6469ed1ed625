"""Layer-wise Relevance Propagation for any PyTorch model, at about the price of a gradient."""

from lrphooks.cli import signals as _signals

if _signals.is_program():
    # Before torch is imported, which takes seconds: Ctrl-C ends the program with a line meanwhile, too.
    _signals.end_at_once()

from lrphooks import baselines, composites, concepts, evaluation, matching, rules, targets
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
    "audit",
    "baselines",
    "compiled",
    "composites",
    "concepts",
    "evaluation",
    "explain",
    "lrp",
    "lrp_targets",
    "matching",
    "rules",
    "targets",
    "tune",
]
__version__ = "0.1.0"
