"""The autograd nodes of the engine.

Every node knows two kinds of backward pass. In the *relevance pass*, which starts at an output of the explained
model, it hands on the modified gradient that its rule asks for. In any other pass, such as the derivative of
relevance itself, it hands on the true derivative of its forward value. The two are told apart by
:class:`OutputNode`, which every relevance pass visits first. This is what makes derivatives of relevance exact, with
respect to inputs and weights alike.
"""

# Functions are called as autograd calls them, with a context of no public type.
# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from lrphooks.engine.errors import LRPError
from lrphooks.torch_private import (
    base_of,
    dispatch_modes,
    is_view,
    out_of_selective_checkpoint,
    reshaped_without_view,
    transforms_active,
)

if TYPE_CHECKING:
    from lrphooks.engine.passes import Passes


def alias(tensor: Tensor) -> Tensor:
    """Return the same data as another tensor, with the same strides: view_as would change those of single elements."""
    out: Tensor = torch.ops.aten.alias.default(tensor)
    return out


def zero_link(like: Tensor) -> Tensor:
    """Return zeros shaped as ``like`` that take no memory; only their gradient matters."""
    return like.new_zeros(()).expand(like.shape)


def absent(ctx: Any) -> tuple[None, ...]:
    """Return what a node hands on that received nothing: another node serves what consumes its output."""
    return (None,) * len(ctx.needs_input_grad)


class Node(Function):
    """What all nodes are: an autograd function that is applied in one step where no transform of torch.func runs.

    torch first looks at every argument for tensors that such a transform left behind, which takes as long as the rest.
    """

    #: Whether it runs a function of the model, of which a selective checkpoint may keep the results.
    of_model = False

    @classmethod
    def apply(cls, *args: Any) -> Any:
        """Run the node on its arguments."""
        if transforms_active():
            return super().apply(*args)
        if not cls.of_model and dispatch_modes():
            with out_of_selective_checkpoint():
                return super(Function, cls).apply(*args)  # type: ignore[misc]  # as below
        return super(Function, cls).apply(*args)  # type: ignore[misc]  # the stubs of torch lack it


class InputNode(Node):
    """The model's input: turns the modified gradient G into relevance, R = x * G."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.passes = passes
        ctx.save_for_backward(x)
        # A copy, so that a model that writes to its input in place does so as it would without the node.
        return x.clone(), zero_link(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, relevance: Tensor | None) -> tuple[Tensor | None, ...]:
        if not ctx.passes.relevance:
            if not ctx.passes.differentiable:
                raise LRPError(
                    "This backward pass reaches the explained input without having passed the model's output, so it "
                    "is no relevance: it began at a hidden activation, at an activation of an earlier forward pass, "
                    "or at an output in a container that lrphooks does not know. Begin at what the model returned, in "
                    "tensors, tuples, lists, dicts or dataclasses, explain the part of the model that ends there, or "
                    "leave the context for a plain gradient."
                )
            return None, gradient
        (x,) = ctx.saved_tensors
        if gradient is not None and ctx.passes.times_input:
            # Where nothing arrives there is no relevance, also of a missing value.
            gradient = torch.where(gradient == 0, torch.zeros_like(gradient), gradient * x)
        total = _sum(gradient, relevance)
        if total is not None and torch.is_grad_enabled():
            ctx.passes.differentiable = True
            total = RelevanceNode.apply(ctx.passes, total)
        return None, total


class RelevanceNode(Node):
    """Relevance that may be differentiated again.

    Its backward comes before that of the output, which is older, so a pass that differentiates relevance is known
    as such even where it also goes through the output: a seed that depends on the output, or a loss of both.
    """

    @staticmethod
    def forward(ctx: Any, passes: Passes, relevance: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.passes = passes
        return alias(relevance)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        ctx.passes.differentiate()
        return None, gradient


class OutputNode(Node):
    """The model's output: where a relevance pass begins."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, stopped: bool, output: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.passes, ctx.stopped = passes, stopped
        # A copy, since the caller may write to the output in place, which a view made here would forbid.
        return output.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        if ctx.stopped:
            raise LRPError(
                "The model's output is a value that counts as a constant (such as a sigmoid, an exponential or a "
                "softmax under CP-LRP), so no relevance could flow into the model. Explain the value before it (the "
                "logits), or give the operation a rule that passes relevance: "
                "(torch.sigmoid, lrphooks.rules.Identity())."
            )
        ctx.passes.begin()
        return None, None, gradient


class ScaleNode(Node):
    """Hands on a fixed share of the modified gradient; a share of 0 makes the tensor a constant.

    It stands before one use of a tensor, or in place on a tensor that nobody has seen.
    """

    @staticmethod
    def forward(ctx: Any, passes: Passes, share: float, x: Tensor, in_place: bool = False) -> Tensor:
        ctx.set_materialize_grads(False)
        # Not the run, which holds such tensors while the model runs.
        ctx.passes, ctx.share = passes, share
        if not in_place:
            return alias(x)
        ctx.mark_dirty(x)
        return x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        if not ctx.passes.relevance:
            return None, None, gradient, None
        return None, None, gradient * ctx.share if ctx.share else None, None


class TwinNode(Node):
    """A value computed in one piece, with the autograd graph of a twin that computes the same step by step.

    The twin's own nodes tell the passes apart. The value comes in a tuple, which autograd looks past.
    """

    @staticmethod
    def forward(ctx: Any, value: tuple[Tensor], twin: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        return value[0]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        return None, gradient


class ShareNode(Node):
    """Hands on the share of the modified gradient that a tensor gives for each element."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, share: Tensor, x: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.passes = passes
        ctx.save_for_backward(share)
        return alias(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
        if gradient is None:
            return absent(ctx)
        if not ctx.passes.relevance:
            return None, None, gradient
        (share,) = ctx.saved_tensors
        return None, None, gradient * share


def unaliased(tensor: Tensor) -> Tensor:
    """Return the tensor, or where autograd counts it as a view, the same data that it does not.

    Views made inside a node may not be written in place afterwards, and only non-views take a node in place.
    """
    if not is_view(tensor):
        return tensor
    base = base_of(tensor)
    if base is not None and base.numel() == tensor.numel() and base.is_contiguous() and tensor.is_contiguous():
        return reshaped_without_view(base, tensor.shape)
    return tensor.clone()


def per_input(relevance: Tensor, a: Tensor) -> Tensor:
    """Return the modified gradient R / a; what falls on inputs that are exactly 0 cannot be carried by one."""
    zero = a == 0
    return torch.where(zero, torch.zeros_like(relevance), relevance / torch.where(zero, torch.ones_like(a), a))


def _sum(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    if first is None or second is None:
        return first if second is None else second
    return first + second
