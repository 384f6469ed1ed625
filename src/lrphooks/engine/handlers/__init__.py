"""What each kind of operation does to relevance: one short function a kind."""

from __future__ import annotations

from lrphooks.engine.handlers import common, composed, elementwise, normalizing, products, recurrent, structure, unknown
from lrphooks.engine.handlers.common import Handler
from lrphooks.operations import Kind

HANDLERS: dict[Kind, Handler] = {
    "relu": elementwise.relu,
    "shape": common.plain,
    "split": common.plain,
    "select": structure.select,
    "clamp": structure.clamp,
    "combination": structure.combination,
    "product": products.product,
    "added product": products.added_product,
    "division": products.division,
    "power": elementwise.power,
    "activation": elementwise.activation,
    "gate": elementwise.gate,
    "constant": elementwise.activation,
    "moments": normalizing.moments,
    "shift": elementwise.shift,
    "softmax": common.plain,
    "attention": normalizing.attention,
    "normalization": normalizing.normalization,
    "batch norm": normalizing.normalization,
    "composed": composed.composed,
    "recurrent": recurrent.recurrent,
    "unknown": unknown.unknown,
}
