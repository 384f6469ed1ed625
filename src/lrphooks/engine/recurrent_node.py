"""The autograd node of a whole stack of recurrent layers."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import unrolled
from lrphooks.engine.derivatives import several, true_derivative
from lrphooks.engine.nodes import Node, _sum, absent, unaliased
from lrphooks.engine.recurrence import RECURRENCES
from lrphooks.engine.unrolled import State
from lrphooks.rules.base import Rule

if TYPE_CHECKING:
    from lrphooks.engine.passes import Passes


@dataclass(frozen=True, slots=True)
class Stack:
    """One call of recurrent layers, without its tensors: the input, the first states and the parameters.

    rule: the rule of the linear maps.
    carriers: which of input and first states relevance reaches the explained input through.
    """

    name: str
    rule: Rule
    layers: int
    directions: int
    batch_first: bool
    has_biases: bool
    carriers: tuple[bool, ...]

    def values(self, *tensors: Tensor) -> tuple[State, list[Tensor]]:
        """Return what the call returns, and the outputs of all its layers, time first."""
        outputs, last = self._one_by_one(self.layers, *tensors)
        return (self.time_first(outputs[-1]), *(torch.cat(parts) for parts in zip(*last, strict=True))), outputs

    def relevance(
        self, outputs: Tensor | None, last: tuple[Tensor | None, ...], kept: Sequence[Tensor], *tensors: Tensor
    ) -> list[Tensor | None]:
        """Return the modified gradients of input and first states from those of outputs and last states.

        Kept are the outputs of the last layers, or of all, time first.
        """
        states, params = self._parted(tensors)
        if torch.is_grad_enabled():
            # Relevance is to be differentiated, also by what these were made of.
            kept = ()
        computed, _ = self._one_by_one(self.layers - len(kept), *tensors)
        sequences = [self.time_first(tensors[0]), *computed, *kept]
        received = None if outputs is None else self.time_first(outputs)
        first: list[State] = []
        for layer in reversed(range(self.layers)):
            arriving, received = received, None
            for direction in reversed(range(self.directions)):
                index = layer * self.directions + direction
                recurrence = RECURRENCES[self.name](
                    self.rule,
                    self._along(sequences[layer], direction),
                    tuple(s[index] for s in states),
                    self._along(self._side(sequences[layer + 1], direction), direction),
                    unrolled.weights_in(self._of(params, index), self.has_biases),
                )
                side = None if arriving is None else self._along(self._side(arriving, direction), direction)
                passed, begun = recurrence.back(side, tuple(None if g is None else g[index] for g in last))
                first.append(begun)
                if layer or self.carriers[0]:
                    received = _sum(received, self._along(recurrence.input(passed), direction))
        to_input = None if received is None else self.time_first(received)
        to_states = (torch.stack(parts[::-1]) for parts in zip(*first, strict=True))
        return [g if carries else None for g, carries in zip((to_input, *to_states), self.carriers, strict=True)]

    def _one_by_one(self, layers: int, *tensors: Tensor) -> tuple[list[Tensor], list[State]]:
        """Return outputs and last states of each of the first layers, which run one after the other."""
        x, (states, params) = self.time_first(tensors[0]), self._parted(tensors)
        run = self._cells if torch.is_grad_enabled() else self._fused
        outputs, last = [], []
        for layer in range(layers):
            cells = range(layer * self.directions, (layer + 1) * self.directions)
            own = [p for index in cells for p in self._of(params, index)]
            x, *ended = run(x, [s[cells.start : cells.stop] for s in states], own)
            outputs.append(x)
            last.append(tuple(ended))
        return outputs, last

    def _cells(self, x: Tensor, states: Sequence[Tensor], params: Sequence[Tensor]) -> State:
        """Run one layer cell by cell, which may be differentiated any number of times on any device."""
        both = self.directions == 2
        given = {"input": x, "hx": states, "params": params, "has_biases": self.has_biases}
        return unrolled.layers(self.name, {**given, "num_layers": 1, "bidirectional": both})

    def _fused(self, x: Tensor, states: Sequence[Tensor], params: Sequence[Tensor]) -> State:
        """Run one layer in one piece."""
        hx, both = states if self.name == "lstm" else states[0], self.directions == 2
        out, *last = getattr(torch, self.name)(x, hx, params, self.has_biases, 1, 0.0, False, both, False)
        # Before torch 2.13, the last states of an LSTM that is traced have a dimension too many.
        return out, *(ended.reshape(first.shape) for ended, first in zip(last, states, strict=True))

    def _parted(self, tensors: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        """Return first states and parameters among the tensors of the call."""
        return tensors[1 : len(self.carriers)], tensors[len(self.carriers) :]

    def _of(self, params: Sequence[Tensor], index: int) -> Sequence[Tensor]:
        """Return the parameters of one layer in one direction."""
        each = 4 if self.has_biases else 2
        return params[index * each : (index + 1) * each]

    def time_first(self, sequence: Tensor) -> Tensor:
        """Return a sequence with time first from one as the layers are given it, and the other way round."""
        return sequence.transpose(0, 1) if self.batch_first else sequence

    def _side(self, sequence: Tensor, direction: int) -> Tensor:
        """Return the part of a sequence of outputs that a direction made."""
        return sequence.chunk(self.directions, -1)[direction]

    @staticmethod
    def _along(sequence: Tensor, direction: int) -> Tensor:
        """Return a sequence in the order in which a direction runs, or back from that order."""
        return sequence.flip(0) if direction else sequence


class RecurrentNode(Node):
    """A stack of recurrent layers; the tensors are the input, the first states and the parameters.

    In a relevance pass parameters and constants receive nothing.
    """

    of_model = True

    @staticmethod
    def forward(ctx: Any, passes: Passes, stack: Stack, call: Callable[[], State], *tensors: Tensor) -> State:
        ctx.set_materialize_grads(False)
        ctx.passes, ctx.stack = passes, stack
        if stack.layers > 1 and tensors[0].is_cpu:
            # There, torch runs the layers one after the other too, so the values are the same to the last bit.
            values, kept = stack.values(*tensors)
        else:
            values = call()
            kept = [stack.time_first(values[0])]
        # A copy, since the model may write to what it gets.
        ctx.save_for_backward(*kept[:-1], kept[-1].clone(), *tensors)
        return tuple(map(unaliased, values))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        given = [i for i, gradient in enumerate(gradients) if gradient is not None]
        if not given:
            return absent(ctx)
        stack: Stack = ctx.stack
        needed = ctx.needs_input_grad[3:]
        # Unpacked once: a checkpoint hands out each saved tensor a single time.
        saved = ctx.saved_tensors
        kept, tensors = saved[: -len(needed)], saved[-len(needed) :]
        if ctx.passes.relevance:
            alone = not (torch.is_grad_enabled() or any(several(g) for g in gradients if g is not None))
            # In inference mode, where operations cost less, results may overwrite what nobody else needs.
            with torch.inference_mode() if alone else nullcontext():
                found = stack.relevance(gradients[0], gradients[1:], kept, *tensors)
            # What is made in that mode, autograd takes no derivatives of.
            found = [g.clone() if alone and g is not None else g for g in found]
            return None, None, None, *found, *(None for _ in needed[len(found) :])

        def function(*tensors: Tensor) -> State:
            values, _ = stack.values(*tensors)
            return tuple(values[i] for i in given)

        arrived = [gradient for gradient in gradients if gradient is not None]
        return None, None, None, *true_derivative(function, tensors, arrived, needed)
