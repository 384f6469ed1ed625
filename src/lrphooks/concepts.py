"""Concept relevance propagation: what single channels of a model see, and how much a prediction owes to them.

References
----------
Achtibat et al., "From Attribution Maps to Human-Understandable Explanations through Concept Relevance Propagation",
Nature Machine Intelligence 2023.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from lrphooks import backward
from lrphooks.baselines.base import Baseline
from lrphooks.channels import Channels, Heads, Selection, as_selection, channel_dim
from lrphooks.composite import Composite
from lrphooks.engine.errors import LRPError
from lrphooks.engine.taps import TappedCall, Taps
from lrphooks.explanation import checked
from lrphooks.forward import Inputs, explained
from lrphooks.recording import modules_of
from lrphooks.selection import Target

__all__ = [
    "Channels",
    "Heads",
    "MaximizingInputs",
    "RelevantChannels",
    "conditional_relevance",
    "maximizing_inputs",
    "relevant_channels",
]

#: For each module, by name or itself, the channels through which relevance passes.
Condition: TypeAlias = "Mapping[Any, int | Iterable[int] | Selection]"


def conditional_relevance(
    model: nn.Module,
    x: Any,
    conditions: Condition | Sequence[Condition],
    target: Target = None,
    composite: Composite | None = None,
    *,
    kwargs: Mapping[str, Any] | None = None,
    budget: int = 2**30,
) -> Any:
    """Return the relevance of every input value that goes through given channels of given modules.

    Formula: ``R(x | condition)`` is the relevance that reaches x if at each named module only what arrives at its
    named channels is handed on, and what goes past the module, as by a skip connection, is left out. It is linear: the
    conditional relevances of all channels of a module add up to all that goes through it.

    Parameters
    ----------
    model, x, target, composite, kwargs
        As for :func:`lrphooks.lrp`.
    conditions
        A mapping of modules to channels: ``{"layer4": 3, "layer3": [5, 7]}``, each an index, several, a
        :class:`Channels` or :class:`Heads`; relevance passes through all named modules. A list of such mappings is
        served from one forward pass.
    budget
        How many bytes the backward passes of conditions that are served together may take, roughly.

    Returns
    -------
    as :func:`lrphooks.lrp`
        The conditional relevance; for a list of conditions a list with one for each.

    Raises
    ------
    LRPError, TypeError, ValueError
        As :func:`lrphooks.lrp`; if the model has no such module or channel, or a module ran several times or returned
        several tensors, so that its channels are not one thing.

    Examples
    --------
    >>> conditional_relevance(model, image, {"layer4": 12}, target="tabby")
    >>> conditional_relevance(model, image, [{"layer4": channel} for channel in range(64)])
    """
    who = "conditional_relevance"
    single = isinstance(conditions, Mapping)
    parsed = [_parsed(model, condition, who) for condition in ([conditions] if single else conditions)]
    if not parsed:
        raise TypeError(f"{who}: conditions are a mapping of modules to channels, or a list of them, got none.")
    inputs = Inputs(x, kwargs, who)
    modules = {name: module for condition in parsed for name, (module, _) in condition.items()}
    taps = Taps(modules)
    with explained(model, inputs, [target], _composite(composite, who), taps) as (value,):
        taps.check()
        calls = {name: _single_call(taps, name, who) for name in modules}
        # From the output to the input.
        order = [name for name in reversed(taps.calls) if name in modules]
        chains: dict[tuple[str, ...], list[int]] = {}
        masks = []
        for index, condition in enumerate(parsed):
            chains.setdefault(tuple(name for name in order if name in condition), []).append(index)
            masks.append({n: _mask(model, n, calls[n], part) for n, (_, part) in condition.items()})
        found: dict[int, Sequence[Tensor | None]] = {}
        scaled = backward.Scaled.of(value, inputs.leaves)
        for chain, members in chains.items():
            path = [calls[name] for name in chain]
            passed = [[masks[index][name] for name in chain] for index in members]
            through = _through(scaled.value, path, passed, inputs.leaves, budget)
            if not all(map(scaled.keeps, through)):
                scaled = backward.Scaled(value)
                through = _through(value, path, passed, inputs.leaves, budget)
            found.update(zip(members, map(scaled.each_back, through), strict=True))
    zeros = tuple(torch.zeros_like(leaf) for leaf in inputs.leaves)
    relevance = [inputs.arranged(zeros if all(g is None for g in found[i]) else found[i]) for i in range(len(parsed))]
    return relevance[0] if single else relevance


def _parsed(model: nn.Module, condition: Any, who: str) -> dict[str, tuple[nn.Module, Selection]]:
    if not isinstance(condition, Mapping) or not condition:
        raise TypeError(
            f'{who}: a condition is a mapping of modules to channels, such as {{"layer4": [3, 5]}}, got {condition!r}.'
        )
    found: dict[str, tuple[nn.Module, Selection]] = {}
    for wanted, part in condition.items():
        name, module = _one_module(model, wanted, who)
        found[name] = module, as_selection(part)
    return found


def _one_module(model: nn.Module, wanted: Any, who: str) -> tuple[str, nn.Module]:
    modules = list(modules_of(model, wanted, who).items())
    if len(modules) > 1:
        listed = ", ".join(repr(name) for name, _ in modules[:4]) + (", ..." if len(modules) > 4 else "")
        raise LRPError(f"{who}: {wanted!r} stands for {len(modules)} modules ({listed}); name one at a time.")
    return modules[0]


def _composite(composite: Composite | None, who: str) -> Composite:
    if isinstance(composite, Baseline):
        raise LRPError(f"{who}: {composite!r} tells nothing of channels inside of the model. Give a composite.")
    return checked(composite, who)


def _single_call(taps: Taps, name: str, who: str) -> TappedCall:
    calls = taps.calls[name]
    if len(calls) > 1:
        raise LRPError(
            f"{who}: module {name!r} ({type(calls[0].module).__name__}) ran {len(calls)} times, so its channels are "
            "not one thing. Name a module around or inside of it that runs once."
        )
    if len(calls[0].tapped) != 1:
        raise LRPError(
            f"{who}: module {name!r} ({type(calls[0].module).__name__}) returned {len(calls[0].tapped)} tensors, so "
            "its channels are not one thing. Name a module inside of it."
        )
    return calls[0]


def _mask(model: nn.Module, name: str, call: TappedCall, part: Selection) -> Tensor:
    shape = call.tapped[0].empty.shape
    # What a part says of its dimension counts, and then nothing else must be known.
    dim = part.dim if isinstance(part, Channels | Heads) and part.dim is not None else channel_dim(model, name, call)
    where = f"the output of module {name!r} ({type(call.module).__name__}), of shape {tuple(shape)}"
    return part.mask(shape, dim, where).to(call.tapped[0].empty.device)


def _through(
    value: Tensor, path: list[TappedCall], masks: list[list[Tensor]], leaves: list[Tensor], budget: int
) -> list[tuple[Tensor | None, ...]]:
    """Return the relevance of the leaves that goes through a chain of modules, for several masks of their outputs."""
    nothing: tuple[Tensor | None, ...] = (None,) * len(leaves)
    arrivals = [call.tapped[0].arrivals for call in path]
    gradients: list[tuple[Tensor | None, ...]] = []
    for depth, here in enumerate(arrivals):
        edges = [arrival.edge for arrival in here]
        if not edges or not value.requires_grad:
            return [nothing] * len(masks)
        if depth == 0:
            # All conditions have this part of the way in common.
            gradients = backward.from_starts([value], [[torch.ones_like(value)]], edges, budget) * len(masks)
        else:
            gradients = _onward(arrivals[depth - 1], gradients, [m[depth - 1] for m in masks], edges, budget)
    return _onward(arrivals[-1], gradients, [m[-1] for m in masks], leaves, budget)


def _onward(
    arrivals: Sequence[Any],
    gradients: list[tuple[Tensor | None, ...]],
    masks: list[Tensor],
    places: backward.Places,
    budget: int,
) -> list[tuple[Tensor | None, ...]]:
    """Return the gradients at some places of what arrived at a module and its masks let pass."""
    reached = [i for i, gradient in enumerate(gradients[0]) if gradient is not None]
    if not reached:
        return [(None,) * len(places)] * len(masks)
    seeds = [
        [each[i] * mask.to(each[i].dtype) for i in reached]  # type: ignore[union-attr, operator]
        for each, mask in zip(gradients, masks, strict=True)
    ]
    return backward.from_starts([arrivals[i].start for i in reached], seeds, places, budget)


class RelevantChannels(NamedTuple):
    """The most relevant channels of each row, shape (rows, top), and their relevance."""

    channels: Tensor
    relevance: Tensor


def relevant_channels(
    model: nn.Module,
    x: Any,
    layer: str | nn.Module,
    target: Target = None,
    composite: Composite | None = None,
    *,
    top: int = 5,
    dim: int | None = None,
    kwargs: Mapping[str, Any] | None = None,
) -> RelevantChannels:
    """Return the channels of a module that a prediction owes most to, for each row, the most relevant first.

    The relevance of a channel is the sum over its positions.

    Parameters
    ----------
    model, x, target, composite, kwargs
        As for :func:`lrphooks.lrp`.
    layer
        The module, by name or itself.
    top
        How many channels are wanted.
    dim
        The dimension of the module's output that counts channels, where it is not that of its layers.

    Returns
    -------
    RelevantChannels
        ``channels`` and ``relevance``, each (rows, top).

    Raises
    ------
    LRPError, TypeError, ValueError
        As :func:`conditional_relevance`; if there are less than ``top`` channels.
    """
    who = "relevant_channels"
    scores = _channel_relevance(model, Inputs(x, kwargs, who), layer, target, composite, dim, "sum")
    found = scores.topk(_count(who, top, scores.shape[1]), dim=1)
    return RelevantChannels(found.indices, found.values)


def _channel_relevance(
    model: nn.Module,
    inputs: Inputs,
    layer: str | nn.Module,
    target: Target,
    composite: Composite | None,
    dim: int | None,
    pool: str,
) -> Tensor:
    """Return the relevance of each channel of a module, (rows, channels)."""
    name, module = _one_module(model, layer, inputs.who)
    taps = Taps({name: module})
    with explained(model, inputs, [target], _composite(composite, inputs.who), taps) as (value,):
        taps.check()
        call = _single_call(taps, name, inputs.who)
        ((scaled, grads),) = backward.at_safe_scale([value], inputs.leaves, taps.edges, 1)
    dim = channel_dim(model, name, call) if dim is None else dim
    return _pooled(scaled.back(call.tapped[0].relevance(grads)), dim, pool)


def _pooled(values: Tensor, dim: int, pool: str) -> Tensor:
    by_channel = values.movedim(dim, 1)
    if by_channel.dim() == 2:
        return by_channel
    return by_channel.flatten(2).sum(2) if pool == "sum" else by_channel.flatten(2).amax(2)


def _count(who: str, top: Any, most: int) -> int:
    if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= most:
        raise ValueError(f"{who}: top is how many channels are wanted, 1 to {most}, got {top!r}.")
    return top


class MaximizingInputs(NamedTuple):
    """For each channel the inputs that it is largest for.

    channels: the channels, (n,). inputs: numbers of the inputs in the order of the data, (n, top), the largest first.
    scores: their relevance or activation, (n, top).
    """

    channels: Tensor
    inputs: Tensor
    scores: Tensor


def maximizing_inputs(
    model: nn.Module,
    data: Iterable[Any],
    layer: str | nn.Module,
    channels: int | Iterable[int] | None = None,
    target: Target = None,
    composite: Composite | None = None,
    *,
    by: Literal["relevance", "activation"] = "relevance",
    top: int = 8,
    pool: Literal["sum", "max"] = "sum",
    dim: int | None = None,
) -> MaximizingInputs:
    """Return the inputs of a data set that make channels of a module most relevant, or most active.

    What a channel is used for shows in the inputs that make it relevant (relevance maximisation); what it reacts to,
    in those that make it active. Only the best are kept, so memory does not grow with the data.

    Parameters
    ----------
    model, target, composite
        As for :func:`lrphooks.lrp`; without a target each input counts for what is predicted for it.
    data
        Batches: each an input x of the model, or a pair of x and a target for it, such as labels. For a bar that shows
        progress, wrap it: ``tqdm(loader)``.
    layer
        The module, by name or itself.
    channels
        The channels that are wanted; all by default.
    by
        "relevance" or "activation".
    top
        How many inputs are kept for each channel; less where there are less.
    pool
        How the positions of a channel come to one number: their "sum" or "max".
    dim
        The dimension of the module's output that counts channels, where it is not that of its layers.

    Returns
    -------
    MaximizingInputs
        ``channels``, ``inputs`` and ``scores``.

    Raises
    ------
    LRPError, TypeError, ValueError
        As :func:`conditional_relevance`; if there are no data, or an option is unknown.
    """
    who = "maximizing_inputs"
    for name, value, known in (("by", by, ("relevance", "activation")), ("pool", pool, ("sum", "max"))):
        if value not in known:
            raise ValueError(f"{who}: {name} is one of {known}, got {value!r}.")
    if isinstance(top, bool) or not isinstance(top, int) or top < 1:
        raise ValueError(f"{who}: top is how many inputs are kept for each channel, at least 1, got {top!r}.")
    wanted = None if channels is None else torch.tensor(Channels(channels).indices)
    scores, inputs, count = torch.empty(0), torch.empty(0, dtype=torch.long), 0
    for batch in data:
        x, of_batch = batch if isinstance(batch, tuple | list) and len(batch) == 2 else (batch, target)
        found = (
            _channel_activation(model, Inputs(x, None, who), layer, dim, pool)
            if by == "activation"
            else _channel_relevance(model, Inputs(x, None, who), layer, of_batch, composite, dim, pool)
        )
        if wanted is None:
            wanted = torch.arange(found.shape[1])
        outside = wanted[(wanted < 0) | (wanted >= found.shape[1])]
        if outside.numel():
            raise ValueError(f"{who}: there is no channel {int(outside[0])} among {found.shape[1]}.")
        found = found[:, wanted.to(found.device)].t().cpu()
        numbers = torch.arange(count, count + found.shape[1]).expand(found.shape)
        count += found.shape[1]
        scores = found if not scores.numel() else torch.cat((scores, found), 1)
        inputs = numbers if not inputs.numel() else torch.cat((inputs, numbers), 1)
        kept = scores.topk(min(top, count), dim=1)
        scores, inputs = kept.values, inputs.gather(1, kept.indices)
    if wanted is None or not count:
        raise ValueError(f"{who}: data holds no batch. Was an iterator given that had been used up?")
    return MaximizingInputs(wanted, inputs, scores)


def _channel_activation(model: nn.Module, inputs: Inputs, layer: str | nn.Module, dim: int | None, pool: str) -> Tensor:
    """Return the activation of each channel of a module, (rows, channels)."""
    name, module = _one_module(model, layer, inputs.who)
    taps = Taps({name: module})
    # The values are those that the tap keeps; the rules take no part in them.
    with explained(model, inputs, [], Composite(unmatched="gradient"), taps):
        taps.check()
        call = _single_call(taps, name, inputs.who)
    values = call.tapped[0].values
    if values is None:
        raise LRPError(f"{inputs.who}: the output of module {name!r} does not depend on the input.")
    return _pooled(values, channel_dim(model, name, call) if dim is None else dim, pool)
