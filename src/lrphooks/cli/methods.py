"""How to explain, from the command line: presets by name, with arguments, or a composite of one's own."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch

from lrphooks import Composite, composites
from lrphooks.cli.command import CommandError, UsageError
from lrphooks.models import ModelError, PictureModel, UnknownModelError
from lrphooks.models.own import called, named

DEFAULT = "EpsilonPlus"

#: What models say of themselves, for the presets that ask for it.
_OF_MODEL: dict[str, Callable[[PictureModel], Any]] = {
    "model": lambda model: model.network,
    "low": lambda model: model.low,
    "high": lambda model: model.high,
}
#: Arguments that only Python can give.
_FOR_PYTHON = ("layers",)

PRESETS: dict[str, Callable[..., Composite]] = {
    name: preset
    for name, preset in vars(composites).items()
    if inspect.isfunction(preset) and preset.__module__ == composites.__name__ and not name.startswith("_")
}


@final
@dataclass(frozen=True)
class Method:
    """A way to explain, as the user wrote it, and what it is for a model."""

    text: str
    make: Callable[[PictureModel], Composite]


def method(text: str) -> Method:
    """Return the method that a text such as ``EpsilonGammaBox(gamma=0.5)`` or ``my.rules:composite`` names.

    Raises
    ------
    UsageError
        If it names none, or gives a preset arguments that it does not take.
    """
    text = text.strip()
    if ":" in text and "(" not in text:
        return Method(text, lambda _: _own(text))
    name, args, kwargs = _parsed(text)
    preset = PRESETS.get(name)
    if preset is None:
        close = difflib.get_close_matches(name, PRESETS, 3, 0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(
            f"there is no composite {name!r}.{hint} There are {', '.join(PRESETS)}; lrphooks composites describes "
            "them. One of your own is named as MODULE:COMPOSITE."
        )
    signature = inspect.signature(preset)
    problem = next((f"{key} can only be given in Python" for key in _FOR_PYTHON if key in kwargs), None)
    try:
        bound = signature.bind_partial(*args, **kwargs).arguments
    except TypeError as error:
        problem = str(error)
    if problem:
        raise UsageError(f"--composite {text}: {problem}. It is {described(name)}.")
    given = {key: torch.tensor(value) if isinstance(value, list | tuple) else value for key, value in bound.items()}

    def make(model: PictureModel) -> Composite:
        asked = {key: get(model) for key, get in _OF_MODEL.items() if key in signature.parameters and key not in given}
        try:
            return preset(**asked, **given)
        except (TypeError, ValueError) as error:
            raise UsageError(f"--composite {text}: {error}") from error

    return Method(text, make)


def _parsed(text: str) -> tuple[str, list[Any], dict[str, Any]]:
    """Return the name and the arguments of a call; the arguments are literals, nothing is evaluated."""
    wrong = f"--composite {text!r} is not of the form NAME or NAME(argument=number, ...)"
    example = "An example is 'EpsilonGammaBox(gamma=0.5)', with quotes around it for the shell."
    try:
        node = ast.parse(text, mode="eval").body
        if isinstance(node, ast.Name):
            return node.id, [], {}
        call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
        # ** has no name, and no meaning here.
        kwargs = {str(key.arg): ast.literal_eval(key.value) for key in call.keywords}
        args = [ast.literal_eval(value) for value in call.args]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError) as error:
        raise UsageError(f"{wrong}: {error}. {example}") from error
    if not isinstance(call.func, ast.Name):
        raise UsageError(f"{wrong}. {example}")
    return call.func.id, args, kwargs


def _own(text: str) -> Composite:
    try:
        made = named(text, "composite")
        if not isinstance(made, Composite) and callable(made):
            made = called(text, made)
    except UnknownModelError as error:
        raise UsageError(str(error)) from error
    except ModelError as error:
        raise CommandError(str(error)) from error
    if not isinstance(made, Composite):
        raise CommandError(f"{text} is a {type(made).__name__}, neither a lrphooks.Composite nor a function of one.")
    return made


def described(name: str) -> str:
    """Return a preset as it can be called on the command line, with the defaults of its arguments."""
    parameters = inspect.signature(PRESETS[name]).parameters.values()
    shown = [
        f"{p.name}=<the model's>" if p.name in _OF_MODEL else f"{p.name}={p.default!r}"
        for p in parameters
        if p.name not in _FOR_PYTHON
    ]
    return f"{name}({', '.join(shown)})" if shown else name


def documented(name: str) -> tuple[str, str]:
    """Return what a preset does, in a sentence or two, and the paper that it is from."""
    text = inspect.getdoc(PRESETS[name]) or ""
    first, _, rest = text.partition("\n\n")
    _, _, paper = rest.partition("References\n----------\n")
    about = re.sub(r":(?:func|class):`\.?(\w+)`", r"\1", " ".join(first.split())).replace("``", "")
    return about, " ".join(paper.split())
