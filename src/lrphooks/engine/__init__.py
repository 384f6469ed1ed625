"""Interception: hooks, the function mode, and the autograd nodes that carry the modified gradient."""
