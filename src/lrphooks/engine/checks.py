"""What keeps a model from being explained, found before anything runs wrong in silence."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction

from lrphooks.engine import containers
from lrphooks.engine.errors import LRPError
from lrphooks.engine.provenance import leaf_of, nodes_behind
from lrphooks.engine.training import warn_of_training
from lrphooks.torch_private import CALL_SLOT, is_transformed, modules_of, parameters_of, unwrapped


def check_model(model: nn.Module) -> None:
    """Raise an error that says why, if the model cannot be hooked; warn if it is in training mode."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected a torch.nn.Module to explain, got {model!r} of type {type(model).__name__}.")
    modules = modules_of(model)
    for name, module in modules:
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
        for parameter in parameters_of(module):
            if isinstance(parameter, nn.parameter.UninitializedParameter):
                raise LRPError(f"{where} has uninitialized parameters. Run the model once before it is explained.")
            if (kind := unusual(parameter)) is not None:
                raise LRPError(f"{where} has parameters that are {kind[0]}. {kind[1]}")
            if parameter.is_inference():
                raise LRPError(
                    f"{where} has parameters that were made inside torch.inference_mode, which autograd cannot use. "
                    "Make the model outside of that block."
                )
    warn_of_training(model, "lrphooks", modules)


def is_compiled(module: nn.Module) -> bool:
    """Whether a module was compiled by ``module.compile()``; a context puts its own function in the same place."""
    function = getattr(module, CALL_SLOT, None)
    return function is not None and getattr(function, "__module__", None) != "lrphooks.engine.hooks"


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


def unusual(tensor: Tensor) -> tuple[str, str] | None:
    """Return what a tensor is and the way out, if it is of a kind that has no values at hand to explain."""
    if tensor.device.type == "meta":
        return (
            "meta tensors, which have no values",
            "Load them on a device first, such as with to_empty and load_state_dict.",
        )
    if tensor.is_nested:
        return "nested tensors, whose rows differ in shape", "Pad them, x.to_padded_tensor(0.0), or explain row by row."
    distributed = sys.modules.get("torch.distributed.tensor")
    if distributed is not None and isinstance(tensor, distributed.DTensor):
        return "distributed tensors, of which each process holds a part", "Give the whole of it: tensor.full_tensor()."
    return None


def check_input(x: Tensor, owned: frozenset[int]) -> None:
    """Raise an error if a tensor cannot be an explained input of a model that owns some parameters, by identity."""
    if (kind := unusual(x)) is not None:
        raise LRPError(f"An input of the model is one of the {kind[0]}. {kind[1]}")
    if x.is_complex():
        raise LRPError(
            f"An input of the model is complex ({x.dtype}), and relevance is of real values. Make the model "
            "take its real and imaginary parts, as torch.view_as_real gives them."
        )
    if x.layout is not torch.strided:
        raise LRPError(f"An input of the model is sparse ({x.layout}), and relevance is dense. Give x.to_dense().")
    by_model = given = False
    for node in nodes_behind(x):
        if type(node).__name__ in ("InputNodeBackward", "OutputNodeBackward"):
            raise LRPError(
                "An input of the model was computed by a model that is explained too, or by this one before. Relevance "
                "would be taken for a gradient there. Put both, or the loop, into one torch.nn.Module and explain that."
            )
        leaf = leaf_of(node)
        by_model = by_model or id(leaf) in owned
        given = given or (leaf is not None and not isinstance(leaf, nn.Parameter))
    if by_model and given:
        raise LRPError(
            f"An input of the model, of shape {tuple(x.shape)}, was computed by layers of the same model from a tensor "
            "that requires a gradient. Relevance would be taken for a gradient there. Call the whole model instead, or "
            "put both calls into one torch.nn.Module and explain that. To explain the model from here on, give a leaf: "
            "x.detach().requires_grad_()."
        )


def nothing_to_explain(args: Any, kwargs: Any) -> LRPError:
    """Return the error for a model of whose inputs none requires a gradient."""
    tensors = list(containers.tensors((args, kwargs)))
    for value in containers.objects((args, kwargs)):
        held = [name for name, tensor in containers.attributes(value) if tensor.requires_grad]
        if held:
            kind = type(value).__name__
            return LRPError(
                f"No input of the model requires a gradient itself, but a {kind} among them holds tensors that do: "
                f"{', '.join(held)}. They cannot be exchanged inside of it. Pass the tensors themselves, as in "
                f"model({', '.join(held)}), or in a dict or a dataclass; where the model takes a {kind}, explain a "
                "torch.nn.Module of your own that takes the tensors and makes one."
            )
    if tensors and not any(t.is_floating_point() for t in tensors):
        return LRPError(
            f"The model's inputs are {', '.join(str(t.dtype) for t in tensors)}, through which no relevance can "
            "flow. Convert images with x.float(); for token ids, explain their embeddings (inputs_embeds)."
        )
    return LRPError(
        "No input of the model requires a gradient, so there would be no x.grad to hold the relevance. Call "
        "x.requires_grad_() on the input before the forward pass."
    )
