"""The names of a model's classes, where it knows them, and the indices that they stand for."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

#: A class, or one for each row: indices or labels.
Classes: TypeAlias = "int | str | Sequence[int] | Sequence[str] | Tensor"


def indices_of(model: nn.Module, classes: Classes) -> Classes:
    """Return classes as indices: labels are looked up in the names that the model knows, indices stay as they are."""
    if isinstance(classes, str):
        return _index_of(model, classes)
    if isinstance(classes, Tensor | np.ndarray) or not isinstance(classes, Sequence):
        return classes
    if any(isinstance(label, str) for label in classes):
        return [_index_of(model, label) if isinstance(label, str) else label for label in classes]
    return classes


def names_of(model: nn.Module) -> list[tuple[str, int]]:
    """Return the names of a model's classes, each with its index; empty where the model knows none.

    They are looked for in ``config.id2label`` and ``config.label2id``, as models of transformers have them, in
    ``class_names``, ``classes`` and ``names``, and in ``meta["categories"]``, as weights of torchvision have it.
    """
    config, meta = getattr(model, "config", None), getattr(model, "meta", None)
    categories = meta.get("categories") if isinstance(meta, Mapping) else None
    plain = (getattr(model, name, None) for name in ("class_names", "classes", "names"))
    places = (getattr(config, "id2label", None), getattr(config, "label2id", None), *plain, categories)
    return next((names for place in places if (names := _pairs(place))), [])


def _pairs(found: Any) -> list[tuple[str, int]]:
    """Return names and indices from a list of names, or from a mapping either way round."""
    if isinstance(found, Mapping):
        pairs = [(value, key) if isinstance(value, str) else (key, value) for key, value in found.items()]
    elif isinstance(found, Sequence) and not isinstance(found, str):
        pairs = [(name, index) for index, name in enumerate(found)]
    else:
        return []
    if not all(isinstance(name, str) and str(index).isdecimal() for name, index in pairs):
        return []
    return [(name, int(index)) for name, index in pairs]


def _index_of(model: nn.Module, label: str) -> int:
    names = names_of(model)
    if not names:
        raise TypeError(
            f"lrp: a target is an integer or one integer a row, got {label!r}, and {type(model).__name__} does not "
            'know the names of its classes. Give the index, or the names: model.class_names = ["cat", "dog"].'
        )
    # Names such as "tabby, tabby cat" list synonyms, and two classes may share a name.
    found = [(name, index) for name, index in names if name == label] or [
        (name, index) for name, index in names if label.casefold() in _synonyms(name)
    ]
    if len(found) == 1:
        return found[0][1]
    if found:
        listed = ", ".join(f"{index} ({name})" for name, index in found)
        raise ValueError(f"lrp: the label {label!r} stands for several classes: {listed}. Give the index.")
    known = list(dict.fromkeys(name for name, _ in names))
    close = difflib.get_close_matches(label.casefold(), [part for name in known for part in _synonyms(name)])
    hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else f"They begin with {', '.join(known[:5])}."
    raise ValueError(f"lrp: none of the {len(names)} classes of {type(model).__name__} is named {label!r}. {hint}")


def _synonyms(name: str) -> list[str]:
    return [part.strip().casefold() for part in name.split(",")]
