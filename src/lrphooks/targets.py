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
import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lrphooks.engine.errors import LRPError

#: The fields of targets that hold classes.
_CLASSES = ("a", "b")

#: A class, or one for each row.
Classes: TypeAlias = "int | str | Sequence[int] | Sequence[str] | Tensor"
Target: TypeAlias = "Classes | Callable[[Any], Tensor] | None"


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
        changes = {name: indices_of(model, classes) for name, classes in given.items()}
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
        matrix = _finite(as_matrix(output))
        return _picked(matrix, self.a) - _picked(matrix, self.b)


@dataclass(frozen=True)
class AgainstOthers(OutputTarget):
    """One class against all others: what speaks for ``a`` rather than for the mean of the others.

    Formula: ``z_a - 1 / (n - 1) * sum_{j != a} z_j``, the mean of the differences to each of the other n - 1 classes.

    Parameters
    ----------
    a
        A class, or one a row: indices or labels.

    Raises
    ------
    TypeError, ValueError
        When it is explained: if the output is not (rows, classes), or has no such class or no other.

    References
    ----------
    Gu et al., "Understanding Individual Decisions of CNNs via Contrastive Backpropagation", ACCV 2018 (the form of
    CLRP in which the dual concept has all other classes), here without the final ReLU, so that relevance is conserved.
    """

    a: Classes

    def _explained(self, output: Any) -> Tensor:
        matrix = _finite(as_matrix(output))
        if matrix.shape[1] < 2:
            raise ValueError(
                f"lrp: {self!r} needs a class beside the explained one, but the model has a single output. Explain it "
                "as it is (target=0), or as the evidence for the decision: lrphooks.targets.Sign()."
            )
        chosen = _picked(matrix, self.a)
        return chosen - (matrix.sum(1) - chosen) / (matrix.shape[1] - 1)


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
        matrix = _finite(as_matrix(output))
        logits = matrix.detach()
        probabilities = logits.softmax(1)
        index = _index(self.a, matrix).unsqueeze(1)
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
        maps = _finite(_tensor(output))
        if maps.dim() < 3:
            raise ValueError(
                f"lrp: {self!r} needs an output of shape (rows, classes, ...), with positions to sum over, got "
                f"{tuple(maps.shape)}. For a (rows, classes) output give the class itself."
            )
        index = _index(self.a, maps)
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
        matrix = _finite(as_matrix(output))
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
        return _finite(found)

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


# --- from a target to one value a row ---


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
    return target if target is None or callable(target) else indices_of(model, target)


def select(output: Any, target: Target, rows_given: int | None = None) -> Tensor:
    """Return the explained value of each row of a model's output; ``rows_given`` are the rows of its input, if known.

    Raises
    ------
    LRPError, TypeError, ValueError
        As :func:`lrphooks.lrp`.
    """
    if callable(target) and not isinstance(target, Tensor):
        chosen = target(output)
        if not isinstance(chosen, Tensor):
            raise TypeError(f"lrp: the target function must return a tensor, got {type(chosen).__name__}.")
        return _finite(chosen)
    matrix = _finite(as_matrix(output, rows_given))
    return _picked(matrix, matrix.detach().argmax(1) if target is None else target)


def _picked(matrix: Tensor, classes: Classes) -> Tensor:
    return matrix.gather(1, _index(classes, matrix).unsqueeze(1)).squeeze(1)


def _index(given: Classes, output: Tensor) -> Tensor:
    """Return one index a row, from 0 up, into the classes of an output (rows, classes, ...)."""
    rows, classes, device = output.shape[0], output.shape[1], output.device
    try:
        index = torch.as_tensor(given, device=device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"lrp: a target is an integer or one integer a row, got {given!r}.") from error
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool or index.dim() > 1:
        raise TypeError(f"lrp: a target is an integer or one integer a row, got {given!r}.")
    if index.dim() == 1 and index.numel() != rows:
        raise ValueError(f"lrp: {index.numel()} targets were given for {rows} rows; give one, or one a row.")
    index = index.long().expand(rows)
    outside = index[(index < -classes) | (index >= classes)]
    if outside.numel():
        raise ValueError(
            f"lrp: target {int(outside[0])} is out of range for a model with {classes} outputs (0 to {classes - 1})."
        )
    return index % classes


def _tensor(output: Any) -> Tensor:
    """Return the tensor of logits that a model answers with, also in the containers of transformers and torchvision."""
    for key in ("logits", "out"):
        found = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        if not isinstance(output, Tensor) and isinstance(found, Tensor):
            return found
    if not isinstance(output, Tensor):
        raise TypeError(
            f"lrp: the model returns a {type(output).__name__}, so the target must be a function that picks a tensor "
            "from it, such as target=lambda output: output.logits[:, 3]."
        )
    return output


def as_matrix(output: Any, rows_given: int | None = None) -> Tensor:
    """Return a model's output as (rows, classes)."""
    output = _tensor(output)
    if output.dim() == 1 and rows_given is not None and len(output) != rows_given:
        raise ValueError(
            f"lrp: the model's output has shape {tuple(output.shape)}, but its input has {rows_given} rows. Is x a "
            "single example without a dimension for rows? Give x.unsqueeze(0), or a function as the target."
        )
    if output.dim() == 1:
        output = output.unsqueeze(1)
    if output.dim() != 2:
        raise ValueError(
            f"lrp: the model's output has shape {tuple(output.shape)}, not (rows, classes), so the target must be a "
            "function that picks from it, such as target=lambda output: output[:, 3].sum((1, 2))."
        )
    matrix: Tensor = output
    return matrix


def _finite(output: Tensor) -> Tensor:
    if not bool(torch.isfinite(output).all()):
        raise LRPError(
            "lrp: the model's output contains NaN or infinite values, so no relevance can be told. Check the input "
            "(its scale, missing values) and the model's weights; in half precision, an overflow."
        )
    return output


# --- names of classes ---


def indices_of(model: nn.Module, classes: Classes) -> Classes:
    """Return classes as indices: labels are looked up in the names that the model knows, indices stay as they are."""
    if isinstance(classes, str):
        return _index_of(model, classes)
    if isinstance(classes, Tensor | np.ndarray) or not isinstance(classes, Sequence):
        return classes
    if any(isinstance(label, str) for label in classes):
        return [_index_of(model, label) if isinstance(label, str) else label for label in classes]
    return classes


def names_of(model: nn.Module) -> dict[str, int] | None:
    """Return the names of a model's classes with their indices, or None where it knows none.

    They are looked for in ``config.id2label`` and ``config.label2id``, as models of transformers have them, in
    ``class_names``, ``classes`` and ``names``, and in ``meta["categories"]``, as weights of torchvision have it.
    """
    config, meta = getattr(model, "config", None), getattr(model, "meta", None)
    categories = meta.get("categories") if isinstance(meta, Mapping) else None
    plain = (getattr(model, name, None) for name in ("class_names", "classes", "names"))
    for found in (getattr(config, "id2label", None), getattr(config, "label2id", None), *plain, categories):
        names = _by_name(found)
        if names:
            return names
    return None


def _by_name(found: Any) -> dict[str, int] | None:
    """Return names and indices from a list of names, or a mapping either way round."""
    if isinstance(found, Mapping):
        pairs = list(found.items())
        if all(isinstance(value, str) for _, value in pairs):
            pairs = [(value, key) for key, value in pairs]
    elif isinstance(found, Sequence) and not isinstance(found, str):
        pairs = [(name, index) for index, name in enumerate(found)]
    else:
        return None
    if not all(isinstance(name, str) and str(index).isdecimal() for name, index in pairs):
        return None
    names: dict[str, int] = {}
    for name, index in pairs:
        # Two classes may share a name, as the crane that flies and the one that lifts.
        names[name if name not in names else f"{name} (class {index})"] = int(index)
    return names


def _index_of(model: nn.Module, label: str) -> int:
    names = names_of(model)
    if names is None:
        raise TypeError(
            f"lrp: a target is an integer or one integer a row, got {label!r}, and {type(model).__name__} does not "
            'know the names of its classes. Give the index, or the names: model.class_names = ["cat", "dog"].'
        )
    shared = f"{label} (class "
    found = {name: index for name, index in names.items() if name == label or name.startswith(shared)}
    if not found:
        # Names such as "tabby, tabby cat" list synonyms.
        wanted = label.casefold()
        found = {n: i for n, i in names.items() if wanted in [part.strip().casefold() for part in n.split(",")]}
    if len(found) == 1:
        return next(iter(found.values()))
    if found:
        listed = ", ".join(f"{index} ({name})" for name, index in found.items())
        raise ValueError(f"lrp: the label {label!r} stands for several classes: {listed}. Give the index.")
    parts = {part.strip(): None for name in names for part in (name, *name.split(","))}
    close = difflib.get_close_matches(label, parts, cutoff=0.5) or list(names)[:5]
    raise ValueError(
        f"lrp: {type(model).__name__} has no class {label!r}. Did you mean {' or '.join(map(repr, close))}?"
        if len(close) < 4
        else f"lrp: {type(model).__name__} has no class {label!r}. Its {len(names)} classes begin with "
        f"{', '.join(map(repr, close))}."
    )
