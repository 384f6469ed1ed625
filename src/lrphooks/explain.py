"""Relevance in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from lrphooks import backward
from lrphooks.composite import Composite
from lrphooks.composites import EpsilonPlus
from lrphooks.engine import containers
from lrphooks.engine.errors import LRPError
from lrphooks.engine.session import Session

if TYPE_CHECKING:
    from lrphooks.engine.observer import Observer

Target: TypeAlias = "int | Sequence[int] | Tensor | Callable[[Any], Tensor] | None"


def lrp(
    model: nn.Module,
    x: Any,
    target: Target = None,
    composite: Composite | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Return the relevance of every input value for the explained output of each row.

    For each row it sums to f(x), the explained value, less what biases, stabilizers and constants absorb;
    :func:`lrphooks.audit` tells how much that is. Under GuidedBackprop and DeconvNet it is a modified gradient.

    Parameters
    ----------
    model
        Any PyTorch module; it is left as it was.
    x
        The input, or a tuple of the positional inputs: tensors, or dicts, lists and dataclasses of them. The first
        dimension counts rows.
    target
        What is explained: an index into the last dimension of a (rows, classes) output, one index a row, None for the
        largest output of each row, or a function of the model's output that returns the values to explain.
    composite
        The rules; :func:`lrphooks.composites.EpsilonPlus` by default.
    kwargs
        The keyword inputs, explained as well.

    Returns
    -------
    Tensor, or as ``x``
        The relevance in the structure of ``x``, each tensor with the shape, dtype and device of its input; where
        ``kwargs`` are given, a pair of the relevance of ``x`` and of ``kwargs``. Inputs that are no floating-point
        tensors have None in their place.

    Raises
    ------
    LRPError, TypeError, ValueError
        If no input is a floating-point tensor, a target is out of range, the model's output is not finite, or the
        composite cannot serve the model.
    UnmatchedError
        An LRPError: a linear layer or an operation of the model has no rule, and the composite does not say that it
        may keep its gradient.

    Examples
    --------
    >>> relevance = lrp(model, images)  # of the largest output of each image
    >>> relevance = lrp(model, images, target=[3, 7], composite=EpsilonPlusFlat())
    >>> first, second = lrp(model, (image, text), target=0)
    >>> _, relevance = lrp(model, (), target=1, composite=AttnLRP(), kwargs={"inputs_embeds": embeddings})
    """
    explanation = explain(model, x, target, composite, kwargs)
    return explanation.relevance


def lrp_targets(
    model: nn.Module,
    x: Any,
    targets: Sequence[Target],
    composite: Composite | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    budget: int = 2**30,
) -> list[Any]:
    """Return the relevance for each of several targets, from one forward pass.

    Parameters
    ----------
    targets
        What is explained, one after the other: each a target as :func:`lrp` takes it.
    budget
        How many bytes the backward passes of targets that are served together may take, roughly; at least one target
        is served at a time, whatever it takes.
    model, x, composite, kwargs
        As for :func:`lrp`.

    Returns
    -------
    list
        For each target what ``lrp`` returns for it.

    Raises
    ------
    LRPError, TypeError, ValueError
        As :func:`lrp`; if there are no targets.

    Examples
    --------
    >>> of_each_class = lrp_targets(model, image, range(10))
    >>> best, second = lrp_targets(model, images, [ranked[:, 0], ranked[:, 1]])
    """
    if isinstance(targets, Tensor) and targets.dim() == 1:
        targets = targets.tolist()
    if not isinstance(targets, Sequence) or isinstance(targets, str) or not targets:
        raise TypeError(
            f"lrp_targets: targets are a list of targets, one for each relevance that is wanted, got {targets!r}."
        )
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"lrp_targets: budget is a number of bytes of at least 1, got {budget!r}.")
    found = explain_each(model, x, targets, composite, kwargs, who="lrp_targets", budget=budget)
    return [explanation.relevance for explanation in found]


@dataclass(frozen=True)
class Explanation:
    """What one call found: the explained values, and the relevance in the structure of the inputs."""

    explained: Tensor
    relevance: Any
    total: float


def explain(
    model: nn.Module,
    x: Any,
    target: Target,
    composite: Composite | None,
    kwargs: Mapping[str, Any] | None,
    observer: Observer | None = None,
    who: str = "lrp",
) -> Explanation:
    """Return the explanation of one forward pass; see :func:`lrp`."""
    return explain_each(model, x, [target], composite, kwargs, observer, who)[0]


def explain_each(
    model: nn.Module,
    x: Any,
    targets: Sequence[Target],
    composite: Composite | None,
    kwargs: Mapping[str, Any] | None,
    observer: Observer | None = None,
    who: str = "lrp",
    budget: int = 1,
) -> list[Explanation]:
    """Return the explanation of each target, all of one forward pass; see :func:`lrp_targets`."""
    composite = EpsilonPlus() if composite is None else composite
    if not isinstance(composite, Composite):
        hint = f" Did you mean {composite.__name__}()?" if callable(composite) else ""
        raise TypeError(f"{who}: composite must be a Composite, such as EpsilonPlus(), got {composite!r}.{hint}")
    if wrong := [target for target in targets if isinstance(target, Mapping)]:
        raise TypeError(
            f"{who}: a target is an integer, one integer a row, or a function of the output, got {wrong[0]!r}. Keyword "
            "inputs of the model are given as kwargs={...}."
        )
    given = (x if _is_positional(x) else (x,), dict(kwargs or {}))
    _check_inputs(given, who)
    leaves: list[Tensor] = []

    def leaf(tensor: Tensor) -> Tensor:
        # A tensor made in inference mode takes no part in autograd; its copy does.
        leaves.append((tensor.clone() if tensor.is_inference() else tensor).detach().requires_grad_())
        return leaves[-1]

    with torch.inference_mode(mode=False), torch.enable_grad(), Session(composite, model, observer):
        args, keywords = containers.map_tensors(given, leaf, "input", keep=lambda t: not t.is_floating_point())
        output = model(*args, **keywords)
        rows = next((len(t) for t in leaves if t.dim()), None)
        explained = [select(output, target, rows) for target in targets]
        found = backward.each(explained, leaves, budget)
    return [
        Explanation(value.detach(), *_arranged(x, given, leaves, grads, with_kwargs=kwargs is not None, who=who))
        for value, grads in zip(explained, found, strict=True)
    ]


def _arranged(
    x: Any,
    given: tuple[Any, Any],
    leaves: list[Tensor],
    grads: tuple[Tensor | None, ...],
    *,
    with_kwargs: bool,
    who: str,
) -> tuple[Any, float]:
    """Return relevance in the structure of the inputs, and its sum."""
    if all(grad is None for grad in grads):
        raise LRPError(
            f"{who}: the explained output does not depend on the input through any differentiable path, so there is "
            "no relevance. Does the model detach its input, or the target not use the output?"
        )
    # An input without a path to the output has no relevance.
    found = iter(torch.zeros_like(t) if grad is None else grad for t, grad in zip(leaves, grads, strict=True))
    filled = containers.map_tensors(given, lambda t: next(found) if t.is_floating_point() else None, "input")
    positional, keyword = filled
    positional = positional if _is_positional(x) else positional[0]
    total = sum(float(grad.double().sum()) for grad in grads if grad is not None)
    return (positional, keyword) if with_kwargs else positional, total


def _is_positional(x: Any) -> bool:
    return isinstance(x, tuple) and not hasattr(x, "_fields")


def _check_inputs(given: tuple[Any, Any], who: str) -> None:
    tensors = list(containers.tensors(given))
    if not tensors:
        kind = type(given[0][0]).__name__ if given[0] else "nothing"
        raise TypeError(f"{who}: x must be a tensor, or a tuple of the model's inputs with tensors in it, got {kind}.")
    if not any(t.is_floating_point() for t in tensors):
        raise LRPError(
            f"{who}: x has dtype {tensors[0].dtype}, through which no relevance can flow. Convert images with "
            "x.float(); for token ids, explain their embeddings (kwargs={'inputs_embeds': ...} in transformers)."
        )


def select(output: Any, target: Target, rows_given: int | None = None) -> Tensor:
    """Return the explained value of each row of a model's output; ``rows_given`` are the rows of its input, if known.

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
    output = _matrix(output, rows_given)
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


def _matrix(output: Any, rows_given: int | None) -> Tensor:
    """Return a model's output as (rows, classes)."""
    logits = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(output, Tensor) and isinstance(logits, Tensor):
        # As models of transformers answer.
        output = logits
    if not isinstance(output, Tensor):
        raise TypeError(
            f"lrp: the model returns a {type(output).__name__}, so the target must be a function that picks a tensor "
            "from it, such as target=lambda output: output.logits[:, 3]."
        )
    if output.dim() == 1 and rows_given is not None and len(output) != rows_given:
        raise ValueError(
            f"lrp: the model's output has shape {tuple(output.shape)}, but its input has {rows_given} rows. Is x a "
            "single example without a dimension for rows? Give x.unsqueeze(0), or a function as the target."
        )
    if output.dim() == 1:
        output = output.unsqueeze(1)
    if output.dim() != 2:
        raise ValueError(
            f"lrp: the model's output has shape {tuple(output.shape)}, not (rows, classes), so the target must be a "
            "function that picks from it, such as target=lambda output: output[:, 3].sum((1, 2))."
        )
    matrix: Tensor = output
    return matrix


def _finite(output: Tensor) -> Tensor:
    if not bool(torch.isfinite(output).all()):
        raise LRPError(
            "lrp: the model's output contains NaN or infinite values, so no relevance can be told. Check the input "
            "(its scale, missing values) and the model's weights; in half precision, an overflow."
        )
    return output
