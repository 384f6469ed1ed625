"""What is explained: from a class, a name or a formula to one value for each row of a model's output.

A target is one of

- a class: an index into the last dimension of a (rows, classes) output, or one index a row;
- a label, or one label a row, where the model knows the names of its classes;
- None, for the largest output of each row;
- a target of this module, such as ``Difference("cat", "dog")``;
- any function of the model's output that returns the values to explain.

A model with one output is explained through its logit, whose sign is its decision: relevance above 0 speaks for the
positive class, also where the decision is against it. :class:`Sign` turns it around there.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lrphooks import labels
from lrphooks.labels import Classes
from lrphooks.selection import Target, as_matrix, as_tensor, finite, index_of, picked

__all__ = ["AgainstOthers", "Difference", "Entry", "OutputTarget", "Region", "Sign", "SoftmaxGradient", "Target"]

#: The fields of targets that hold classes.
_CLASSES = ("a", "b")


@dataclass(frozen=True)
class OutputTarget(ABC):
    """A formula of a model's output, as a value: it compares, prints as the call that made it, and may name labels."""

    def __call__(self, output: Any) -> Tensor:
        """Return the values to explain, one for each row of a model's output."""
        return self._explained(output)

    @abstractmethod
    def _explained(self, output: Any) -> Tensor: ...

    def __post_init__(self) -> None:
        for name in _CLASSES:
            # Sequences as tuples, so that targets compare, hash and print as values.
            classes = getattr(self, name, None)
            if isinstance(classes, Tensor | np.ndarray):
                classes = classes.tolist()
            if isinstance(classes, list | range):
                object.__setattr__(self, name, tuple(classes))

    def named(self, model: nn.Module) -> OutputTarget:
        """Return the target with labels turned into the indices that they have in a model."""
        given = {name: getattr(self, name) for name in _CLASSES if hasattr(self, name)}
        changes = {name: labels.indices_of(model, classes) for name, classes in given.items()}
        return dataclasses.replace(self, **changes) if changes != given else self


@dataclass(frozen=True)
class Difference(OutputTarget):
    """One class against another: what speaks for ``a`` rather than for ``b``.

    Formula: ``z_a - z_b``, the logarithm of how much more probable the model holds a than b.

    Parameters
    ----------
    a, b
        Each a class, or one a row: indices or labels.

    Raises
    ------
    TypeError, ValueError
        When it is explained: if the output is not (rows, classes), or has no such class.
    """

    a: Classes
    b: Classes

    def _explained(self, output: Any) -> Tensor:
        matrix = finite(as_matrix(output))
        return picked(matrix, self.a) - picked(matrix, self.b)


@dataclass(frozen=True)
class AgainstOthers(OutputTarget):
    """One class against others: what speaks for ``a`` rather than for the mean of all others, or of the strongest.

    Formula: ``z_a - 1 / k * sum_{j in S} z_j``, the mean of the differences to each of the k classes in S: all but a,
    or the ``strongest`` so many of these, those with the largest outputs.

    Of a thousand classes most are out of the question, and what tells a from them is what makes a picture a picture.
    Against the few strongest stays what tells a from the classes that it could be taken for.

    Parameters
    ----------
    a
        A class, or one a row: indices or labels.
    strongest
        Of how many others the mean is taken; all where there are fewer. None is all.

    Raises
    ------
    TypeError, ValueError
        If ``strongest`` is not an integer of at least 1. When it is explained: if the output is not (rows, classes), or
        has no such class or no other.

    References
    ----------
    Gu et al., "Understanding Individual Decisions of CNNs via Contrastive Backpropagation", ACCV 2018 (the form of
    CLRP in which the dual concept has all other classes), here without the final ReLU, so that relevance is conserved.
    That few strong classes tell more is measured in ``docs/faithfulness.md``.
    """

    a: Classes
    strongest: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strongest is None:
            return
        if isinstance(self.strongest, bool) or not isinstance(self.strongest, int):
            raise TypeError(f"AgainstOthers: strongest must be None or an integer, got {self.strongest!r}.")
        if self.strongest < 1:
            raise ValueError(
                f"AgainstOthers: strongest must be at least 1, got {self.strongest}. To explain a class by itself, "
                "give the class."
            )

    def _explained(self, output: Any) -> Tensor:
        matrix = finite(as_matrix(output))
        if matrix.shape[1] < 2:
            raise ValueError(
                f"lrp: {self!r} needs a class beside the explained one, but the model has a single output. Explain it "
                "as it is (target=0), or as the evidence for the decision: lrphooks.targets.Sign()."
            )
        chosen = picked(matrix, self.a)
        if self.strongest is None or self.strongest >= matrix.shape[1] - 1:
            return chosen - (matrix.sum(1) - chosen) / (matrix.shape[1] - 1)
        index = index_of(self.a, matrix).unsqueeze(1)
        others = matrix.detach().scatter(1, index, -math.inf)
        return chosen - matrix.gather(1, others.topk(self.strongest, 1).indices).mean(1)


@dataclass(frozen=True)
class SoftmaxGradient(OutputTarget):
    """SGLRP: relevance starts from the gradient of the softmax, so other classes count by their probability.

    Formula: relevance of the outputs is ``R_a = p_a (1 - p_a)`` and ``R_j = -p_a p_j`` for every other class, with
    ``p = softmax(z)``. The explained value is their sum, which is 0: what speaks for a is balanced by what speaks
    for the others.

    Where an output is exactly 0, it receives nothing.

    Parameters
    ----------
    a
        A class, or one a row: indices or labels.

    Raises
    ------
    TypeError, ValueError
        When it is explained: if the output is not (rows, classes), or has no such class.

    References
    ----------
    Iwana et al., "Explaining Convolutional Neural Networks using Softmax Gradient Layer-wise Relevance Propagation",
    ICCV Workshops 2019.
    """

    a: Classes

    def _explained(self, output: Any) -> Tensor:
        matrix = finite(as_matrix(output))
        logits = matrix.detach()
        probabilities = logits.softmax(1)
        index = index_of(self.a, matrix).unsqueeze(1)
        chosen = probabilities.gather(1, index)
        relevance = (-chosen * probabilities).scatter(1, index, chosen * (1 - chosen))
        # As R = z * G, an output needs the factor R / z.
        factor = torch.where(logits == 0, torch.zeros_like(logits), relevance / logits)
        return (matrix * factor).sum(1)


@dataclass(frozen=True, eq=False)
class Region(OutputTarget):
    """A class summed over a region: for segmentation, where the output is (rows, classes, ...).

    Formula: ``sum_{p in region} z_{a, p}``.

    Parameters
    ----------
    a
        A class, or one a row: indices or labels.
    where
        The region: a mask that broadcasts to (rows, ...), or a slice or a tuple of slices of the positions. None is
        where the model predicts the class.

    Raises
    ------
    TypeError, ValueError
        When it is explained: if the output has no positions or no such class, or the region does not fit them or is
        empty.
    """

    a: Classes
    where: Tensor | slice | tuple[slice, ...] | None = None

    def _explained(self, output: Any) -> Tensor:
        maps = finite(as_tensor(output))
        if maps.dim() < 3:
            raise ValueError(
                f"lrp: {self!r} needs an output of shape (rows, classes, ...), with positions to sum over, got "
                f"{tuple(maps.shape)}. For a (rows, classes) output give the class itself."
            )
        index = index_of(self.a, maps)
        chosen = maps[torch.arange(len(maps), device=maps.device), index]
        mask = self._mask(maps, chosen, index)
        if not bool(mask.flatten(1).any(1).all()):
            raise ValueError(
                f"lrp: the region of {self!r} is empty in row {int((~mask.flatten(1).any(1)).nonzero()[0])}, so there "
                "is nothing to explain there. Without `where` it is where the model predicts the class."
            )
        return (chosen * mask).flatten(1).sum(1)

    def _mask(self, maps: Tensor, chosen: Tensor, index: Tensor) -> Tensor:
        if self.where is None:
            shape = (-1, *(1,) * (chosen.dim() - 1))
            return maps.detach().argmax(1) == index.reshape(shape)
        if isinstance(self.where, Tensor):
            try:
                return self.where.to(chosen.device, torch.bool).expand(chosen.shape)
            except RuntimeError as error:
                raise ValueError(
                    f"lrp: the mask of {self!r} does not broadcast to the positions of the output, "
                    f"{tuple(chosen.shape)}."
                ) from error
        slices: tuple[Any, ...] = self.where if isinstance(self.where, tuple) else (self.where,)
        if len(slices) > chosen.dim() - 1 or not all(isinstance(part, slice) for part in slices):
            raise TypeError(
                f"lrp: where of {self!r} is a mask or slices of the {chosen.dim() - 1} dimensions of positions, such "
                "as (slice(0, 10), slice(20, 30))."
            )
        mask = torch.zeros_like(chosen, dtype=torch.bool)
        positions = (slice(None), *slices)
        mask[positions] = True
        return mask

    def __repr__(self) -> str:
        where = self.where
        if isinstance(where, Tensor):
            # The numbers of a mask would say less.
            return f"Region({self.a!r}, <mask of shape {tuple(where.shape)}>)"
        return f"Region({self.a!r})" if where is None else f"Region({self.a!r}, {where!r})"


@dataclass(frozen=True)
class Sign(OutputTarget):
    """The decision of a model with one output: what speaks for the side that it took.

    Formula: ``sign(z) z``. The logit itself (``target=0``) is explained towards the positive class instead, so the two
    differ where z is negative.

    Raises
    ------
    TypeError, ValueError
        When it is explained: if the model has several outputs.
    """

    def _explained(self, output: Any) -> Tensor:
        matrix = finite(as_matrix(output))
        if matrix.shape[1] != 1:
            raise ValueError(
                f"lrp: Sign() is for models with one output, whose sign is the decision; this one has "
                f"{matrix.shape[1]}. Give a class."
            )
        logit = matrix.squeeze(1)
        return logit * logit.detach().sign()


@dataclass(frozen=True, init=False)
class Entry(OutputTarget):
    """One entry of an output that is nested, such as one box of a detector.

    Formula: ``output[path[0]][path[1]]...``; a name is also looked up as an attribute. The score of the first box of
    the first image of a detector of torchvision is ``Entry(0, "scores", 0)``.

    Parameters
    ----------
    path
        Keys and indices (or slices), from the outside to the inside.

    Raises
    ------
    TypeError, ValueError
        When it is explained: if there is no such entry, or it is no tensor of real numbers.
    """

    path: tuple[Any, ...]

    def __init__(self, *path: Any) -> None:
        object.__setattr__(self, "path", path)

    def _explained(self, output: Any) -> Tensor:
        found, reached = output, "output"
        for key in self.path:
            found = self._step(found, key, reached)
            reached += f"[{key!r}]"
        if not isinstance(found, Tensor) or not found.is_floating_point():
            raise TypeError(f"lrp: {self!r} must lead to a tensor of real numbers, but leads to {_described(found)}.")
        return finite(found)

    def _step(self, value: Any, key: Any, reached: str) -> Any:
        try:
            named = isinstance(key, str) and not isinstance(value, Mapping)
            return getattr(value, key) if named else value[key]
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(
                f"lrp: {self!r} finds no entry {key!r} in {reached}, which is {_described(value)}. A detector that "
                "finds no box returns none; is its threshold too high?"
            ) from error

    def __repr__(self) -> str:
        return f"Entry({', '.join(map(repr, self.path))})"


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with the keys {', '.join(map(repr, value))}"
    return f"a {type(value).__name__}" + (f" of length {len(value)}" if isinstance(value, list | tuple) else "")


def resolve(model: nn.Module, target: Target) -> Target:
    """Return the target with labels turned into the indices that they have in a model.

    Raises
    ------
    TypeError, ValueError
        If the model does not know the names of its classes, or not this one.
    """
    if isinstance(target, OutputTarget):
        return target.named(model)
    if isinstance(target, Mapping):
        raise TypeError(
            f"lrp: a target is an integer, one integer a row, or a function of the output, got {target!r}. Keyword "
            "inputs of the model are given as kwargs={...}."
        )
    return target if target is None or callable(target) else labels.indices_of(model, target)
