"""Explanations as compiled graphs: the forward pass, the rules and the backward pass in one."""

from lrphooks.compilation.explainer import CompiledExplainer, compiled

__all__ = ["CompiledExplainer", "compiled"]
