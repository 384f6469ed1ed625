"""Layer-wise Relevance Propagation for any PyTorch model, at about the price of a gradient."""

from lrphooks import composites, matching, rules
from lrphooks.audit import audit
from lrphooks.composite import Composite
from lrphooks.engine.errors import LRPError, UnmatchedError, UnmatchedWarning
from lrphooks.explain import lrp, lrp_targets

__all__ = [
    "Composite",
    "LRPError",
    "UnmatchedError",
    "UnmatchedWarning",
    "audit",
    "composites",
    "lrp",
    "lrp_targets",
    "matching",
    "rules",
]
__version__ = "0.1.0"
