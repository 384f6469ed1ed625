"""The rule that each kind of operation follows where the composite says nothing."""

from __future__ import annotations

from lrphooks.operations import Kind
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Constant, Gradient, Identity, Normalize, Uniform

CONVENTIONS: dict[Kind, Rule] = {
    "relu": Gradient(),
    "shape": Gradient(),
    "split": Gradient(),
    "select": Gradient(),
    "clamp": Identity(),
    "combination": Gradient(),
    "product": Uniform(),
    "added product": Uniform(),
    "division": Identity(),
    "power": Identity(),
    "activation": Identity(),
    "gate": Identity(),
    "constant": Constant(),
    "moments": Constant(),
    "shift": Identity(),
    "softmax": Gradient(),
    "attention": Uniform(),
    "normalization": Normalize(),
    "batch norm": Normalize(),
    "composed": Gradient(),
    "recurrent": Gradient(),
}
