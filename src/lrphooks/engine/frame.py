"""One module whose forward is running."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from lrphooks.engine.execution import Decision
    from lrphooks.engine.passing import Source


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
