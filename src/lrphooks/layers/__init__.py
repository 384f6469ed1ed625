"""Executed linear layers as rules see them."""
