"""Core ATen operators, which decomposed programs consist of, as calls of the functions that they come from.

Also torch.batch_norm and torch.instance_norm, whose arguments have another order than those of torch.nn.functional.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrphooks.engine.call import Call
from lrphooks.engine.handlers.foreach import PREFIX, for_each
from lrphooks.operations import names

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

_LISTS = frozenset(f"{PREFIX}{name}" for name in names.FOREACH.split())
NATIVE = frozenset((*names.REORDERED, *names.NATIVE.split(), *_LISTS))


def native(run: Run, call: Call) -> Any:
    """Run the function that an operator comes from with the mode on; what it returns besides counts as constant."""
    name, args, kwargs = call.operation.name, call.args, call.kwargs
    if name in _LISTS:
        return for_each(run, call)
    with run.mode():
        out = _FUNCTIONS[name](*args, **kwargs)
    if name in _ALONE:
        return out
    with torch.no_grad():
        # Statistics and the like, which a program rarely uses.
        return out, *call.invoke()[1:]


def _batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Any = None,
    running_var: Any = None,
    training: Any = None,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    if isinstance(running_mean, bool):
        # The overload without statistics: training, momentum, eps.
        running_mean, running_var, training, momentum, eps = None, None, running_mean, running_var, training
    return F.batch_norm(input, running_mean, running_var, weight, bias, bool(training), momentum, eps)


def _batch_norm_evaluated(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float,
    eps: float,
) -> Tensor:
    return F.batch_norm(input, running_mean, running_var, weight, bias, False, momentum, eps)


def _instance_norm(
    input: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Tensor:
    return F.instance_norm(input, running_mean, running_var, weight, bias, use_input_stats, momentum, eps)


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    *_: bool,
) -> Tensor:
    kind = f"conv{'_transpose' if transposed else ''}{weight.dim() - 2}d"
    if transposed:
        return getattr(F, kind)(input, weight, bias, stride, padding, output_padding, groups, dilation)  # type: ignore[no-any-return]
    return getattr(F, kind)(input, weight, bias, stride, padding, dilation, groups)  # type: ignore[no-any-return]


def _group_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, N: int, C: int, HxW: int, group: int, eps: float
) -> Tensor:
    return F.group_norm(input, group, weight, bias, eps)


def _attention(*order: str) -> Callable[..., Tensor]:
    """Return fused attention for a kernel whose arguments after query, key and value have an order of their own."""

    def attend(query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        given = {**dict(zip(order, args, strict=False)), **kwargs}
        mask = given.get("attn_mask", given.get("attn_bias"))
        rest = {k: given[k] for k in ("scale", "enable_gqa") if k in given}
        dropout, causal = given.get("dropout_p", 0.0), given.get("is_causal", False)
        return F.scaled_dot_product_attention(query, key, value, mask, dropout, causal, **rest)

    return attend


_MASKED = ("attn_bias", "compute_log_sumexp", "dropout_p", "is_causal")

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "batch_norm": _batch_norm,
    "instance_norm": _instance_norm,
    "convolution": _convolution,
    "_convolution": _convolution,
    "native_layer_norm": F.layer_norm,
    "native_group_norm": _group_norm,
    "_fused_rms_norm": F.rms_norm,
    "native_batch_norm": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm_evaluated,
    "_batch_norm_no_update": _batch_norm_evaluated,
    "_scaled_dot_product_flash_attention_for_cpu": _attention("dropout_p", "is_causal"),
    "_scaled_dot_product_flash_attention": _attention("dropout_p", "is_causal"),
    "_scaled_dot_product_efficient_attention": _attention(*_MASKED),
    "_scaled_dot_product_cudnn_attention": _attention(*_MASKED),
    "_scaled_dot_product_fused_attention_overrideable": _attention("attn_bias", "dropout_p", "is_causal"),
    "_scaled_dot_product_attention_math": _attention("attn_mask", "dropout_p", "is_causal"),
}
_ALONE = frozenset(("batch_norm", "instance_norm", "convolution", "_convolution"))
