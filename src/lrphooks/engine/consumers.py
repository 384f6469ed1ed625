"""How an operation consumes a tensor: what it keeps of it, and whether it hands it on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from lrphooks.engine.bounds import clips_as_activation
from lrphooks.engine.call import Call, tensors_in
from lrphooks.operations import names
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Constant, Gradient, Identity, Normalize, TakesAll, Uniform
from lrphooks.torch_private import attention_kernel, hooks_of, is_view

#: It moves elements, or multiplies all by a number; keeps them for its derivative; only reads them, and its results
#: have memory of their own. Empty for what may hand the tensor itself on, writes to it, or is not known.
Way = Literal["moves", "keeps", "reads", ""]

_MOVES = frozenset(
    (
        "view", "view_as", "reshape", "reshape_as", "flatten", "unflatten", "ravel", "squeeze", "unsqueeze",
        "transpose", "t", "T", "mT", "movedim", "permute", "expand", "expand_as", "contiguous", "clone", "narrow",
        "select", "slice", "getitem", "roll", "flip", "chunk", "split", "split_with_sizes", "tensor_split", "unbind",
        # To a dtype that holds the values as they are; else nobody follows.
        "to", "type", "type_as", "float", "double",
    )
)  # fmt: skip
_READS = frozenset(
    (
        "add", "sub", "neg", "cat", "stack", "sum", "mean", "mul", "div", "matmul", "bmm", "mm", "baddbmm", "addcmul",
        "softmax", "where", "masked_fill", "leaky_relu", "amax", "pad", "repeat", "repeat_interleave",
        "index_select", "gather",
    )
)  # fmt: skip
#: Activations whose own derivative is computed from their input.
_OF_INPUT = frozenset(("gelu", "silu", "mish", "hardswish"))
_OF_RESULT = frozenset(names.OF_RESULT.split())
_FUSED = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)


def way(call: Call, tensor: Tensor, rule: Callable[[Call], Rule]) -> Way:
    """Return how a call consumes a tensor.

    Where in doubt it does not keep it: of what is kept, autograd itself forbids that the model overwrites it.
    """
    kind, name = call.operation.kind, call.operation.name
    target = call.writes_in_place and (not call.args or call.args[0] is tensor)
    if target or "out" in call.kwargs or tensor.retains_grad or hooks_of(tensor):
        # Whoever asks for the gradient at the tensor itself is to get it.
        return ""
    if (name == "mul" or multiplies_batches(call)) and _keeps_factors(call, rule):
        return "keeps"
    if factor(call) is not None and tensor.dtype != torch.float16 and not isinstance(rule(call), Constant):
        # In half precision, the product with a small number has few digits left.
        return "moves"
    if kind == "linear" or name in _READS:
        return "reads"
    if call.writes_in_place:
        return ""
    if name == "einsum":
        # Of one operand it may be a view.
        return "reads" if len(list(tensors_in(call.args))) > 1 else ""
    if kind in ("relu", "batch norm", "attention"):
        return "keeps" if kind == "attention" and _is_fused(call) else "reads"
    if name == "dropout":
        return "" if call.argument(2, "training", default=True) else "moves"
    return _by_rule(call, tensor, rule)


def takes_share(call: Call, tensor: Tensor, rule: Callable[[Call], Rule]) -> bool:
    """Whether the call is an activation whose node can take in the rule of the layer that made the tensor."""
    if call.operation.kind != "activation" and not clips_as_activation(call):
        return False
    if len(call.dependent) != 1 or tensor.retains_grad or hooks_of(tensor):
        return False
    return not (call.writes_in_place and is_view(tensor)) and isinstance(rule(call), Identity)


def _by_rule(call: Call, tensor: Tensor, rule: Callable[[Call], Rule]) -> Way:
    kind, name = call.operation.kind, call.operation.name
    if name in _MOVES and len(call.dependent) == 1:
        return "moves" if isinstance(rule(call), Gradient) else ""
    if (kind == "activation" or clips_as_activation(call)) and not isinstance(given := rule(call), Constant):
        # Under a rule, a node of the engine's keeps it, or a copy.
        kept = name not in _OF_RESULT and (name in _OF_INPUT or not isinstance(given, Gradient))
        return "keeps" if kept else "reads"
    if name in ("pow", "square") and len(call.dependent) == 1 and not call.operation.reversed:
        # As an activation under a rule; of those that have none, such as 1 / x, torch keeps the result at times.
        exponent = 2.0 if name == "square" else call.argument(1, "exponent")
        return "keeps" if isinstance(exponent, int | float) and exponent > 1 else ""
    if name in ("layer_norm", "rms_norm", "group_norm") and call.dependent[0] is tensor:
        return "keeps" if isinstance(rule(call), Normalize) else ""
    return ""


def factor(call: Call) -> float | None:
    """Return the number that all a call does is to multiply a tensor by, else None."""
    if call.operation.name not in ("mul", "div") or call.operation.reversed or call.writes_in_place or call.kwargs:
        return None
    number = call.args[1] if len(call.args) == 2 else None
    if not isinstance(number, int | float):
        return None
    if call.operation.name == "mul":
        return number
    return 1.0 / number if number else None


def multiplies_batches(call: Call) -> bool:
    """Whether the call multiplies batches of matrices, of which torch keeps those that it had to lay out anew."""
    if call.operation.name not in ("matmul", "bmm") or call.operation.reversed or call.kwargs or len(call.args) != 2:
        return False
    first, second = call.args
    if not (first.dim() == second.dim() > 2 and first.shape[:-2] == second.shape[:-2] and first.dtype == second.dtype):
        return False
    return not torch.is_autocast_enabled(first.device.type)


def in_one_batch(tensor: Tensor) -> Tensor:
    """Return batches of matrices laid out as torch keeps them of a product."""
    return tensor.flatten(0, -3).view(tensor.shape)


def _keeps_factors(call: Call, rule: Callable[[Call], Rule]) -> bool:
    """Whether a product is one of two tensors, each of which it keeps for the derivative of the other."""
    factors = [t for t in tensors_in(call.args) if t.requires_grad]
    if len(factors) != 2 or factors[0] is factors[1] or call.writes_in_place or call.kwargs:
        return False
    return isinstance(rule(call), Uniform | TakesAll | Gradient)


def _is_fused(call: Call) -> bool:
    """Whether attention is computed by a kernel that keeps query, key and value as they are."""
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    query, key, value, mask, dropout, causal = (call.argument(i, n) for i, n in enumerate(names))
    # Autocasting hands the kernel copies.
    kind = query.device.type
    if torch.is_autocast_enabled(kind) and query.dtype != torch.get_autocast_dtype(kind):
        return False
    # On other devices, kernels get copies of heads that they must fill up.
    if kind != "cpu" and (query.shape[-1] % 8 or value.shape[-1] % 8):
        return False
    rest = {k: v for k, v in call.kwargs.items() if k in ("scale", "enable_gqa")}
    try:
        chosen = attention_kernel(query, key, value, mask, dropout or 0.0, bool(causal), **rest)
    except (RuntimeError, TypeError):
        return False
    return any(int(chosen) == int(backend.value) for backend in _FUSED)
