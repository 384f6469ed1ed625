"""Functions of torch that are made of other operations."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

from lrphooks.engine.call import Call
from lrphooks.rules.base import Rule

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


def composed(run: Run, call: Call, rule: Rule) -> Any:
    """Run a Python function of torch again with the mode on, so that each operation inside is seen."""
    with run.mode():
        return _transparent(call.function)(*call.args, **call.kwargs)


@cache
def _transparent(function: FunctionType) -> Callable[..., Any]:
    """Return the function without its own dispatch to the mode, which would hand it back as one piece for ever."""

    def never(*_: Any) -> bool:
        return False

    checks = ("has_torch_function", "has_torch_function_unary", "has_torch_function_variadic")
    scope = {**function.__globals__, **dict.fromkeys(checks, never)}
    twin = FunctionType(function.__code__, scope, function.__name__, function.__defaults__, function.__closure__)
    twin.__kwdefaults__ = function.__kwdefaults__
    return twin
