"""How to explain, from the command line: presets and baselines by name, with arguments, or a composite of one's own."""

from __future__ import annotations

import ast
import difflib
import inspect
import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass
from typing import Any, TypeAlias, final

import torch

from lrphooks import Composite, baselines, composites
from lrphooks.baselines import Baseline
from lrphooks.cli.command import CommandError, UsageError
from lrphooks.models import ModelError, PictureModel, UnknownModelError
from lrphooks.models.own import called, named

#: What models say of themselves, for the presets that ask for it.
_OF_MODEL: dict[str, Callable[[PictureModel], Any]] = {
    "low": lambda model: model.low,
    "high": lambda model: model.high,
    "model": lambda model: model.network,
}
#: Arguments that only Python can give.
_FOR_PYTHON = ("layers", "model")

#: What can explain a model.
Explaining: TypeAlias = "Composite | Baseline"

PRESETS: dict[str, Callable[..., Composite]] = {
    name: preset
    for name, preset in vars(composites).items()
    if inspect.isfunction(preset) and preset.__module__ == composites.__name__ and not name.startswith("_")
}
BASELINES: dict[str, Callable[..., Baseline]] = {
    name: kind
    for name in baselines.__all__
    if issubclass(kind := getattr(baselines, name), Baseline) and kind is not Baseline
}
METHODS: dict[str, Callable[..., Explaining]] = {**PRESETS, **BASELINES}


@final
@dataclass(frozen=True)
class Method:
    """A way to explain, as the user wrote it, and what it is for a model."""

    text: str
    make: Callable[[PictureModel], Explaining]


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
    try:
        node = ast.parse(text, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise _no_method(text, f": {error}") from error
    return _of_node(node, text)


def _of_node(node: ast.expr, text: str) -> Method:
    """Return the method of a name or of a call; nothing is evaluated but literals and the methods among arguments."""
    call = node if isinstance(node, ast.Call) else ast.Call(node, [], [])
    if not isinstance(call.func, ast.Name):
        raise _no_method(text, "")
    name = call.func.id
    if name not in METHODS:
        close = difflib.get_close_matches(name, METHODS, 3, 0.5)
        hint = f" Did you mean {' or '.join(close)}?" if close else ""
        raise UsageError(
            f"there is no composite {name!r}.{hint} There are {', '.join(METHODS)}; lrphooks composites describes "
            "them. One of your own is named as MODULE:COMPOSITE."
        )
    signature = inspect.signature(METHODS[name])
    # ** has no name, and no meaning here.
    keywords = {str(each.arg): _argument(each.value, text) for each in call.keywords}
    problem = next((f"{key} can only be given in Python" for key in _FOR_PYTHON if key in keywords), None)
    try:
        given = signature.bind_partial(*(_argument(each, text) for each in call.args), **keywords).arguments
    except TypeError as error:
        problem = str(error)
    if problem:
        raise UsageError(f"--composite {text}: {problem}. It is {described(name)}.")

    def make(model: PictureModel) -> Explaining:
        values = {key: get(model) for key, get in _OF_MODEL.items() if key in signature.parameters}
        for key, value in given.items():
            values[key] = value.make(model) if isinstance(value, Method) else value
            if key in _OF_MODEL and isinstance(value, list | tuple):
                # Bounds may differ between channels.
                values[key] = torch.tensor(value)
        try:
            return METHODS[name](**values)
        except (TypeError, ValueError) as error:
            raise UsageError(f"--composite {text}: {error}") from error

    return Method(text, make)


def _argument(node: ast.expr, text: str) -> Any:
    if isinstance(node, ast.Call) or (isinstance(node, ast.Name) and node.id in METHODS):
        return _of_node(node, ast.unparse(node))
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, MemoryError, RecursionError) as error:
        raise _no_method(text, f": {ast.unparse(node)} is neither a number nor a text") from error


def _no_method(text: str, reason: str) -> UsageError:
    return UsageError(
        f"--composite {text!r} is not of the form NAME or NAME(argument=number, ...){reason}. An example is "
        "'EpsilonGammaBox(gamma=0.5)', with quotes around it for the shell."
    )


def _own(text: str) -> Explaining:
    try:
        made = named(text, "composite")
        if not isinstance(made, Composite | Baseline) and callable(made):
            made = called(text, made)
    except UnknownModelError as error:
        raise UsageError(str(error)) from error
    except ModelError as error:
        raise CommandError(str(error)) from error
    if not isinstance(made, Composite | Baseline):
        raise CommandError(
            f"{text} is a {type(made).__name__}, neither a lrphooks.Composite (or a Baseline) nor a function of one."
        )
    return made


def conserves(made: Explaining) -> bool:
    """Whether what a method gives is relevance of LRP, so that the rest of f(x) was absorbed."""
    return isinstance(made, Composite) and made.attribution == "relevance"


def described(name: str) -> str:
    """Return a method as it can be called on the command line, with the defaults of its arguments."""
    parameters = inspect.signature(METHODS[name]).parameters.values()
    shown = [_parameter(name, each) for each in parameters if each.name not in _FOR_PYTHON]
    return f"{name}({', '.join(shown)})" if shown else name


def _parameter(name: str, parameter: inspect.Parameter) -> str:
    if parameter.name in _OF_MODEL:
        return f"{parameter.name}=<the model's>"
    if parameter.default is parameter.empty:
        return parameter.name
    fields = getattr(METHODS[name], "__dataclass_fields__", {})
    factory = getattr(fields.get(parameter.name), "default_factory", MISSING)
    return f"{parameter.name}={(parameter.default if factory is MISSING else factory())!r}"


def documented(name: str) -> tuple[str, str]:
    """Return what a method does, in a sentence or two, and the paper that it is from."""
    text = inspect.getdoc(METHODS[name]) or ""
    first, _, rest = text.partition("\n\n")
    _, _, papers = rest.partition("References\n----------\n")
    about = re.sub(r":(?:func|class):`\.?(\w+)`", r"\1", " ".join(first.split())).replace("``", "")
    return about, " ".join(papers.partition("\n\n")[0].split())
