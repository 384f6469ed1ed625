"""The epsilon rule of a dense layer as a share of the gradient, for consumers that are seen.

With a constant stabilizer the rule is the gradient times z / (z + s sign z), element by element. So it may stand
wherever the elements of the output have been moved to, and keeps nothing but them: the rest of the way is the plain
gradient of what was moved and of the layer. Where the consumer keeps the same memory anyway, it costs none; elsewhere
the node keeps a copy, since the model may overwrite what no other operation keeps.

The node's way back goes around the guard of the layer: along the same moves, of the output as it was before it.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.autograd import Function

from lrphooks.engine import notes
from lrphooks.engine.call import Call
from lrphooks.engine.nodes import TwinNode, absent
from lrphooks.rules import factors
from lrphooks.rules.linear import LinearRule
from lrphooks.rules.operation import Constant, Gradient, Normalize

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


class EpsilonNode(Function):
    """The output z of a layer, or a part of it, as one consumer is to see it.

    ``held`` is z in a tuple, which autograd looks past; ``raw`` is z in the graph; ``kept`` is a copy of it, or None
    where the consumer keeps z too, which then cannot be overwritten.
    """

    @staticmethod
    def forward(
        ctx: Any, run: Run, rule: LinearRule, held: tuple[Tensor], raw: Tensor, kept: Tensor | None
    ) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.run, ctx.rule = run, rule
        # Not a view for autograd, whose base would keep the guard and the layer's input alive.
        out = held[0].detach()
        ctx.save_for_backward(out if kept is None else kept)
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        if not ctx.run.passes.relevance:
            return None, None, None, gradient, None
        (z,) = ctx.saved_tensors
        shift = ctx.rule.shift(z.dtype)
        if torch.is_grad_enabled():
            signed = torch.where(z < 0, torch.full_like(z, -shift), torch.full_like(z, shift))
            return None, None, None, gradient * z / (z + signed), None
        sizes = z.abs()
        return None, None, None, gradient / factors.divisor(sizes, shift, out=sizes), None


@dataclass(slots=True)
class Origin:
    """The output of a layer, or a copy of it that was laid out anew, in the graph before the layer's guard.

    hooks: the hooks on saved tensors that were in force.
    kept: a copy, made when the first consumer needs one.
    """

    rule: LinearRule
    raw: Tensor
    hooks: Any
    kept: Tensor | None = None


@dataclass(slots=True)
class Moved:
    """Elements of a layer's output that wait for a consumer: where they come from, and how they were moved since.

    shared, own: what consumers see that keep the elements themselves, and others.
    """

    origin: Origin
    moves: tuple[Callable[[Tensor], Tensor], ...] = field(default=())
    shared: Tensor | None = None
    own: Tensor | None = None

    def along(self, tensor: Tensor) -> Tensor:
        """Return the elements of another tensor of the origin's shape, moved alike."""
        for move in self.moves:
            tensor = move(tensor)
        return tensor

    def settle(self, run: Run, tensor: Tensor, *, shared: bool) -> Tensor:
        """Return the tensor as its consumer is to see it; ``shared`` if the consumer keeps it for its derivative."""
        origin = self.origin
        if self.own is not None:
            return self.own
        if shared:
            if self.shared is None:
                self.shared = EpsilonNode.apply(run, origin.rule, (tensor,), self.along(origin.raw), None)
            return self.shared
        # Also if another consumer keeps the elements: relevance may not come back by that one.
        if origin.kept is None:
            origin.kept = origin.raw.clone()
        raw, kept = self.along(origin.raw), self.along(origin.kept)
        self.own = EpsilonNode.apply(run, origin.rule, (tensor,), raw, kept)
        return self.own

    def follow(self, run: Run, call: Call, out: Any) -> None:
        """Note on the results of a move where their elements come from."""
        source = call.dependent[0]
        function = call.over([source])
        if isinstance(out, Tensor):
            if out is not source:
                self._note(run, call, out, function)
        elif isinstance(out, list | tuple):
            for i, part in enumerate(out):
                self._note(run, call, part, lambda t, i=i: function(t)[i])

    def _note(self, run: Run, call: Call, out: Tensor, move: Callable[[Tensor], Tensor]) -> None:
        moved = Moved(self.origin, (*self.moves, move))
        if not out._is_view():
            # A copy, whose memory a consumer may keep in place of that of the layer's output.
            again = call.operation.name in _COPIES
            raw = TwinNode.apply((out.detach(),), self.along(self.origin.raw)) if again else moved.along(self.origin.raw)
            moved = Moved(Origin(self.origin.rule, raw, self.origin.hooks))
        notes.write(out, run, moved=moved)


#: How a call consumes a tensor: it moves elements, keeps them for its derivative, or only reads them; "" for ways of
#: which that is not known, or that may hand the tensor itself on to others.
Way = Literal["moves", "keeps", "reads", ""]

_MOVES = frozenset(
    """
    view view_as reshape reshape_as flatten unflatten ravel squeeze unsqueeze transpose swapaxes t T mT movedim permute
    expand expand_as contiguous clone narrow select slice getitem chunk split split_with_sizes tensor_split unbind
    """.split()
)
_COPIES = ("contiguous", "clone")
_KEEPING_ACTIVATIONS = ("gelu", "silu", "mish", "hardswish")
_KEEPING_NORMS = ("layer_norm", "rms_norm", "group_norm")
#: Operations whose result has memory of its own.
_READS = frozenset("add sub neg cat stack sum mean mul div matmul bmm mm baddbmm addcmul softmax".split())


def way(run: Run, call: Call, tensor: Tensor, rule: Callable[[Call], Any]) -> Way:
    """Return how a call consumes a tensor. It must be right about keeping: what is kept cannot be overwritten."""
    kind, name = call.operation.kind, call.operation.name
    if "out" in call.kwargs or (call.writes_in_place and (not call.args or call.args[0] is tensor)):
        return ""
    if kind == "linear":
        return "reads"
    if name in _READS or (kind == "relu" and not call.writes_in_place):
        return "reads"
    if call.writes_in_place:
        return ""
    if name in _MOVES and len(call.dependent) == 1:
        return "moves" if isinstance(rule(call), Gradient) else ""
    if name == "dropout" and not call.argument(2, "training", default=True):
        return "moves"
    if kind == "activation":
        held = rule(call)
        if isinstance(held, Constant):
            return ""
        return "keeps" if not isinstance(held, Gradient) or name in _KEEPING_ACTIVATIONS else "reads"
    if name in _KEEPING_NORMS and call.dependent[0] is tensor:
        held = rule(call)
        return "keeps" if isinstance(held, Normalize) else ""
    if kind == "batch norm":
        return "reads"
    if kind == "attention":
        return "keeps" if _is_fused(call) else "reads"
    return ""


def _is_fused(call: Call) -> bool:
    """Whether attention is computed by a kernel that keeps query, key and value as they are."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    query, key, value, mask, dropout, causal = (call.argument(i, n) for i, n in enumerate(names))
    rest = {k: v for k, v in call.kwargs.items() if k in ("scale", "enable_gqa")}
    try:
        choice = torch._fused_sdp_choice(query, key, value, mask, dropout or 0.0, bool(causal), **rest)
    except (RuntimeError, TypeError):
        return False
    return int(choice) == int(torch.nn.attention.SDPBackend.FLASH_ATTENTION.value)
