"""Hooks on tensors inside of a model: they get the modified gradient, and what they return counts."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any
from weakref import ref

from torch import Tensor

from lrphooks.engine.nodes import per_input
from lrphooks.torch_private import OutOfSight, hooks_of

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


def asked(tensor: Tensor) -> bool:
    """Whether the model or its user asks for the gradient at the tensor itself; an observer's hooks only watch."""
    if tensor.retains_grad:
        return True
    hooks = hooks_of(tensor)
    return hooks is not None and any(not getattr(hook, "watches", False) for hook in hooks.values())


def never_empty(register: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Register a hook that is not called where no gradient arrives, as at what a rule has gone past already."""
    if "hook" in kwargs:
        return register(*args, hook=_present(kwargs["hook"]))
    return register(args[0], _present(args[1]), *args[2:])


def _present(hook: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(hook, updated=())
    def call(gradient: Tensor | None) -> Any:
        return None if gradient is None else hook(gradient)

    return call


def serve_through(run: Run, z: Tensor, y: Tensor) -> None:
    """Give the hooks of a layer's output z the gradient R / z, where R arrives at the output y of its merged BatchNorm.

    The rule of both together stands behind y, so nothing else comes to z.
    """
    hooks, output, values, result = hooks_of(z) or {}, ref(z), z.detach().clone(), y.detach().clone()

    def call(gradient: Tensor | None) -> Tensor | None:
        if gradient is None or not run.passes.relevance:
            return None
        before = after = per_input(gradient * result, values)
        for hook in list(hooks.values()):
            changed = None if getattr(hook, "watches", False) else hook(after)
            after = after if changed is None else changed
        tensor = output()
        if tensor is not None and tensor.retains_grad:
            tensor.grad = after if tensor.grad is None else tensor.grad + after
        return None if after is before else per_input(after * values, result)

    with OutOfSight():
        y.register_hook(call)  # type: ignore[no-untyped-call]
