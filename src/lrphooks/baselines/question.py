"""What is asked of a model: the explained values, and their gradients, at whatever inputs a baseline tries."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch
from torch import Tensor, nn

from lrphooks import selection, targets
from lrphooks.engine import containers
from lrphooks.engine.errors import LRPError
from lrphooks.engine.training import warn_of_training
from lrphooks.forward import Inputs
from lrphooks.selection import Target


@final
class Question:
    """The explained values of a model as a function of its floating-point inputs.

    inputs: the floating-point tensors that were given, in the order in which their structure holds them.
    rows: how many rows they have.
    """

    def __init__(self, model: nn.Module, x: Any, target: Target, kwargs: Mapping[str, Any] | None, who: str) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"{who}: expected a torch.nn.Module, got {model!r} of type {type(model).__name__}.")
        self.model, self.who = model, who
        warn_of_training(model, who)
        self._structure = Inputs(x, kwargs, who)
        self._structure.check()
        self._structure.enter()
        self.inputs = [leaf.detach() for leaf in self._structure.leaves]
        self.rows = self._structure.rows or 1
        self.target = targets.resolve(model, target)
        if self.target is None:
            with torch.no_grad():
                self.target = selection.as_matrix(self._run(self.inputs), self.rows).argmax(1)

    def at(self, inputs: Sequence[Tensor]) -> Question:
        """Return the same question of other inputs."""
        return Question(self.model, *self.arguments(inputs), who=self.who)

    def arguments(self, inputs: Sequence[Tensor]) -> tuple[Any, Target, Mapping[str, Any]]:
        """Return x, target and kwargs of the same question of other inputs."""
        args, keywords = self._filled(inputs)
        return args, self.target, keywords

    def explained(self, trials: Sequence[Tensor]) -> Tensor:
        """Return the explained values for some trials: inputs with one more dimension in front, which counts trials."""
        copies = len(trials[0])
        target = self.target
        if copies > 1 and not isinstance(target, int):
            target = torch.as_tensor(target).expand(self.rows).repeat(copies)
        inputs = [t.flatten(0, 1) if t.dim() > 1 else t[0] for t in trials]
        return selection.select(self._run(inputs, copies), target, self.rows * copies)

    def values(self, trials: Sequence[Tensor]) -> Tensor:
        """Return the explained value of each row in each trial, (trials, rows); of a target function, sums over rows.

        Raises
        ------
        ValueError
            If a target function returns no value for each row.
        """
        with torch.no_grad():
            found = self.explained(trials).detach()
        count = self.rows * len(trials[0])
        if count > 1 and (not found.dim() or len(found) != count):
            raise ValueError(
                f"{self.who}: the target function returned shape {tuple(found.shape)} for {count} rows, so what "
                "belongs to which row cannot be told. Return values whose first dimension counts rows, or give one row "
                "at a time."
            )
        return found.reshape(len(trials[0]), self.rows, -1).sum(-1)

    def gradients(self, trials: Sequence[Tensor]) -> list[Tensor]:
        """Return the gradients of the explained values in each trial; 0 where an input has no part in them."""
        with torch.enable_grad():
            leaves = [t.detach().requires_grad_() for t in trials]
            explained = self.explained(leaves).sum()
            found = torch.autograd.grad(explained, leaves, allow_unused=True) if explained.requires_grad else [None]
        if all(grad is None for grad in found):
            raise self.unconnected("the input")
        return [torch.zeros_like(t) if grad is None else grad for t, grad in zip(leaves, found, strict=True)]

    def gradient(self) -> list[Tensor]:
        """Return the gradients at the inputs themselves."""
        return [grad[0] for grad in self.gradients([t.unsqueeze(0) for t in self.inputs])]

    def unconnected(self, what: str) -> LRPError:
        """Return the error of an explained output that no gradient connects with something."""
        return LRPError(
            f"{self.who}: the explained output does not depend on {what} through any differentiable path. Does the "
            "model detach its input, or the target not use the output?"
        )

    def together(self, budget: int) -> int:
        """Return how many trials may run together within a budget of rows.

        One, unless it is certain that rows are told apart: all inputs are tensors with one entry a row, the target is
        an index, and no module is in training mode, where batch statistics would mix rows.
        """
        args, keywords = self._structure.given
        for value in (*args, *keywords.values()):
            constant = value is None or isinstance(value, bool | int | float | str)
            if not constant and not (isinstance(value, Tensor) and value.dim() and len(value) == self.rows):
                return 1
        index = isinstance(self.target, Tensor) or not callable(self.target)
        if not index or torch.as_tensor(self.target).numel() not in (1, self.rows):
            return 1
        if any(module.training for module in self.model.modules()):
            return 1
        return max(1, budget // self.rows)

    def arranged(self, found: Sequence[Tensor]) -> Any:
        """Return attributions in the structure of the inputs."""
        return self._structure.arranged([t.detach() for t in found])

    def _run(self, inputs: Sequence[Tensor], copies: int = 1) -> Any:
        args, keywords = self._filled(inputs, copies)
        return self.model(*args, **keywords)

    def _filled(self, inputs: Sequence[Tensor], copies: int = 1) -> tuple[Any, dict[str, Any]]:
        pending = iter(inputs)

        def fill(tensor: Tensor) -> Tensor:
            if tensor.is_floating_point():
                return next(pending).clone()  # a model may write to its input
            return tensor if copies == 1 else tensor.repeat(copies, *(1,) * (tensor.dim() - 1))

        filled: tuple[Any, dict[str, Any]] = containers.map_tensors(self._structure.given, fill, "input")
        return filled


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Give a model in training mode its buffers back: running statistics must not learn from what a baseline tries."""
    training = isinstance(model, nn.Module) and any(module.training for module in model.modules())
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()] if training else []
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
