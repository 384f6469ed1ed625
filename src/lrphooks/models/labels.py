"""The names of classes from a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lrphooks.models.errors import ModelError


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the names of classes: a line each, or JSON with a list, or with names (or pairs ending in one) by index.

    Raises
    ------
    ModelError
        If the file cannot be read as either.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(f"the file of labels could not be read: {error}.") from error
    if path.suffix.lower() != ".json":
        names = tuple(line.strip() for line in text.strip().splitlines())
    else:
        try:
            names = _of_json(json.loads(text))
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise ModelError(
                f'{path} holds no names of classes: it must be a list, or an object as {{"0": "cat", "1": "dog"}} '
                f"without gaps ({type(error).__name__}: {error})."
            ) from error
    if not names or not all(names):
        raise ModelError(f"{path} holds no names of classes, or an empty one: write a line for each class.")
    return names


def _of_json(loaded: Any) -> tuple[str, ...]:
    if isinstance(loaded, dict):
        loaded = [loaded[str(index)] for index in range(len(loaded))]
    if not isinstance(loaded, list):
        raise TypeError(f"a {type(loaded).__name__}")
    return tuple(str(value[-1] if isinstance(value, list) else value) for value in loaded)
