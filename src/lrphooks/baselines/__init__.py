"""Other ways to attribute a prediction, behind the same call as LRP, for comparison."""

from lrphooks.baselines.base import Baseline

__all__ = ["Baseline"]
