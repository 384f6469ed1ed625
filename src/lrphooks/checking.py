"""Whether something is a matcher, and in which form a composite keeps it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn
from torch.autograd import Function

from lrphooks.matching import First, Group, Layers, Matcher, Within, describe
from lrphooks.operations import canonical, is_operation


def checked(matcher: Matcher) -> Matcher:
    """Return a matcher with the public form of each torch function, which makes aliases equal.

    Raises
    ------
    TypeError, ValueError
        If it is no matcher; the message says what one may be.
    """
    if isinstance(matcher, First | Within | Layers) or (isinstance(matcher, tuple | list) and matcher):
        return _checked_parts(matcher)
    if isinstance(matcher, str) and not matcher:
        raise ValueError('A name pattern is empty; the model itself has no name. Use "*" for every module.')
    if isinstance(matcher, type) and not issubclass(matcher, nn.Module | Function):
        raise TypeError(f"A layer type must be a torch.nn.Module class, got {matcher!r}.")
    if isinstance(matcher, nn.Module):
        raise TypeError(
            f"A matcher names layers by type or name; got a layer itself, of type {describe(type(matcher))}. Give the "
            "type, or the name that the layer has in the model."
        )
    if is_operation(matcher):
        return canonical(matcher)
    if isinstance(matcher, str | type | Group):
        return matcher
    if not callable(matcher):
        raise TypeError(
            "A matcher is a layer type, a tuple of types, a group such as lrphooks.matching.Convolution, a name "
            "pattern, a torch function, a predicate (name, module) -> bool, Layers(...), Within(...) or First(...); "
            f"got {matcher!r} of type {type(matcher).__name__}."
        )
    _check_predicate(matcher)
    return matcher


def _checked_parts(matcher: Any) -> Matcher:
    if isinstance(matcher, First):
        if isinstance(matcher.matcher, First):
            raise TypeError("First(First(...)) says the same twice; write First(...) once.")
        return First(checked(matcher.matcher))
    if isinstance(matcher, Within):
        return _checked_within(matcher)
    if isinstance(matcher, Layers):
        return _checked_layers(matcher)
    if any(isinstance(part, First) for part in matcher):
        raise TypeError("First(...) cannot stand inside of a tuple; write First((...)) around all of it.")
    return tuple(checked(part) for part in matcher)


def _checked_within(matcher: Within) -> Within:
    where, what = checked(matcher.where), checked(matcher.matcher)
    for part in where if isinstance(where, tuple) else (where,):
        if not _tells_of_modules(part):
            raise TypeError(
                f"Within(where, matcher): where must tell of modules, by type, group, name pattern or predicate; got "
                f"{describe(part)}."
            )
    for part in what if isinstance(what, tuple) else (what,):
        if not (isinstance(part, type | Group) or is_operation(part)):
            hint = " Write First(Within(...))." if isinstance(part, First) else ""
            raise TypeError(
                f"Within(where, matcher): matcher must be a torch function, a group or a layer type; got "
                f"{describe(part)}.{hint}"
            )
    return Within(where, what)


def _checked_layers(layers: Layers) -> Layers:
    matcher = checked(layers.matcher)
    for part in matcher if isinstance(matcher, tuple) else (matcher,):
        if not _tells_of_modules(part):
            hint = " Write First(Layers(...))." if isinstance(part, First) else ""
            raise TypeError(
                "Layers(matcher, start, stop): matcher must tell of modules, by type, group, name pattern or "
                f"predicate; got {describe(part)}.{hint}"
            )
    for name in ("start", "stop"):
        number = getattr(layers, name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int)):
            raise TypeError(f"Layers(matcher, start, stop): {name} must be an integer or None, got {number!r}.")
    return Layers(matcher, layers.start, layers.stop)


def _tells_of_modules(part: Any) -> bool:
    if isinstance(part, Group):
        return bool(part.types)
    return not isinstance(part, First | Within | Layers) and not is_operation(part)


def _check_predicate(predicate: Callable[..., Any]) -> None:
    if inspect.isbuiltin(predicate) or (getattr(predicate, "__module__", None) or "").partition(".")[0] == "torch":
        raise TypeError(
            f"{predicate!r} is neither an operation that a model runs on activations nor a predicate (name, module) -> "
            "bool. Give a function of torch or torch.nn.functional, such as torch.matmul."
        )
    try:
        inspect.signature(predicate).bind("name", nn.Module)
    except ValueError:
        return  # its signature cannot be known
    except TypeError as error:
        raise TypeError(f"A predicate is called with (name, module), but for {predicate!r}: {error}.") from None
