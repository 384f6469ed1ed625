"""The modules whose forward is running, and what was decided for the operations in them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lrphooks.rules.base import Rule


@dataclass(frozen=True, slots=True)
class Decision:
    """What is done with an operation in a module: its rule, what runs it, and what its results inherit.

    plain: nothing at all, where nothing is known of its operands but that they carry relevance.
    positive: its results are not negative then.
    """

    rule: Rule | None
    handler: Callable[..., Any]
    inherits: Callable[..., dict[str, Any]] | None
    plain: bool
    positive: bool


@dataclass(frozen=True, slots=True)
class Source:
    """The input that relevance passes to: its place in the graph, its values, and the way for relevance itself."""

    tensor: Tensor
    values: Tensor
    link: Callable[[], Tensor | None] | None


@dataclass(slots=True)
class Frame:
    """One module whose forward is running.

    served: whether a linear layer in it got its rule. passing: what its relevance passes to, under the rule Pass.
    hooked: whether torch passes what it returns through a node of its own, for backward hooks.
    decisions: what was decided of operations in it, by name.
    """

    module: nn.Module
    served: bool = False
    passing: Source | None = None
    hooked: bool = False
    decisions: dict[str, Decision] | None = None
