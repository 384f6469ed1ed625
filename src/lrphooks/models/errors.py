"""What can go wrong before a model is there to explain."""

from __future__ import annotations


class ModelError(ValueError):
    """A model cannot be loaded as it was asked for; the message says why, and the way out."""


class UnknownModelError(ModelError):
    """There is no model of that name."""


class MissingExtraError(ImportError):
    """A model needs packages that an extra of lrphooks installs."""
