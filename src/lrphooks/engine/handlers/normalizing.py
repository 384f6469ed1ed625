"""Normalisations, statistics and fused attention."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import facts
from lrphooks.engine.attention_node import twice_differentiable
from lrphooks.engine.call import Call
from lrphooks.engine.handlers.common import plain, stop
from lrphooks.engine.handlers.products import shares_of
from lrphooks.engine.nodes import ScaleNode
from lrphooks.engine.normalization_nodes import NormalizationNode
from lrphooks.engine.passing import through
from lrphooks.engine.unmatched import report_operation
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Constant, Gradient, Identity, Pass, Uniform

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


#: Where the arguments weight, bias and eps of each normalisation stand.
POSITIONS: dict[str, tuple[int, int | None, int]] = {
    "layer_norm": (2, 3, 4),
    "rms_norm": (2, None, 3),
    "group_norm": (2, 3, 4),
    "instance_norm": (3, 4, 7),
    "batch_norm": (3, 4, 7),
}


def moments(run: Run, call: Call, rule: Rule) -> Any:
    """var_mean: the variance is a constant, the mean is linear."""
    out = call.invoke()
    if not isinstance(rule, Gradient):
        stop(run, out[0], alone=False)
    return out


def attention(run: Run, call: Call, rule: Rule) -> Any:
    """softmax(q k^T) v by the fused kernel: q and k share what the weights receive, the values the rest."""
    names = ("query", "key", "value", "attn_mask")
    operands = [call.argument(i, n) for i, n in enumerate(names)]
    if not isinstance(rule, Gradient):
        carries = [run.carries(t) for t in operands]
        shares = attention_shares(run, operands, carries, weights=not isinstance(rule, Constant))
        # The same tensor may stand for several operands, so each position is exchanged, not each identity.
        operands = [
            ScaleNode.apply(run.passes, s, t) if c else t for t, c, s in zip(operands, carries, shares, strict=True)
        ]
    rest = {k: v for k, v in call.kwargs.items() if k not in names}
    out = call.function(*operands, *call.args[4:], **rest)
    dropout, causal = call.argument(4, "dropout_p", 0.0), call.argument(5, "is_causal", default=False)
    settings = {k: v for k, v in rest.items() if k in ("scale", "enable_gqa")}
    return twice_differentiable(out, tuple(operands), dropout, causal=bool(causal), **settings)


def attention_shares(
    run: Run, operands: Sequence[Any], carries: Sequence[bool], *, weights: bool
) -> tuple[float, float, float, float]:
    """Return the shares of query, key, value and mask.

    The weights are one factor if any of their operands carries relevance, and the values are what they are a product
    of. What the weights receive goes to the product of query and key; the mask, which adds to it, has its own part.
    """
    query, key, value, mask = carries
    logits, part = 1.0, 1.0
    if not (query or key or mask) or not weights:
        logits = 0.0
    elif value:
        known = facts.read(operands[2], run)
        degree = 1 if known is None else 0 if known.gates else known.degree
        logits, part = 1.0 / (1 + degree), degree / (1.0 + degree)
    both = shares_of(run, list(operands[:2]), Uniform()) if query and key else [1.0, 1.0]
    return logits * both[0], logits * both[1], part, logits


def normalization(run: Run, call: Call, rule: Rule) -> Any:
    """Layer, RMS, group, instance and training-time batch normalisation."""
    if isinstance(rule, Gradient | Constant):
        return plain(run, call, rule)
    if isinstance(rule, Identity | Pass):
        return through(run, call.dependent[0], call.invoke())
    name = call.operation.name
    positions = POSITIONS[name]
    x, weight = call.dependent[0], call.argument(positions[0], "weight")
    bias = None if positions[1] is None else call.argument(positions[1], "bias")
    eps = call.argument(positions[2], "eps", None if name == "rms_norm" else 1e-5)
    if run.carries(weight) or run.carries(bias):
        report_operation(run, call, "its scale or shift depends on the explained input")
    tracked = name == "instance_norm" and not call.argument(5, "use_input_stats", True)
    if tracked:
        return call.invoke()
    again = call.over((x, weight, bias))
    function: Callable[..., tuple[Tensor, Tensor | None]] = partial(_alone, again)
    if name in ("batch_norm", "instance_norm"):
        statistics = [t for t in (call.argument(1, "running_mean"), call.argument(2, "running_var")) if t is not None]
        nothing: dict[int, Any] = dict.fromkeys(map(id, statistics))
        again = call.replaced(nothing).over((x, weight, bias))
    groups = call.argument(1, "num_groups") if name == "group_norm" else 0
    trailing = len(call.argument(1, "normalized_shape")) if name in ("layer_norm", "rms_norm") else 0
    linearized = partial(_centred, name, trailing, groups, eps)
    if name == "layer_norm" and not torch.is_autocast_enabled(x.device.type):
        function = partial(_with_scale, x.shape[x.dim() - trailing :], eps)
    return NormalizationNode.apply(run.passes, function, again, linearized, x, weight, bias)


def _alone(function: Callable[..., Tensor], *tensors: Tensor | None) -> tuple[Tensor, None]:
    return function(*tensors), None


def _with_scale(
    shape: torch.Size, eps: float, x: Tensor, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return layer_norm(x) as torch.nn.functional computes it, and 1 / sigma."""
    out, _, scale = torch.native_layer_norm(x, shape, weight, bias, eps)
    return out, scale


def _centred(
    name: str,
    trailing: int,
    groups: int,
    eps: float | None,
    gradient: Tensor,
    scale: Tensor | None,
    x: Tensor,
    weight: Tensor | None,
    *_: Any,
) -> Tensor:
    """Return C (G * w / sigma), with sigma the standard deviation (the root mean square in RMSNorm) of x.

    The scale 1 / sigma is computed where it is not given, or must be differentiated.
    """
    original = x.shape
    given = gradient
    if weight is not None:
        lead = (1, -1) + (1,) * (x.dim() - 2)
        gradient = gradient * (weight if trailing else weight.reshape(lead))
    if trailing:
        dim = tuple(range(x.dim() - trailing, x.dim()))
    elif name == "group_norm":
        x, gradient = (t.reshape(t.shape[0], groups, -1) for t in (x, gradient))
        dim = (2,)
    elif name == "instance_norm":
        dim = tuple(range(2, x.dim()))
    else:
        dim = (0, *range(2, x.dim()))
    if eps is None:
        eps = torch.finfo(x.dtype).eps
    if torch.is_grad_enabled():
        moment = x.square().mean(dim, keepdim=True) if name == "rms_norm" else x.var(dim, correction=0, keepdim=True)
        out = gradient * (moment + eps).rsqrt()
        return (out if name == "rms_norm" else out - out.mean(dim, keepdim=True)).reshape(original)
    if scale is None:
        scale = _inverse_deviation(x, dim, eps, root_mean_square=name == "rms_norm")
    scale = scale.to(x.dtype)
    out = gradient * scale if gradient is given else gradient.mul_(scale)
    return (out if name == "rms_norm" else out.sub_(out.mean(dim, keepdim=True))).reshape(original)


def _inverse_deviation(x: Tensor, dim: tuple[int, ...], eps: float, *, root_mean_square: bool) -> Tensor:
    """Return 1 / sqrt(var(x) + eps), or of the mean of squares, in fewer passes than autograd could follow."""
    count = math.prod(x.shape[d] for d in dim)
    if root_mean_square:
        norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True)
        return (norm.square() / count + eps).rsqrt()
    if dim[-1] == x.dim() - 1 and len(dim) == dim[-1] - dim[0] + 1:
        # torch.var takes many times as long on a CPU.
        scale: Tensor = torch.native_layer_norm(x, x.shape[dim[0] :], None, None, eps)[2]
        return scale
    return (x.var(dim, correction=0, keepdim=True) + eps).rsqrt()
