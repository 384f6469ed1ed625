"""Which torch functions there are, under all their names, and what kind of operation each one is."""

from lrphooks.operations.catalog import Kind, Operation, classify, identify, lookup

__all__ = ["Kind", "Operation", "classify", "identify", "lookup"]
