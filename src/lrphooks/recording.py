"""Which modules are meant: by name, by pattern, by type, or the module itself."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import nn

from lrphooks import matching
from lrphooks.checking import checked
from lrphooks.engine.errors import LRPError

#: What is made of a module's relevance; None leaves it as it is.
Function: TypeAlias = "Callable[[Any], Any] | None"
#: One or several modules: names, patterns, matchers of :mod:`lrphooks.matching`, or modules themselves.
Modules: TypeAlias = "str | nn.Module | type[nn.Module] | matching.Group | Iterable[Any]"
Record: TypeAlias = "Modules | Mapping[Any, Function]"


def modules_of(model: nn.Module, wanted: Modules, who: str) -> dict[str, nn.Module]:
    """Return the modules that are meant, by name, in the order in which they were asked for.

    Raises
    ------
    LRPError
        If the model has no such module.
    TypeError
        If something else was given than a name, a pattern, a type, a group or a module.
    """
    if isinstance(wanted, Iterable) and not isinstance(wanted, str | nn.Module):
        return {name: module for part in wanted for name, module in modules_of(model, part, who).items()}
    named = dict(model.named_modules(remove_duplicate=False))
    if isinstance(wanted, str) and wanted in named:
        return {wanted: named[wanted]}
    if isinstance(wanted, nn.Module):
        found = {name: module for name, module in model.named_modules() if module is wanted}
    elif isinstance(wanted, str | type | matching.Group):
        matcher = checked(wanted)
        found = {n: m for n, m in model.named_modules() if matching.matches_module(matcher, [(n, m)])}
    else:
        raise TypeError(
            f"{who}: a module is given by its name, a pattern, its type or itself, got {wanted!r} of type "
            f"{type(wanted).__name__}."
        )
    if found:
        return found
    if isinstance(wanted, str):
        close = difflib.get_close_matches(wanted, named) or list(named)[1:7]
        hint = f"Did you mean {' or '.join(map(repr, close))}?" if close else "It has no modules inside."
        raise LRPError(f"{who}: no module of the model is named {wanted!r}. {hint}")
    what = type(wanted).__name__ if isinstance(wanted, nn.Module) else matching.describe(wanted)
    raise LRPError(f"{who}: the model has no module {what} inside; print(model) shows those that it has.")


def functions_of(model: nn.Module, record: Record, who: str) -> dict[str, tuple[nn.Module, Function]]:
    """Return the recorded modules by name, each with the function of its relevance that is wanted, if any.

    Raises
    ------
    LRPError, TypeError
        As :func:`modules_of`; if something else than a function was given.
    """
    if not isinstance(record, Mapping):
        return {name: (module, None) for name, module in modules_of(model, record, who).items()}
    found = {}
    for wanted, function in record.items():
        if function is not None and not callable(function):
            raise TypeError(
                f"{who}: record maps modules to functions of their relevance, or to None for the relevance itself; "
                f"got {function!r} for {wanted!r}."
            )
        found.update({name: (module, function) for name, module in modules_of(model, wanted, who).items()})
    return found
