"""Ruled linear layers: from the executed call to the node that redistributes its relevance.

A node right behind the layer (the *guard*) holds the rule whatever consumes the output, and computes all it needs in
the backward pass. A consumer that the engine sees gets a node of its own on top, with what the consumer tells: a
BatchNorm is merged into the weight, a ReLU lets negative outputs receive nothing. Both are read off the executed
operations, so they hold for any model. That node does its work in the forward pass and answers to the layer's input
directly, past the guard, which then serves only what the engine cannot see.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lrphooks.engine import facts
from lrphooks.engine.ending import saving_tensors_themselves
from lrphooks.engine.filter_node import FilterNode
from lrphooks.engine.rule_node import GuardNode, RuleNode
from lrphooks.engine.ruled_layer import RuledLayer
from lrphooks.rules.input import InputRule
from lrphooks.torch_private import dispatch_modes, preserve_version, top_saved_tensors_hooks


@dataclass(slots=True, eq=False)
class LayerCall(RuledLayer):
    """One executed linear layer whose rule is to be set behind it, as its output is consumed."""

    def guard(self, output: Tensor) -> Tensor:
        """Set the rule on the output for consumers that cannot be seen, and note the layer for those that can."""
        link_in = self._link_in()
        # A selective checkpoint takes a tensor that it keeps for changed where the node is set in place.
        with preserve_version(output) if dispatch_modes() else nullcontext():
            out: Tensor = GuardNode.apply(self, "in place", output, link_in, *self.tensors)
        if self.filtered is not None:
            out, _ = FilterNode.apply(self.run.passes, self.filtered, True, out, None)
        facts.write(out, self.run, layer=self, ruled=False)
        self._tell(out, None, linked=link_in is not None)
        return out

    def way_for_relevance(self, output: Tensor) -> Callable[[], Tensor | None] | None:
        """Return what makes the link of the output, where the rule is not set for a consumer that is seen."""
        return partial(self.link, output.shape, output.dtype) if self.filtered is None else None

    def bypassed(self, output: Tensor) -> Tensor:
        """Return the output of a layer whose gradient is right already.

        Relevance itself, which an output of 0 cannot carry as a gradient, needs a way on demand.
        """
        facts.write(output, self.run, link=partial(self.link, output.shape, output.dtype))
        self._tell(output, None)
        return output

    def _link_in(self) -> Tensor | None:
        """Return the link of the input, for a rule that hands on relevance itself."""
        if self.input_link is None or not isinstance(self.rule, InputRule):
            return None
        link_in = self.input_link()
        if link_in is not None and self.record is not None and self.run.watched and self.run.observer is not None:
            link_in = self.run.observer.probe(self.run, link_in, as_relevance=True)
        return link_in

    def leave(self, output: Tensor) -> None:
        """Leave the rule to the guard, for whoever asked for the gradient at the output itself."""
        link = self.way_for_relevance(output) if self.run.linked else None
        facts.write(output, self.run, ruled=True, link=link)

    def settle(self, output: Tensor, *, relu_follows: bool = False, in_place: bool = True) -> Tensor:
        """Set the rule's node on the output and return the tensor to consume (the output itself if in place)."""
        link_in = self._link_in()
        # The data stays as it is, so whoever saved the output before may go on using it.
        with self._outside_of_later_hooks(), preserve_version(output):
            ruled, link = RuleNode.apply(self, relu_follows, in_place, output, link_in, *self.tensors)
            if self.filtered is not None:
                ruled, link = FilterNode.apply(self.run.passes, self.filtered, in_place, ruled, link)
        facts.write(ruled, self.run, layer=self, ruled=True, link=None if link is None else lambda: link)
        self._tell(ruled, link, relu_follows=relu_follows, linked=link_in is not None)
        return ruled  # type: ignore[no-any-return]

    def link(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return a link to the output of a layer whose rule has no node in front of the guard."""
        a = self.tensors[0]
        assert a is not None
        output = a.detach().new_zeros((), dtype=dtype).expand(shape)
        link_in = self._link_in()
        with self._outside_of_later_hooks():
            out: Tensor = GuardNode.apply(self, "link", output, link_in, *self.tensors)
        self._tell(None, out, linked=link_in is not None)
        return out

    def _tell(
        self, output: Tensor | None, link: Tensor | None, *, relu_follows: bool = False, linked: bool = False
    ) -> None:
        # What a checkpoint runs again was told before.
        if self.record is not None and self.run.watched and self.run.observer is not None:
            self.run.observer.layer(self, output, link, relu_follows=relu_follows, linked=linked)

    def _outside_of_later_hooks(self) -> AbstractContextManager[Any]:
        """Keep the node's tensors from hooks that came after the layer, such as a checkpoint that starts behind it.

        What the checkpoint runs again does not contain the layer, so it must not hold the layer's tensors either.
        """
        if saving_hooks() == self.hooks:
            return nullcontext()
        return saving_tensors_themselves()


def saving_hooks() -> Any:
    """Return the hooks on saved tensors that are in force, to be compared with those of another time."""
    return top_saved_tensors_hooks(True)
