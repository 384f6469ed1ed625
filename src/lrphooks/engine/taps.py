"""Taps: what arrives at the outputs of chosen modules, read off the graph without changing it.

Relevance does not simply arrive at a module's output tensor: the rule of a layer is a node behind which the layer is
passed over, a BatchNorm is merged into the layer before it, and relevance itself travels by links. So a tap collects,
for each output, all places of the graph at which its relevance arrives: the tensor itself, the nodes in which its rule
is set for consumers to come, and the links. The backward pass is asked for the gradient there, as for a leaf.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from lrphooks.engine import containers, cuts, facts
from lrphooks.engine.errors import LRPError
from lrphooks.engine.layer_call import LayerCall
from lrphooks.engine.nodes import Node, ScaleNode, zero_link
from lrphooks.engine.observer import Observer
from lrphooks.engine.reporting import warn
from lrphooks.layers.linear_map import Moved
from lrphooks.rules.base import Rule
from lrphooks.torch_private import is_view, version_of

if TYPE_CHECKING:
    from lrphooks.engine.call import Call
    from lrphooks.engine.frame import Frame
    from lrphooks.engine.passes import Passes
    from lrphooks.engine.run import Run


@dataclass(frozen=True, eq=False)
class Arrival:
    """One place of the graph at which relevance of an output arrives.

    values: what its gradient is to be multiplied by; None where the gradient is relevance itself.
    start: a tensor whose gradient is handed on to the place, for a pass that begins there.
    """

    edge: GradientEdge
    values: Tensor | None
    start: Tensor

    @classmethod
    def at(cls, run: Run, tensor: Tensor, values: Tensor | None) -> Arrival:
        """Return a tensor's place as it is now: what overwrites the tensor later exchanges its place in the graph."""
        return cls(get_gradient_edge(tensor), values, StartNode.apply(run.passes, tensor))

    def relevance(self, gradient: Tensor) -> Tensor:
        """Return what arrived, from the gradient at the place."""
        if self.values is None:
            return gradient
        return (self.values.conj() * gradient).real if self.values.is_complex() else self.values * gradient


@dataclass(eq=False)
class Tapped:
    """One output tensor of one call of a module.

    empty: zeros of its shape that take no memory.
    values: what it was when the module ended; None where gradients are not to be multiplied by it.
    channel_dim: where the channels are, counted from the end, if a linear layer made it.
    """

    empty: Tensor
    values: Tensor | None = None
    channel_dim: int | None = None
    arrivals: list[Arrival] = field(default_factory=list)

    def relevance(self, gradients: Sequence[Tensor | None]) -> Tensor:
        """Return the relevance of the output, from the gradients at its arrivals."""
        found = [a.relevance(g) for a, g in zip(self.arrivals, gradients, strict=True) if g is not None]
        return sum(found[1:], found[0]) if found else torch.zeros_like(self.empty)


@dataclass(eq=False)
class TappedCall:
    """What one call of a module returned, with empty tensors, and a tap for each of them."""

    module: nn.Module
    output: Any
    tapped: list[Tapped]

    def arranged(self, found: Iterable[Any]) -> Any:
        """Return one value for each tapped tensor in the structure of the output."""
        values = iter(found)
        return containers.map_tensors(self.output, lambda _: next(values), "output")


class Record:
    """Stands for a linear layer that waits for its rule. The nodes of the layer keep it, so it holds nothing."""

    __slots__ = ()


class Taps(Observer):
    """Watches the outputs of some modules of one run.

    It holds places of the graph, so nothing that the graph holds may refer to it, or to what it holds.

    calls: the calls of each watched module, by its name, in the order in which the modules ended first.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._modules = modules
        self._views: list[tuple[str, Tensor, int]] = []
        #: Who wants to know of the consumers of a layer.
        self._layers: dict[object, list[tuple[Tapped, bool, bool]]] = {}
        #: Whose links are watched, by number.
        self._linked: list[Tapped] = []
        #: Why outputs have no relevance to tell of, by the names of the modules.
        self._aside: dict[str, str] = {}
        self.calls: dict[str, list[TappedCall]] = {}

    def check(self) -> None:
        """Raise an error if a module did not run, or relevance went past what it returned."""
        for name, module in self._modules.items():
            if name not in self.calls:
                raise LRPError(
                    f"{_place(name, module)} did not run in this forward pass, or returned nothing, so its output has "
                    "no relevance to tell of. A module whose parameters alone are used does not run."
                )
            if not any(call.tapped for call in self.calls[name]):
                kind = type(self.calls[name][0].output).__name__
                raise LRPError(f"{_place(name, module)} returned a {kind} without a tensor of numbers in it.")
        for name, tensor, version in self._views:
            if version_of(tensor) != version:
                raise LRPError(
                    f"{_place(name, self._modules[name])} returned a view of another tensor, which was overwritten in "
                    "place after that, so its relevance cannot be told. Take the module before it, or the one that "
                    "overwrites it."
                )

        aside = [n for n in self._aside if not any(t.arrivals for call in self.calls[n] for t in call.tapped)]
        if aside:
            listed = ", ".join(repr(name) for name in aside[:5]) + (f" and {len(aside) - 5} more" if aside[5:] else "")
            reasons = " ".join(dict.fromkeys(self._aside[name] for name in aside if self._aside[name]))
            warn(
                f"What is recorded of module {listed} is zero: its output does not depend on the explained input "
                f"through any differentiable path{f': {reasons}' if reasons else ', or was detached from it.'}",
                UserWarning,
            )

    @property
    def edges(self) -> list[GradientEdge]:
        """The places at which relevance of the watched outputs arrives, in their order."""
        calls = [call for name in self._modules for call in self.calls[name]]
        return [arrival.edge for call in calls for tapped in call.tapped for arrival in tapped.arrivals]

    def relevance(self, gradients: Sequence[Tensor | None]) -> dict[str, Any]:
        """Return the relevance of each watched module, from the gradients at :attr:`edges`.

        It has the structure of the module's output; a module that ran several times has a tuple with one for each call.
        """
        pending = iter(gradients)
        found = {}
        for name in self._modules:
            each = tuple(
                call.arranged([t.relevance([next(pending) for _ in t.arrivals]) for t in call.tapped])
                for call in self.calls[name]
            )
            found[name] = each[0] if len(each) == 1 else each
        return found

    # --- what the engine tells ---

    def left(self, run: Run, module: nn.Module, output: Any) -> None:
        """Tap the outputs of a module that ended."""
        for name in (n for n, m in self._modules.items() if m is module):
            tapped: list[Tapped] = []

            def tap(tensor: Tensor, name: str = name, tapped: list[Tapped] = tapped) -> Tensor | None:
                if not tensor.is_floating_point() and not tensor.is_complex():
                    return None
                if is_view(tensor) and run.carries(tensor):
                    self._views.append((name, tensor, version_of(tensor)))
                tapped.append(self._tap(run, tensor))
                if not run.carries(tensor) and not _is_stopped(run, tensor):
                    self._aside[name] = cuts.reason(run, tensor)
                return tapped[-1].empty

            self.calls.setdefault(name, []).append(
                TappedCall(module, containers.map_tensors(output, tap, "output"), tapped)
            )

    def layer(
        self, layer: LayerCall, output: Tensor | None, link: Tensor | None, *, relu_follows: bool, linked: bool
    ) -> None:
        """Note the node that a layer's rule is set in for consumers of a tapped output."""
        for tapped, merged, moved in self._layers.get(layer.record, ()):
            if (merged and layer.batch_norm is None) or (moved and not isinstance(layer.map, Moved)):
                # What consumes the layer beside its BatchNorm, or what was moved, does not consume the output of that.
                continue
            if output is not None:
                # The BatchNorm that is merged with a tapped layer stands for it, and has values of its own.
                own = layer.batch_norm is None or merged or tapped.values is None
                values = tapped.values if own else output.detach().clone()
                tapped.arrivals.append(Arrival.at(layer.run, output, values))
            if link is not None:
                tapped.arrivals.append(Arrival.at(layer.run, link, None))

    def begin(self, run: Run, name: str, rule: Rule) -> Record:
        """Return the record of a layer that is about to run."""
        return Record()

    def probe(self, run: Run, tensor: Tensor, *, as_relevance: bool = False) -> Tensor:
        """Return the operand as it is."""
        return tensor

    def operation(self, run: Run, call: Call, rule: Rule, handler: Callable[[Run, Call, Rule], Any]) -> Any:
        """Run an operation as it is."""
        return handler(run, call, rule)

    def passed(self, run: Run, rule: Rule, a: Tensor, output: Tensor, link: Tensor, *, linked: bool) -> None:
        """Relevance that goes past what the model computes arrives at outputs like any other."""

    def entered(self, frame: Frame, name: str) -> None:
        """Modules that begin are of no concern."""

    def fell_back(self, what: str) -> None:
        """Nor are operations without a rule."""

    def taken_out(self, where: str) -> None:
        """Nor are values that leave the graph."""

    def explained(self, run: Run, x: Tensor) -> None:
        """Nor is the explained input."""

    def output(self, run: Run, before: Tensor, tensor: Tensor) -> None:
        """Nor is the output of the model."""

    # --- helpers ---

    def _tap(self, run: Run, tensor: Tensor) -> Tapped:
        """Return a tap on what consumes a tensor from now on."""
        tapped = Tapped(tensor.detach().new_zeros(()).expand(tensor.shape))
        if not run.carries(tensor):
            return tapped
        # A copy, since the model may overwrite it.
        tapped.values = tensor.detach().clone() if run.times_input else None
        tapped.arrivals.append(Arrival.at(run, tensor, tapped.values))
        note = facts.read(tensor, run)
        layer = None if note is None else note.layer
        if isinstance(layer, LayerCall):
            # Where somebody looks on, no layer is under the epsilon rule alone.
            moved = isinstance(layer.map, Moved)
            tapped.channel_dim = None if moved else layer.map.output_channel_dim
            self._layers.setdefault(layer.record, []).append((tapped, layer.merged, moved))
        if note is not None and note.link is not None:
            facts.write(tensor, run, link=partial(_watched, run, note.link, len(self._linked)))
            self._linked.append(tapped)
        return tapped

    def linked(self, run: Run, number: int, link: Tensor) -> None:
        """Note the link of a tapped tensor."""
        self._linked[number].arrivals.append(Arrival.at(run, link, None))


def _is_stopped(run: Run, tensor: Tensor) -> bool:
    """Whether a rule says that a tensor is a constant, which has no relevance by right."""
    note = facts.read(tensor, run)
    return note is not None and note.constant == "stopped"


def _watched(run: Run, link: Callable[[], Tensor | None], number: int) -> Tensor | None:
    """Return the link of a tapped tensor, with a place of its own, since others may hold it too."""
    made = link()
    if made is None:
        return None
    own: Tensor = ScaleNode.apply(run.passes, 1.0, made)
    if run.watched and isinstance(run.observer, Taps):
        run.observer.linked(run, number, own)
    return own


def _place(name: str, module: nn.Module) -> str:
    return f"Module {name!r} ({type(module).__name__})" if name else f"The model ({type(module).__name__})"


class StartNode(Node):
    """Where a relevance pass may begin inside of a model, in place of its output."""

    @staticmethod
    def forward(ctx: Any, passes: Passes, x: Tensor) -> Tensor:
        ctx.passes = passes
        return zero_link(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        ctx.passes.begin()
        return None, gradient
