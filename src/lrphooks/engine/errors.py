"""The errors and warnings of the library."""

from __future__ import annotations


class LRPError(RuntimeError):
    """Relevance cannot be propagated as asked; the message says what happened, why, and the way out."""


class UnmatchedError(LRPError):
    """A layer or an operation has no rule."""


class UnmatchedWarning(UserWarning):
    """A layer or an operation has no rule and keeps the plain gradient."""
