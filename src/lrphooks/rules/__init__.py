"""The rules of Layer-wise Relevance Propagation, as immutable values."""

from lrphooks.rules.base import LayerRule, Rule, Stabilizer
from lrphooks.rules.filter import TopRelevance
from lrphooks.rules.input import Flat, InputRule, WSquare, ZBox
from lrphooks.rules.linear import AlphaBeta, Epsilon, Gamma, ZPlus
from lrphooks.rules.linear_rule import LinearRule
from lrphooks.rules.operation import (
    Constant,
    DeconvReLU,
    Gradient,
    GuidedReLU,
    Identity,
    Normalize,
    OperationRule,
    Pass,
    Proportional,
    TakesAll,
    Uniform,
)

__all__ = [
    "AlphaBeta",
    "Constant",
    "DeconvReLU",
    "Epsilon",
    "Flat",
    "Gamma",
    "Gradient",
    "GuidedReLU",
    "Identity",
    "InputRule",
    "LayerRule",
    "LinearRule",
    "Normalize",
    "OperationRule",
    "Pass",
    "Proportional",
    "Rule",
    "Stabilizer",
    "TakesAll",
    "TopRelevance",
    "Uniform",
    "WSquare",
    "ZBox",
    "ZPlus",
]
