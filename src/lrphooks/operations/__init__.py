"""Which torch functions there are, under all their names, and what kind of operation each one is."""

from lrphooks.operations.catalog import Kind, Operation, by_node, classify, identify, lookup
from lrphooks.operations.public import canonical, expression, is_operation

__all__ = ["Kind", "Operation", "by_node", "canonical", "classify", "expression", "identify", "is_operation", "lookup"]
