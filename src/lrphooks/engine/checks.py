"""What keeps a model from being explained, found before anything runs wrong in silence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from lrphooks.engine.errors import LRPError
from lrphooks.torch_private import is_compiled, is_transformed, unwrapped


def check_model(model: nn.Module) -> None:
    """Raise an error that says why, if the model cannot be hooked."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a torch.nn.Module to explain, got {model!r} of type {type(model).__name__}.")
    for name, module in model.named_modules():
        where = f"module {name!r}" if name else "the model"
        if isinstance(module, torch.jit.ScriptModule):
            raise LRPError(
                f"{where} is a TorchScript module, whose operations cannot be seen. Explain the Python model that it "
                "was made from."
            )
        if module.__class__.__name__ == "OptimizedModule" or is_compiled(module):
            raise LRPError(
                f"{where} was compiled with torch.compile, so its hooks may be ignored. Explain the original "
                "(model._orig_mod), or let the whole explanation be compiled: lrphooks.compiled(model, composite)."
            )
        if isinstance(module, nn.DataParallel) and len(module.device_ids) > 1:
            raise LRPError(
                f"{where} is an nn.DataParallel over {len(module.device_ids)} devices, whose parts run in threads of "
                "their own, out of sight. Explain the module inside of it (model.module)."
            )
        for parameter in module.parameters(recurse=False):
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise LRPError(f"{where} has uninitialized parameters. Run the model once before it is explained.")
            if parameter.is_inference():
                raise LRPError(
                    f"{where} has parameters that were made inside torch.inference_mode, which autograd cannot use. "
                    "Make the model outside of that block."
                )


def check_gradients_enabled() -> None:
    """Raise an error if there would be no graph for relevance to flow through."""
    inference = torch.is_inference_mode_enabled()
    if torch.is_grad_enabled() and not inference:
        return
    refuse_reentrant_checkpoint()
    way = "torch.inference_mode(False)" if inference else "torch.enable_grad()"
    raise LRPError(
        f"Gradients are disabled ({'torch.inference_mode' if inference else 'torch.no_grad'}), so there is no graph "
        f"for relevance to flow through. Run the model outside of that block, or inside {way}."
    )


def refuse_reentrant_checkpoint() -> None:
    """Raise an error if the forward pass of a reentrant checkpoint is running."""
    target = CheckpointFunction.forward.__code__
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code is target:
            raise LRPError(
                "The model uses reentrant checkpointing, which runs its forward without a graph, so relevance would "
                "silently be wrong. Use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)."
            )
        frame = frame.f_back  # type: ignore[assignment]


def refuse_transformed(
    tensors: Iterable[Tensor], carries: Callable[[Tensor], bool] | None = None, *, moves: bool = False
) -> None:
    """Raise an error if a transform of torch.func holds a tensor, whose autograd graph is out of sight.

    With ``carries``, tensors that carry relevance count, also those that the transform meets from outside, unless the
    operation only ``moves`` their values.
    """
    for tensor in tensors:
        inner = tensor
        while is_transformed(inner):
            inner = unwrapped(inner)
        if (inner is not tensor) if carries is None else (inner is not tensor or not moves) and carries(inner):
            raise LRPError(
                "The model runs inside a transform of torch.func (vmap, grad, jvp, jacrev), or runs one, whose "
                "operations have no autograd graph of their own to carry relevance. Run it on a batch instead; for "
                "many targets of one forward pass, use torch.autograd.grad(..., is_grads_batched=True)."
            )
