"""What lrphooks uses of torch that torch does not promise to keep, all in one place."""

# ruff: noqa: FBT003, SLF001 -- this is the place for them

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.utils._python_dispatch import _pop_mode_temporarily
from torch.utils.checkpoint import _CachedTorchDispatchMode, _CachingTorchDispatchMode, _CheckpointFrame

#: The pair of hooks on saved tensors that is in force, or None; the argument is whether to answer while tracing too.
top_saved_tensors_hooks = torch._C._autograd._top_saved_tensors_default_hooks

#: How many dispatch modes the current thread is in.
dispatch_modes = torch._C._len_torch_dispatch_stack


def running_checkpoint() -> Any:
    """Return the state of the innermost checkpoint whose forward pass is running, or None.

    Its attribute ``recompute_fn`` is the function that a backward pass calls to run the checkpoint again. While it does
    so, it is no running forward pass. A checkpoint is known by the hook that saves its tensors, which holds its state.
    Within a checkpoint, other hooks on saved tensors hide it; they also keep those tensors from it.
    """
    hooks = top_saved_tensors_hooks(True)
    if hooks is None:
        return None
    for cell in getattr(hooks[0], "__closure__", None) or ():
        if isinstance(cell.cell_contents, _CheckpointFrame):
            return cell.cell_contents
    return None


def out_of_selective_checkpoint() -> AbstractContextManager[Any]:
    """Keep operations from a selective checkpoint (``create_selective_checkpoint_contexts``) that runs, first or again.

    It counts the operations that it sees and keeps results of some, so both times it must see the same ones.
    """
    innermost = torch._C._get_dispatch_stack_at(dispatch_modes() - 1)
    if isinstance(innermost, _CachingTorchDispatchMode | _CachedTorchDispatchMode):
        return _pop_mode_temporarily()
    return nullcontext()


def is_fused_attention(node: Any) -> bool:
    """Whether an autograd node is that of a fused kernel for attention; its result may lack elements filled up."""
    if node is not None and node.name() == "SliceBackward0":
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith("ScaledDotProduct")


def attention_by_products(*arguments: Any, **settings: Any) -> torch.Tensor:
    """Return scaled_dot_product_attention of the arguments, by position, made of matrix products and a softmax."""
    out: torch.Tensor = torch.ops.aten._scaled_dot_product_attention_math(*arguments, **settings)[0]
    return out
