"""Relevance in one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrphooks import backward
from lrphooks.absorbed import warn_of_absorbed
from lrphooks.arrays import as_tensors
from lrphooks.baselines.base import Baseline
from lrphooks.composite import Composite
from lrphooks.composites import EpsilonPlus
from lrphooks.engine import containers
from lrphooks.engine.errors import LRPError
from lrphooks.engine.taps import Taps
from lrphooks.forward import Inputs, explained
from lrphooks.recording import Record, functions_of
from lrphooks.selection import Target

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """What one call of :func:`explain` found.

    Attributes
    ----------
    relevance
        The relevance of every input value, as :func:`lrp` returns it.
    explained
        The explained value f(x) of each row, shape (rows,), or as the target function returned it.
    target, composite, inputs
        What was asked: the target, the composite or baseline, and the inputs in the structure of ``relevance``.
    recorded
        For each recorded module by name the relevance of its output.
    parameters
        For each parameter by name its relevance, with the parameter's shape.
    """

    relevance: Any
    explained: Tensor
    target: Target
    composite: Composite | Baseline
    inputs: Any
    recorded: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def total(self) -> float:
        """The sum of all relevance, in double precision."""
        return sum(float(t.double().sum()) for t in containers.tensors(self.relevance))

    def __repr__(self) -> str:
        values = [f"{value:.4g}" for value in self.explained.flatten()[:4].tolist()]
        more = self.explained.numel() - len(values)
        parts = [
            f"explained=[{', '.join(values)}{f', and {more} more' if more else ''}]",
            f"total={self.total:.4g}",
            f"target={self.target!r}",
            f"composite={self.composite!r}",
        ]
        if self.recorded:
            parts.append(f"recorded={list(self.recorded)}")
        if self.parameters:
            parts.append(f"parameters of {len(self.parameters)} tensors")
        return f"Explanation(relevance of shape {', '.join(self._shapes())}, {', '.join(parts)})"

    def picture(self, *, title: str = "", most: int = 4) -> Image | None:
        """Return the inputs beside their relevance, as :func:`lrphooks.visualization.picture_of` draws them.

        None where they are neither images, (B, C, H, W), nor signals, (B, C, T). Signals need the extra ``plot``.
        """
        from lrphooks import visualization  # noqa: PLC0415  where it is drawn

        return visualization.picture_of(self.inputs, self.relevance, title=title, most=most)

    def _shapes(self) -> list[str]:
        return [str(tuple(t.shape)) for t in containers.tensors(self.relevance)]

    def _repr_html_(self) -> str:
        from lrphooks import visualization  # noqa: PLC0415  as above

        values = ", ".join(f"{value:.4g}" for value in self.explained.flatten()[:4].tolist())
        summary = {
            "f(x)": values + (", …" if self.explained.numel() > 4 else ""),
            "relevance": f"{self.total:.4g} in all, of shape {', '.join(self._shapes())}",
            "target": "the largest output" if self.target is None else repr(self.target),
            "composite": repr(self.composite),
        }
        if self.recorded:
            summary["recorded"] = ", ".join(self.recorded)
        if self.parameters:
            summary["parameters"] = f"{len(self.parameters)} tensors"
        picture = None
        try:
            picture = self.picture()
        except ImportError as error:
            summary["picture"] = str(error)
        return visualization.html_of(summary, picture)


def lrp(
    model: nn.Module,
    x: Any,
    target: Target = None,
    composite: Composite | Baseline | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
) -> Any:
    """Return the relevance of every input value for the explained output of each row.

    For each row it sums to f(x), the explained value, less what biases, stabilizers and constants absorb;
    :func:`lrphooks.audit` tells how much that is, and a warning does where it is more than nine tenths. Under
    GuidedBackprop and DeconvNet it is a modified gradient.

    Parameters
    ----------
    model
        Any PyTorch module; it is left as it was.
    x
        The input, or a tuple of the positional inputs: tensors or numpy arrays, packed sequences, or dicts, lists and
        dataclasses of tensors. The first dimension counts rows. Arrays get the precision of the model.
    target
        What is explained: an index into the last dimension of a (rows, classes) output, one index a row, labels where
        the model knows their names, None for the largest output of each row, a target of :mod:`lrphooks.targets`, or
        a function of the model's output that returns the values to explain. Give a model that returns logits: of a
        probability behind a softmax, the softmax's offset takes nearly all where the model is sure, which is warned of.
    composite
        The rules; :func:`lrphooks.composites.EpsilonPlus` by default. A :class:`lrphooks.baselines.Baseline` in its
        place attributes by another method.
    kwargs
        The keyword inputs, explained as well.

    Returns
    -------
    Tensor, or as ``x``
        The relevance in the structure of ``x``, each tensor with the shape, dtype and device of its input, arrays where
        arrays were given (:func:`explain` has tensors); where
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
    x, kwargs, back = as_tensors(model, x, kwargs)
    if isinstance(composite, Baseline):
        return back(composite.attribute(model, x, target, kwargs=kwargs))
    return back(_explain(model, x, target, composite, kwargs=kwargs, who="lrp").relevance)


def explain(
    model: nn.Module,
    x: Any,
    target: Target = None,
    composite: Composite | Baseline | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    record: Record | None = None,
    parameters: bool = False,
) -> Explanation:
    """Return the relevance of :func:`lrp` together with what was explained, and more of what the same pass knows.

    Parameters
    ----------
    model, x, target, composite, kwargs
        As for :func:`lrp`.
    record
        The inner modules whose relevance is wanted as well: what arrives at their outputs. A name, a pattern
        (``"layer*"``), a type, a group of :mod:`lrphooks.matching`, a module, or several of these; or a mapping of
        these to functions of the relevance (None for the relevance itself). ``recorded`` holds it by name, in the
        structure of the output; a tuple with one for each call where a module ran several times.
    parameters
        Whether the relevance of parameters that require a gradient is wanted: ``p * dG/dp``, what flows through each
        of them. For LRP-0 and epsilon it is the sum of ``a_i w_ij R_j / z_j`` over all uses of the weight; under other
        rules the derivative of the contributions that the rule counts, so twice ``w^2 s`` for the w-square rule and
        nothing for the flat one. The gradients of the parameters themselves stay as they are.

    Returns
    -------
    Explanation
        Relevance, explained values, and what was asked.

    Raises
    ------
    LRPError, TypeError, ValueError
        As :func:`lrp`; if a recorded module is not there or did not run, or no parameter requires a gradient.

    Examples
    --------
    >>> explanation = explain(model, images, target="tabby")
    >>> explanation.relevance, explanation.explained
    >>> explain(model, images, record={"layer3": lambda relevance: relevance.sum((2, 3))}).recorded["layer3"]
    """
    x, kwargs, _ = as_tensors(model, x, kwargs)
    return _explain(model, x, target, composite, kwargs=kwargs, record=record, parameters=parameters, who="explain")


def lrp_targets(
    model: nn.Module,
    x: Any,
    targets: Sequence[Target],
    composite: Composite | Baseline | None = None,
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
        As for :func:`lrp`. A baseline attributes to one target after the other.

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
    if isinstance(composite, Baseline):
        return [lrp(model, x, target, composite, kwargs=kwargs) for target in targets]
    composite = checked(composite, "lrp_targets")
    x, kwargs, back = as_tensors(model, x, kwargs)
    inputs = Inputs(x, kwargs, "lrp_targets")
    with explained(model, inputs, targets, composite) as values:
        found = backward.at_safe_scale(values, inputs.leaves, inputs.leaves, budget)
    return [back(inputs.arranged(scaled.each_back(grads))) for scaled, grads in found]


def _explain(
    model: nn.Module,
    x: Any,
    target: Target,
    composite: Composite | Baseline | None,
    *,
    kwargs: Mapping[str, Any] | None,
    record: Record | None = None,
    parameters: bool = False,
    who: str,
) -> Explanation:
    given = x if kwargs is None else (x, dict(kwargs))
    if isinstance(composite, Baseline):
        if record is not None or parameters:
            raise LRPError(
                f"{who}: {composite!r} attributes to inputs alone, so there is nothing to record of inner modules or "
                "parameters. Leave record and parameters out, or give a composite."
            )
        relevance = composite.attribute(model, x, target, kwargs=kwargs)
        values = composite.explained(model, x, target, kwargs=kwargs)
        return Explanation(relevance, values, target, composite, given)
    composite = checked(composite, who)
    inputs = Inputs(x, kwargs, who)
    wanted = {} if record is None else functions_of(model, record, who)
    taps = Taps({name: module for name, (module, _) in wanted.items()}) if wanted else None
    asked = _parameters(model, who) if parameters else {}
    with explained(model, inputs, [target], composite, taps, parameters=parameters) as (value,):
        if taps is not None:
            taps.check()
        edges = [] if taps is None else taps.edges
        places: list[Any] = [*inputs.leaves, *edges, *asked.values()]
        ((scaled, grads),) = backward.at_safe_scale([value], inputs.leaves, places, 1)
    count = len(inputs.leaves)
    at_inputs, at_edges, at_parameters = grads[:count], grads[count : count + len(edges)], grads[count + len(edges) :]
    recorded = {}
    if taps is not None:
        for name, arrived in taps.relevance(at_edges).items():
            function = wanted[name][1]
            found = scaled.back(arrived)
            recorded[name] = found if function is None else function(found)
    learned = {name: scaled.back(_times(p, g)) for (name, p), g in zip(asked.items(), at_parameters, strict=True)}
    relevance = inputs.arranged(scaled.each_back(at_inputs))
    warn_of_absorbed(value.detach(), relevance, composite, who)
    return Explanation(relevance, value.detach(), target, composite, given, recorded, learned)


def _times(parameter: Tensor, gradient: Tensor | None) -> Tensor:
    """Return a parameter's relevance from its gradient, which is 0 where relevance does not reach it."""
    values = parameter.detach()
    if gradient is None:
        return torch.zeros_like(values)
    return (values.conj() * gradient).real if values.is_complex() else values * gradient


def _parameters(model: nn.Module, who: str) -> dict[str, nn.Parameter]:
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not found:
        raise LRPError(
            f"{who}: no parameter of the model requires a gradient, so none can have relevance. Call "
            "model.requires_grad_() first."
        )
    return found


def checked(composite: Composite | None, who: str) -> Composite:
    """Return the composite that is meant, or raise an error that says what one is."""
    if composite is None:
        return EpsilonPlus()
    if not isinstance(composite, Composite):
        hint = f" Did you mean {composite.__name__}()?" if callable(composite) else ""
        raise TypeError(f"{who}: composite must be a Composite, such as EpsilonPlus(), got {composite!r}.{hint}")
    return composite
