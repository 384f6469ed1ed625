"""The autograd node that lets only a part of a layer's relevance through to its rule."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine.nodes import Node, _sum, absent, alias, zero_link

if TYPE_CHECKING:
    from lrphooks.engine.passes import Passes
    from lrphooks.rules.filter import TopRelevance


class FilterNode(Node):
    """A relevance filter between a layer's rule and what consumes its output.

    It stands before a :class:`lrphooks.engine.rule_node.RuleNode` and has outputs as that has: z, and the link whose
    gradient is relevance itself. What passes is decided on the sum of both.
    """

    @staticmethod
    def forward(
        ctx: Any, passes: Passes, filtered: TopRelevance, in_place: bool, z: Tensor, link: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.passes, ctx.filtered = passes, filtered
        ctx.save_for_backward(z.clone())
        if in_place:
            ctx.mark_dirty(z)
        return z if in_place else alias(z), zero_link(z)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, relevance: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.passes.relevance:
            return None, None, None, gradient, None
        (z,) = ctx.saved_tensors
        total = _sum(None if gradient is None else gradient * z, relevance)
        if total is None:
            return absent(ctx)
        with torch.no_grad():
            kept = ctx.filtered.kept(total.detach())
        return (
            *(None, None, None),
            None if gradient is None else gradient * kept,
            None if relevance is None else relevance * kept,
        )
