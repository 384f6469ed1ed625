"""Relevance in one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from lrphooks.composite import Composite
from lrphooks.composites import EpsilonPlus
from lrphooks.engine.errors import LRPError

Target: TypeAlias = "int | Sequence[int] | Tensor | Callable[[Any], Tensor] | None"


def lrp(model: nn.Module, x: Tensor, target: Target = None, composite: Composite | None = None) -> Tensor:
    """Return the relevance of every input value for the explained output of each row.

    It sums to f(x), less what biases and stabilizers absorb.

    Parameters
    ----------
    model
        Any PyTorch module; it is left as it was.
    x
        The input, of floating-point type, the first dimension counting rows.
    target
        What is explained: an index into the last dimension of a (rows, classes) output, one index a row, None for the
        largest output of each row, or a function of the model's output that returns the values to explain.
    composite
        The rules; :func:`lrphooks.composites.EpsilonPlus` by default.

    Returns
    -------
    Tensor
        The relevance, shaped as ``x``.

    Raises
    ------
    LRPError, TypeError, ValueError
        If the input is no floating-point tensor, a target is out of range, the model's output is not finite, or the
        composite cannot serve the model.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"lrp: x must be a tensor, got {type(x).__name__}.")
    if not x.is_floating_point():
        raise LRPError(
            f"lrp: x has dtype {x.dtype}, through which no relevance can flow. Convert images with x.float(); for "
            "token ids, explain their embeddings."
        )
    composite = EpsilonPlus() if composite is None else composite
    if not isinstance(composite, Composite):
        hint = f" Did you mean {composite.__name__}()?" if callable(composite) else ""
        raise TypeError(f"lrp: composite must be a Composite, such as EpsilonPlus(), got {composite!r}.{hint}")
    with torch.inference_mode(mode=False), torch.enable_grad(), composite.context(model):
        # A tensor made in inference mode takes no part in autograd; its copy does.
        x = (x.clone() if x.is_inference() else x).detach().requires_grad_()
        explained = select(model(x), target)
        relevance = None
        if explained.requires_grad:
            (relevance,) = torch.autograd.grad(explained.sum(), x, allow_unused=True)
    if relevance is None:
        raise LRPError(
            "lrp: the explained output does not depend on the input through any differentiable path, so there is no "
            "relevance. Does the model detach its input, or the target not use the output?"
        )
    return relevance


def select(output: Any, target: Target) -> Tensor:
    """Return the explained value of each row of a model's output.

    Raises
    ------
    LRPError, TypeError, ValueError
        As :func:`lrp`.
    """
    if callable(target) and not isinstance(target, Tensor):
        chosen = target(output)
        if not isinstance(chosen, Tensor):
            raise TypeError(f"lrp: the target function must return a tensor, got {type(chosen).__name__}.")
        return _finite(chosen)
    if not isinstance(output, Tensor):
        raise TypeError(
            f"lrp: the model returns a {type(output).__name__}, so the target must be a function that picks a tensor "
            "from it, such as target=lambda output: output.logits[:, 3]."
        )
    if output.dim() == 1:
        output = output.unsqueeze(1)
    if output.dim() != 2:
        raise ValueError(
            f"lrp: the model's output has shape {tuple(output.shape)}, not (rows, classes), so the target must be a "
            "function that picks from it, such as target=lambda output: output[:, 3].sum((1, 2))."
        )
    _finite(output)
    rows, classes = output.shape
    if target is None:
        index = output.detach().argmax(1)
    else:
        try:
            index = torch.as_tensor(target, device=output.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"lrp: a target is an integer or one integer a row, got {target!r}.") from error
        if index.is_floating_point() or index.dtype == torch.bool or index.dim() > 1:
            raise TypeError(f"lrp: a target is an integer or one integer a row, got {target!r}.")
        if index.dim() == 1 and index.numel() != rows:
            raise ValueError(f"lrp: {index.numel()} targets were given for {rows} rows; give one, or one a row.")
        index = index.long().expand(rows)
        outside = index[(index < -classes) | (index >= classes)]
        if outside.numel():
            raise ValueError(
                f"lrp: target {int(outside[0])} is out of range for a model with {classes} outputs "
                f"(0 to {classes - 1})."
            )
    explained: Tensor = output.gather(1, index.unsqueeze(1) % classes).squeeze(1)
    return explained


def _finite(output: Tensor) -> Tensor:
    if not bool(torch.isfinite(output).all()):
        raise LRPError(
            "lrp: the model's output contains NaN or infinite values, so no relevance can be told. Check the input "
            "(its scale, missing values) and the model's weights; in half precision, an overflow."
        )
    return output
