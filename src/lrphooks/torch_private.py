"""What lrphooks uses of torch that torch does not promise to keep, all of it in this one module.

Where a name is missing, the import of lrphooks says so, unless there is something else to do:

- the functions behind the optional names (see ``_optional``) answer as if the case that they tell did not occur;
- ``running_checkpoint`` finds nothing where torch saves the tensors of a checkpoint in another way, and the checkpoint
  raises torch's own ``CheckpointError`` where it runs again;
- ``is_fused_attention`` knows the nodes of fused kernels by name. Where it misses one, torch says that the kernel has
  no second derivative.

Torch's compiler takes longer to import than all the rest of torch, so it is imported where it is used.
"""

# ruff: noqa: FBT003, PLC0415, SLF001 -- this is the place for them

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.modules.conv import _ConvNd
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

__all__ = [
    "DataDependentOutputException",
    "DynamicOutputShapeException",
    "FakeTensor",
    "FakeTensorMode",
    "TorchDispatchMode",
    "enable_python_dispatcher",
    "tree_map_only",
]


def _needed(path: str) -> Any:
    """Return what torch has under a path, or raise an error that says what to do."""
    try:
        return reduce(getattr, path.split("."), torch)
    except AttributeError:
        raise ImportError(
            f"lrphooks needs torch.{path}, which torch {torch.__version__} does not have. Install another version of "
            "torch, from 2.8 on, or a newer lrphooks."
        ) from None


def _optional(path: str, otherwise: Any) -> Any:
    """Return what torch has under a path, or something else."""
    try:
        return reduce(getattr, path.split("."), torch)
    except AttributeError:
        return otherwise


# --- tensors ---

#: How often the data of a tensor was changed, by any alias.
version_of: Callable[[Tensor], int] = attrgetter("_version")
#: Keeps the version of a tensor over a block.
preserve_version: Callable[[Tensor], AbstractContextManager[None]] = _needed(
    "autograd.grad_mode._unsafe_preserve_version_counter"
)
set_versions: Callable[[tuple[Tensor, ...], tuple[int, ...]], None] = _needed(
    "_C._autograd._unsafe_set_version_counter"
)
is_view: Callable[[Tensor], bool] = _needed("Tensor._is_view")
#: What a tensor is a view of, or None.
base_of: Callable[[Tensor], Tensor | None] = attrgetter("_base")
#: The hooks on the gradient of a tensor, or on those of a module, or None.
hooks_of: Callable[[Tensor | nn.Module], Any] = attrgetter("_backward_hooks")
#: The same memory in another shape, which autograd does not count as a view.
reshaped_without_view: Callable[[Tensor, torch.Size], Tensor] = _needed("ops.aten._unsafe_view")


def _share_memory(first: Tensor, second: Tensor) -> bool:
    return first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


share_memory: Callable[[Tensor, Tensor], bool] = _optional("_C._is_alias_of", _share_memory)

# --- what runs ---

#: The number of the backward pass that runs in this thread, -1 for none.
current_backward_pass: Callable[[], int] = _needed("_C._current_graph_task_id")
#: A block whose calls go past function modes and subclasses.
OutOfSight: Callable[[], AbstractContextManager[None]] = _needed("_C.DisableTorchFunction")
#: The pair of hooks on saved tensors that is in force, or None; the argument is whether to answer while tracing too.
top_saved_tensors_hooks: Callable[[bool], Any] = _needed("_C._autograd._top_saved_tensors_default_hooks")
push_saved_tensors_hooks: Callable[[Callable[[Tensor], Any], Callable[[Any], Tensor]], None] = _needed(
    "_C._autograd._push_saved_tensors_default_hooks"
)
pop_saved_tensors_hooks: Callable[[], None] = _needed("_C._autograd._pop_saved_tensors_default_hooks")
#: Switches gradients on or off for this thread, unseen by function modes.
set_gradients: Callable[[bool], None] = _needed("_C._set_grad_enabled")
#: The function modes that this thread is in, outermost first.
function_modes: Callable[[], list[Any]] = _needed("overrides._get_current_function_mode_stack")
#: What takes the innermost function mode off for a block, as a generator.
POPS_A_MODE: Any = _needed("overrides._pop_mode_temporarily").__wrapped__.__code__
#: How many dispatch modes this thread is in.
#: A block in which operations run on the tensors themselves, whatever dispatch modes are on.
concrete: Callable[[], AbstractContextManager[Any]] = _needed("utils._python_dispatch._disable_current_modes")
dispatch_modes: Callable[[], int] = _optional("_C._len_torch_dispatch_stack", lambda: 0)


def of_function(node: Any) -> Any:
    """Return the autograd function whose node this is, if torch tells."""
    return getattr(node, "_forward_cls", None)


def shapes_received(node: Any) -> tuple[Any, ...]:
    """Return shape and type of each gradient that an autograd node receives, as far as torch tells."""
    return tuple(getattr(node, "_input_metadata", ()))


# --- transforms of torch.func ---

transforms_active: Callable[[], bool] = _needed("_C._are_functorch_transforms_active")
is_transformed: Callable[[Tensor], bool] = _needed("_C._functorch.is_functorch_wrapped_tensor")
#: What a transform of torch.func wrapped.
unwrapped: Callable[[Tensor], Tensor] = _needed("_C._functorch.get_unwrapped")
_is_batched: Callable[[Tensor], bool] = _needed("_C._functorch.is_batchedtensor")
#: Of ``is_grads_batched``, which has a vmap of its own.
_is_batched_by_autograd: Callable[[Tensor], bool] = _optional("_C._functorch.is_legacy_batchedtensor", lambda _: False)


def is_batched(tensor: Tensor) -> bool:
    """Whether a tensor stands for several in one batch."""
    return _is_batched_by_autograd(tensor) or _is_batched(tensor)


# --- modules ---

#: Convolutions of all kinds.
Convolution = _ConvNd
#: What calls a module, hooks included: of its two frames, the one that is always there.
call_of_module: Any = _needed("nn.Module._wrapped_call_impl")
#: What a module holds by name.
REGISTRIES = (
    "_parameters",
    "_buffers",
    "_modules",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def modules_of(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return what ``model.named_modules()`` does, which recurs through a generator for each level of each module."""
    found: dict[nn.Module, str] = {}
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        name, module = waiting.pop()
        if module not in found:
            found[module] = name
            prefix = f"{name}." if name else ""
            waiting += [(prefix + key, part) for key, part in reversed(module._modules.items()) if part is not None]
    return [(name, module) for module, name in found.items()]


def parts_of(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that one holds itself, by the names that it has for them."""
    return [(name, part) for name, part in module._modules.items() if part is not None]


def parameters_of(module: nn.Module) -> list[nn.Parameter]:
    """Return the parameters that a module holds itself."""
    return [parameter for parameter in module._parameters.values() if parameter is not None]


def tensors_of(module: nn.Module) -> list[Tensor]:
    """Return the parameters and buffers that a module holds itself."""
    return [t for t in (*module._parameters.values(), *module._buffers.values()) if t is not None]


_has_global_hooks: Callable[[], bool] = _needed("nn.modules.module._has_any_global_hook")


def has_backward_hooks(module: nn.Module) -> bool:
    """Whether torch passes what goes through a module through nodes of its own, for backward hooks."""
    return bool(module._backward_hooks or module._backward_pre_hooks)


def any_backward_hooks() -> bool:
    """Whether there are backward hooks for all modules at once."""
    hooks = torch.nn.modules.module
    return bool(hooks._global_backward_hooks or hooks._global_backward_pre_hooks)


#: Where a module holds what runs in place of its call, such as what ``module.compile()`` makes, or None.
CALL_SLOT = "_compiled_call_impl"
#: The hooks before and behind the call of a module, by number.
forward_hooks: Callable[[nn.Module], dict[int, Any]] = attrgetter("_forward_hooks")
#: The call of a module with all its hooks, whatever stands in its place.
call_with_hooks: Callable[[nn.Module], Callable[..., Any]] = attrgetter("_call_impl")


def is_call_of_forward(module: nn.Module) -> bool:
    """Whether the call of a module comes to its ``forward`` alone: no hooks, no tracing, no call of its own kind."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or has_backward_hooks(module)
        or _has_global_hooks()
        or torch._C._get_tracing_state() is not None
        or type(module)._call_impl is not nn.Module._call_impl
        or "_call_impl" in vars(module)
    )


# --- names of operations ---

Overload: Any = _needed("_ops.OpOverload")
Overloads: Any = _needed("_ops.OpOverloadPacket")
#: Operations that take functions, such as torch.cond.
HigherOrder: Any = _needed("_ops.HigherOrderOperator")
#: What torch.library.custom_op makes.
CustomOperation: Any = _needed("_library.custom_ops.CustomOpDef")


def overload_of(custom: Any) -> Any:
    """Return the overload that calls of a custom operation are calls of."""
    return custom._opoverload


def has_derivative(name: str) -> bool | None:
    """Whether a custom operation, by its name "space::operation", has a derivative; None if it is no custom operation.

    Those that were defined in another way are not known here.
    """
    definition = torch._library.custom_ops.OPDEFS.get(name)
    return None if definition is None else definition._backward_fn is not None


#: The functions behind those of torch.nn.functional.
nn_functions: Any = _needed("_C._nn")
#: Where torch has functions, besides its public namespaces.
NAMESPACES: tuple[Any, ...] = tuple(
    space
    for path in ("_VF", "_C._nn", "_C._special", "_C._linalg", "_C._fft", "_C._sparse")
    if (space := _optional(path, None)) is not None
)
TensorBase: Any = _needed("_C.TensorBase")

# --- compilers ---


def _compiler() -> Any:
    import torch._dynamo.eval_frame

    return torch._dynamo


def compile_stance() -> Any:
    """Return how functions of torch.compile run in this process."""
    return _compiler().eval_frame._stance


def eager_stance() -> Any:
    """Return a stance by which they run as they are written."""
    return _compiler().eval_frame.DynamoStance("force_eager")


def set_compile_stance(stance: Any) -> None:
    """Set how they run; torch refuses that where it compiles."""
    _compiler().eval_frame._set_stance(stance)


def allow_any_size(tensor: Tensor, dim: int) -> None:
    """Let torch.compile serve any size of a dimension, where it can."""
    _compiler().maybe_mark_dynamic(tensor, dim)


def tracing_through_compiled_functions() -> AbstractContextManager[Any]:
    """Have functions that were compiled traced as they are written, as part of the graph."""
    import torch._dynamo.config

    return torch._dynamo.config.patch(error_on_nested_fx_trace=False)  # type: ignore[no-any-return]


def source_of_constant(name: str) -> Any:
    """Return where a tensor of a graph comes from that has a name alone."""
    from torch._dynamo.source import ConstantSource

    return ConstantSource(name)


def traced(function: Callable[..., Any], *arguments: Tensor) -> GraphModule:
    """Return what a function does with its arguments as a graph, in which other tensors are attributes."""
    graph: GraphModule = make_fx(function, tracing_mode="real", _allow_non_fake_inputs=True)(*arguments)
    return graph


def inductor_freezes() -> bool:
    """Whether inductor computes with weights while it compiles."""
    import torch._inductor.config

    return bool(torch._inductor.config.freezing)


# --- checkpoints ---

_CheckpointFrame: Any = _optional("utils.checkpoint._CheckpointFrame", ())
#: The dispatch modes of a selective checkpoint, which runs for the first time or again.
_SELECTIVE: tuple[Any, ...] = tuple(
    mode
    for name in ("_CachingTorchDispatchMode", "_CachedTorchDispatchMode")
    if (mode := _optional(f"utils.checkpoint.{name}", None)) is not None
)


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
    if isinstance(torch._C._get_dispatch_stack_at(dispatch_modes() - 1), _SELECTIVE):
        return torch.utils._python_dispatch._pop_mode_temporarily()
    return nullcontext()


# --- fused attention ---

#: Which kernel scaled_dot_product_attention is to take.
attention_kernel: Callable[..., int] = _optional("_fused_sdp_choice", lambda *_, **__: 0)


def is_fused_attention(node: Any) -> bool:
    """Whether attention that an autograd node is of was computed by a fused kernel.

    torch may have added a dimension for it, or filled heads up, which is taken back behind the kernel.
    """
    while node is not None and len(node.next_functions) == 1:
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith("ScaledDotProduct")


def attention_by_products(*arguments: Any, **settings: Any) -> Tensor:
    """Return scaled_dot_product_attention of the arguments, by position, made of matrix products and a softmax."""
    out: Tensor = torch.ops.aten._scaled_dot_product_attention_math(*arguments, **settings)[0]
    return out
