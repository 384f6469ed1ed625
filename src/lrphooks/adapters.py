"""Relevance in the shapes that other libraries ask for: captum's ``.attribute(...)`` and Quantus's ``explain_func``.

Neither library is imported here.

>>> attribution = CaptumAttribution(model, EpsilonPlus())
>>> attribution.attribute(inputs, target=3)
>>> captum.attr.NoiseTunnel(attribution).attribute(inputs, target=3, stdevs=0.1)
>>> quantus.PixelFlipping()(model, x, y, explain_func=quantus_explain, explain_func_kwargs={"composite": EpsilonPlus()})
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast, final

import numpy as np
import torch
from torch import Tensor, nn

from lrphooks.baselines import Baseline, Gradient
from lrphooks.composite import Composite
from lrphooks.explanation import checked, explain, lrp
from lrphooks.selection import Target

Method: TypeAlias = "Composite | Baseline"
Inputs: TypeAlias = "Tensor | tuple[Tensor, ...]"
#: As captum takes them: a class, one a row, or the position of a value in outputs of more dimensions, or one a row.
CaptumTarget: TypeAlias = "int | tuple[int, ...] | Sequence[int] | Sequence[tuple[int, ...]] | Tensor | None"


def _wrapped(method: Callable[..., Any]) -> Callable[..., Any]:
    """Return a method as captum's tools expect it: they reach for what is behind captum's decorator for logging."""

    @functools.wraps(method)
    def call(*args: Any, **kwargs: Any) -> Any:
        return method(*args, **kwargs)

    return call


@final
class CaptumAttribution:
    """LRP, or another method, as captum's attribution classes are called; captum's tools take it as one of theirs.

    Parameters
    ----------
    model
        Any PyTorch module; it is left as it was.
    composite
        The rules, or a baseline; :func:`lrphooks.composites.EpsilonPlus` by default.

    Raises
    ------
    TypeError
        If the model is no module, or the composite neither a composite nor a baseline.
    """

    def __init__(self, model: nn.Module, composite: Method | None = None) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"CaptumAttribution: expected a torch.nn.Module, got {model!r}.")
        self.forward_func = model  # the name that captum's tools look for
        self.composite = composite if isinstance(composite, Baseline) else checked(composite, "CaptumAttribution")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({type(self.forward_func).__name__}(...), {self.composite!r})"

    @classmethod
    def get_name(cls) -> str:
        """Return the name that captum shows."""
        return "LRP (lrphooks)"

    @property
    def multiplies_by_inputs(self) -> bool:
        """Whether attributions are in units of the output, rather than of its gradient."""
        if isinstance(self.composite, Composite):
            return self.composite.attribution == "relevance"
        return not isinstance(self.composite, Gradient)

    @_wrapped
    def attribute(
        self,
        inputs: Inputs,
        target: CaptumTarget = None,
        additional_forward_args: Any = None,
        return_convergence_delta: bool = False,  # noqa: FBT001, FBT002  # captum's signature
        **unsupported: Any,
    ) -> Any:
        """Return the attribution of every input value.

        Parameters
        ----------
        inputs
            A floating-point tensor or a tuple of them; the first dimension counts rows.
        target
            For outputs of shape (rows, classes): a class, or a list or tensor of one class a row. For outputs of more
            dimensions: a tuple that leads to one value of each row, or a list of one tuple a row. None where the model
            returns one value a row.
        additional_forward_args
            Further positional arguments of the model, or a single one; they are not explained.
        return_convergence_delta
            Whether to return also what of each row's output is not in its attributions.

        Returns
        -------
        Tensor or tuple of tensors
            With the shapes of the inputs; a pair of that and the deltas, shape (rows,), if those are asked for.

        Raises
        ------
        LRPError, TypeError, ValueError
            As :func:`lrphooks.lrp`; if an argument is not supported, an input is no floating-point tensor, or a target
            is missing.
        """
        if unsupported:
            raise TypeError(
                f"CaptumAttribution.attribute: unsupported arguments {', '.join(map(repr, unsupported))}. What a "
                "method needs to know, such as the reference of IntegratedGradients, belongs to the method itself: "
                "CaptumAttribution(model, IntegratedGradients(reference=...))."
            )
        given = inputs if isinstance(inputs, tuple) else (inputs,)
        for index, tensor in enumerate(given):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
                raise TypeError(
                    f"CaptumAttribution.attribute: input {index} must be a floating-point tensor, got {kind}. What is "
                    "not to be explained is given as additional_forward_args."
                )
        extra = additional_forward_args if isinstance(additional_forward_args, tuple) else (additional_forward_args,)
        with _appended(self.forward_func, () if additional_forward_args is None else extra, len(given[0])):
            if not return_convergence_delta:
                found = lrp(self.forward_func, given, _as_target(target), self.composite)
                return found if isinstance(inputs, tuple) else found[0]
            explanation = explain(self.forward_func, given, _as_target(target), self.composite)
        found = explanation.relevance if isinstance(inputs, tuple) else explanation.relevance[0]
        return found, self.compute_convergence_delta(found, explanation.explained)

    def attribute_future(self) -> None:
        """Raise an error: there is no asynchronous form."""
        raise NotImplementedError("CaptumAttribution.attribute_future: there is no asynchronous form; use attribute.")

    def has_convergence_delta(self) -> bool:
        """Whether :meth:`attribute` can return deltas: always."""
        return True

    def compute_convergence_delta(self, attributions: Inputs, output: Tensor) -> Tensor:
        """Return what of each row's explained output, shape (rows,), is not in its attributions.

        Formula: ``f(x) - sum A``, as in captum's LRP: what biases, stabilizers and constants absorbed, which
        :func:`lrphooks.audit` tells apart.
        """
        parts = attributions if isinstance(attributions, tuple) else (attributions,)
        return output.flatten() - sum(part.flatten(1).sum(1) for part in parts)


def _as_target(target: CaptumTarget) -> Target:
    """Return captum's target as one of lrphooks."""
    if target is None:
        return _single
    if isinstance(target, Tensor) and target.numel() == 1:
        return int(target)
    if isinstance(target, tuple):
        place: tuple[Any, ...] = (slice(None), *target)
        return lambda output: _one_a_row(output[place], target)
    if isinstance(target, list) and target and all(isinstance(place, tuple) for place in target):
        places = [(row, *place) for row, place in enumerate(target)]
        return lambda output: _one_a_row(torch.stack([output[place] for place in places]), target)
    return cast("Target", target)  # a class, or one a row


def _one_a_row(chosen: Tensor, target: CaptumTarget) -> Tensor:
    if chosen.dim() == 1:
        return chosen
    raise ValueError(
        f"CaptumAttribution.attribute: in each row, target {target!r} leads to values of shape "
        f"{tuple(chosen.shape[1:])}, not to a single one."
    )


def _single(output: Tensor) -> Tensor:
    if isinstance(output, Tensor) and output.dim() and output.numel() == len(output):
        return output.reshape(-1)
    what = f"an output of shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise ValueError(
        f"CaptumAttribution.attribute: the model returns {what}, not one value a row, so target must say which is "
        "explained."
    )


@contextmanager
def _appended(model: nn.Module, extra: tuple[Any, ...], rows: int) -> Iterator[None]:
    """Have the model called with further arguments in this thread; repeated, as its rows are, where those are."""
    thread = threading.get_ident()

    def append(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:  # noqa: ARG001  # torch's signature
        if threading.get_ident() != thread:
            return None
        copies = len(args[0]) // rows
        return (*args, *(_repeated(value, copies, rows) for value in extra))

    hook = model.register_forward_pre_hook(append) if extra else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def _repeated(value: Any, copies: int, rows: int) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.detach()
    return (
        value.repeat(copies, *(1,) * (value.dim() - 1)) if copies > 1 and value.dim() and len(value) == rows else value
    )


def quantus_explain(
    model: nn.Module,
    inputs: Any,
    targets: Any,
    *,
    composite: Method | None = None,
    reduce_axes: Sequence[int] = (),
    device: str | torch.device | None = None,
) -> np.ndarray[Any, np.dtype[Any]]:
    """Return relevance as Quantus asks for it; give it as ``explain_func``, and the rest as ``explain_func_kwargs``.

    Parameters
    ----------
    model
        Any PyTorch module; it is left as it was.
    inputs, targets
        An array of inputs, shape (rows, ...), and one class a row.
    composite
        The rules, or a baseline; :func:`lrphooks.composites.EpsilonPlus` by default.
    reduce_axes
        Dimensions to sum relevance over, which become 1: ``(1,)`` for the channels of images.
    device
        Where the inputs go: the device of the model's parameters by default.

    Returns
    -------
    array
        With the shape of the inputs, but for reduced axes.

    Raises
    ------
    LRPError, TypeError, ValueError
        As :func:`lrphooks.lrp`.
    """
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    x = torch.as_tensor(inputs).to(device or (parameter.device if parameter is not None else "cpu"))
    x = x.to(torch.get_default_dtype() if parameter is None else parameter.dtype)
    target = None if targets is None else torch.as_tensor(targets).long()
    relevance: Tensor = lrp(model, x, target, composite)
    if reduce_axes:
        relevance = relevance.sum(tuple(reduce_axes), keepdim=True)
    return relevance.cpu().numpy()
