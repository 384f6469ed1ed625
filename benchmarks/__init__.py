"""Measurements and training scripts: run from a checkout, never part of the package."""
