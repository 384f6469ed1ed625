"""Functions of lists of tensors, those of torch.foreach: the function of a tensor at each place of the lists."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine.call import Call

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

PREFIX = "_foreach_"
#: The larger or smaller of two under another name, which is for numbers too and writes in place.
_BOUNDS = {"maximum": "clamp_min", "minimum": "clamp_max"}


def for_each(run: Run, call: Call) -> Any:
    """Run the function of a tensor place by place with the mode on."""
    name, in_place = call.operation.name.removeprefix(PREFIX), call.operation.in_place
    args, options = call.args, dict(call.kwargs)
    if name in ("addcmul", "addcdiv"):
        # The functions of a tensor take the factor by name alone; here it may be one for each place, as a tensor too.
        value = options.pop("scalars", args[3] if len(args) > 3 else options.get("value", 1))
        args, options["value"] = args[:3], value.tolist() if isinstance(value, Tensor) else value
    places = range(next(len(a) for a in (*args, *options.values()) if _is_list(a)))
    with run.mode():
        results = [
            _function(name, in_place, given := [_at(a, i) for a in args])(
                *given, **{k: _at(v, i) for k, v in options.items()}
            )
            for i in places
        ]
    return call.args[0] if in_place else tuple(results)


def _function(name: str, in_place: bool, given: list[Any]) -> Callable[..., Any]:
    home: Any = Tensor if in_place else torch
    if name == "norm":
        home, name = torch.linalg, "vector_norm"
    elif name in _BOUNDS and (in_place or not all(isinstance(a, Tensor) for a in given)):
        name = _BOUNDS[name]
    elif name in ("copy", "zero") and not in_place:
        home = torch.ops.aten
    found: Callable[..., Any] = getattr(home, f"{name}_" if in_place else name)
    return found


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _at(value: Any, place: int) -> Any:
    return value[place] if _is_list(value) else value
