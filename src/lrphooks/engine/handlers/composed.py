"""Functions of torch that are made of other operations, and operations that run functions of the model's own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch

from lrphooks.engine.call import Call
from lrphooks.rules.base import Rule

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


def composed(run: Run, call: Call, rule: Rule) -> Any:
    """Run a Python function of torch again with the mode on, so that each operation inside is seen."""
    function = HIGHER_ORDER.get(call.operation.name) or _transparent(call.function)
    with run.mode():
        return function(*call.args, **call.kwargs)


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


# --- operations that run functions, as they run without a compiler ---


def _cond(pred: Any, true_fn: Callable[..., Any], false_fn: Callable[..., Any], operands: Any = ()) -> Any:
    return (true_fn if pred else false_fn)(*operands)


def _while_loop(cond_fn: Callable[..., Any], body_fn: Callable[..., Any], carried: Any, additional: Any = ()) -> Any:
    while cond_fn(*carried, *additional):
        carried = body_fn(*carried, *additional)
    return carried


def _with_gradients(enabled: bool, function: Callable[..., Any], *args: Any) -> Any:  # torch's signature
    with torch.set_grad_enabled(enabled):
        return function(*args)


#: By name. What they run may use values that are not among their operands.
HIGHER_ORDER: dict[str, Callable[..., Any]] = {
    "higher_order.cond": _cond,
    "higher_order.while_loop": _while_loop,
    "higher_order.wrap_with_set_grad_enabled": _with_gradients,
}
