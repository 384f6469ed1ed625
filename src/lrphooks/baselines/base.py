"""What all baselines share: how one is asked, and that each is an immutable value."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrphooks.baselines.question import Question, untouched

if TYPE_CHECKING:
    from lrphooks.selection import Target


@dataclass(frozen=True, eq=False, repr=False)
class Baseline(ABC):
    """An attribution method that may stand in for a composite, and is called as ``method(model, x, target)``.

    Baselines are immutable values: they compare, hash and print as the call that made them, hold no state of a call,
    and leave the model as it was: gradients of parameters, buffers, hooks and mode.
    """

    def attribute(
        self, model: nn.Module, x: Any, target: Target = None, *, kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return the attribution of every input value to the explained output of each row.

        Arguments, structure of the result and errors are those of :func:`lrphooks.lrp`. Where the target is None, the
        output that is largest for ``x`` itself is explained, whatever inputs the method tries.
        """
        with torch.inference_mode(mode=False), untouched(model):
            question = Question(model, x, target, kwargs, type(self).__name__)
            return question.arranged(self.attributions(question))

    def explained(
        self, model: nn.Module, x: Any, target: Target = None, *, kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Return the explained value f(x) of each row, of the same arguments, without a graph."""
        with torch.inference_mode(mode=False), torch.no_grad(), untouched(model):
            question = Question(model, x, target, kwargs, type(self).__name__)
            return question.explained([t.unsqueeze(0) for t in question.inputs]).detach()

    def __call__(
        self, model: nn.Module, x: Any, target: Target = None, *, kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Return :meth:`attribute` of the same arguments."""
        return self.attribute(model, x, target, kwargs=kwargs)

    @abstractmethod
    def attributions(self, question: Question) -> list[Tensor]:
        """Return the attribution of each input of a question, with its shape."""

    def _key(self) -> tuple[object, ...]:
        return tuple(_plain(getattr(self, field.name)) for field in dataclasses.fields(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Baseline) and type(self) is type(other) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash((type(self), self._key()))

    def __repr__(self) -> str:
        fields = ", ".join(f"{f.name}={_code(getattr(self, f.name))}" for f in dataclasses.fields(self))
        return f"{type(self).__name__}({fields})"


def count(owner: str, name: str, value: Any) -> int:
    """Return ``value``, or raise an error if it is no integer of at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{owner}: {name} must be an integer, got {value!r} of type {type(value).__name__}.")
    if value < 1:
        raise ValueError(f"{owner}: {name} must be at least 1, got {value!r}.")
    return value


def _plain(value: Any) -> object:
    """Return a value that compares and hashes by what it holds."""
    if isinstance(value, tuple):
        return tuple(map(_plain, value))
    return (value.dtype, value.shape, *value.flatten().tolist()) if isinstance(value, Tensor) else value


def _code(value: Any) -> str:
    """Return the code that makes a value; of a large tensor, what it is."""
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_code, value)) + ("," if len(value) == 1 else "") + ")"
    if not isinstance(value, Tensor):
        return repr(value)
    if value.numel() > 16:
        return f"<tensor of shape {tuple(value.shape)}>"
    return f"torch.tensor({value.tolist()}, dtype={value.dtype})"
