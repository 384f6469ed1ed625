"""One forward pass under a composite: the explained values, and the inputs that relevance is for."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lrphooks import probabilities, targets
from lrphooks.engine import containers
from lrphooks.engine.ending import gradients, interruptible
from lrphooks.engine.errors import LRPError
from lrphooks.engine.session import Session

if TYPE_CHECKING:
    from lrphooks.engine.observer import Observer
    from lrphooks.entries import Entries
    from lrphooks.selection import Target


@dataclass(frozen=True, eq=False)
class Inputs:
    """What a model is given: one input or a tuple of them, and keyword inputs.

    leaves: the explained tensors as the forward pass takes them, in the order of the structure.
    """

    x: Any
    kwargs: Mapping[str, Any] | None
    who: str
    leaves: list[Tensor] = field(default_factory=list)

    @property
    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The positional and the keyword inputs."""
        return (self.x if is_positional(self.x) else (self.x,), dict(self.kwargs or {}))

    def check(self) -> None:
        """Raise an error unless relevance can flow to one of the inputs."""
        check_inputs(self.given, self.who)

    def enter(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the inputs with a leaf of the graph in place of each floating-point tensor."""

        def leaf(tensor: Tensor) -> Tensor:
            # A tensor made in inference mode takes no part in autograd; its copy does.
            self.leaves.append((tensor.clone() if tensor.is_inference() else tensor).detach().requires_grad_())
            return self.leaves[-1]

        entered: tuple[tuple[Any, ...], dict[str, Any]] = containers.map_tensors(
            self.given, leaf, "input", keep=lambda t: not t.is_floating_point()
        )
        return entered

    @property
    def rows(self) -> int | None:
        """How many rows the inputs have, if they have any."""
        for part in containers.parts(self.given):
            if isinstance(part, PackedSequence):
                return int(part.batch_sizes[0])
            if part.is_floating_point() and part.dim():
                return part.shape[0]
        return None

    @property
    def _hint(self) -> str:
        """What may be the matter where no relevance arrives."""
        others = {str(t.dtype) for t in containers.tensors(self.given) if not t.is_floating_point()}
        if others:
            return (
                f"It may come from the inputs of {', '.join(sorted(others))}, through which none can flow: for token "
                "ids, explain their embeddings (kwargs={'inputs_embeds': ...} in transformers). Else, does the model "
                "detach its input, or the target not use the output?"
            )
        return "Does the model detach its input, or the target not use the output?"

    def arranged(self, grads: Sequence[Tensor | None]) -> Any:
        """Return relevance, one tensor for each leaf, in the structure of the inputs."""
        if all(grad is None for grad in grads):
            raise LRPError(
                f"{self.who}: the explained output does not depend on the input through any differentiable path, so "
                f"there is no relevance. {self._hint}"
            )
        # An input without a path to the output has no relevance.
        found = iter(torch.zeros_like(t) if grad is None else grad for t, grad in zip(self.leaves, grads, strict=True))
        filled = containers.map_tensors(self.given, lambda t: next(found) if t.is_floating_point() else None, "input")
        positional = filled[0] if is_positional(self.x) else filled[0][0]
        return positional if self.kwargs is None else (positional, filled[1])


@interruptible
def explained(
    model: nn.Module,
    inputs: Inputs,
    wanted: Sequence[Target],
    composite: Entries,
    observer: Observer | None = None,
    *,
    parameters: bool = False,
) -> Generator[list[Tensor], None, None]:
    """Run the model under a composite; in the block are the explained values of each target, with their graph."""
    inputs.check()
    resolved = [targets.resolve(model, target) for target in wanted]
    with (
        torch.inference_mode(mode=False),
        gradients(enabled=True),
        Session(composite, model, observer, once=True, parameters=parameters),
    ):
        args, keywords = inputs.enter()
        output = model(*args, **keywords)
        yield [probabilities.select_for_rules(output, target, inputs.rows) for target in resolved]


def is_positional(x: Any) -> bool:
    """Whether an input is a tuple of the positional inputs, rather than one input."""
    return isinstance(x, tuple) and not hasattr(x, "_fields")


def check_inputs(given: tuple[Any, Any], who: str) -> None:
    """Raise an error unless relevance can flow to one of the given inputs."""
    tensors = list(containers.tensors(given))
    if not tensors:
        kind = type(given[0][0]).__name__ if given[0] else "nothing"
        held = [name for value in containers.objects(given) for name, _ in containers.attributes(value)]
        hint = (
            f" It holds {', '.join(held)}: give the tensors, to a torch.nn.Module that makes one of them."
            if held
            else ""
        )
        raise TypeError(
            f"{who}: x must be a tensor, or a tuple of the model's inputs with tensors in it, got {kind}.{hint}"
        )
    if not any(t.is_floating_point() for t in tensors):
        raise LRPError(
            f"{who}: x has dtype {tensors[0].dtype}, through which no relevance can flow. Convert images with "
            "x.float(); for token ids, explain their embeddings (kwargs={'inputs_embeds': ...} in transformers)."
        )
