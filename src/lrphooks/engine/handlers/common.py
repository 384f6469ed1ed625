"""What the handlers share: running an operation as it is, declaring constants, serving in-place forms."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import Tensor

from lrphooks.engine import facts
from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.nodes import ScaleNode
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Constant
from lrphooks.torch_private import base_of, preserve_version

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

#: Gets the call with constants already shielded and the rule that holds for it, runs the operation, and returns its
#: unchanged value with the autograd graph that the rule asks for.
Handler = Callable[["Run", Call, Rule], Any]


def plain(run: Run, call: Call, rule: Rule) -> Any:
    """Run the operation with its own gradient; the value may count as constant by the rule."""
    out = call.invoke()
    if isinstance(rule, Constant):
        stop(run, out)
    return out


def stop(run: Run, out: Any, *, alone: bool = True) -> None:
    """Declare the results of an operation to be constants; ``alone`` if it has no others, which carry relevance."""
    for tensor in tensors_in((out,)):
        if tensor.requires_grad:
            facts.write(tensor, run, constant="stopped")
            if alone:
                # So that what cannot be seen makes a constant of it too.
                run.provenance.end(tensor)


def shield_in_place(run: Run, target: Tensor) -> None:
    """Have a constant that is about to be written to receive nothing in a relevance pass, as others are shielded."""
    base = base_of(target)
    whole = target if base is None else base
    share = float(run.parameters and run.made_of_parameters(whole))
    with preserve_version(whole):
        ScaleNode.apply(run.passes, share, whole, True)


def in_place(run: Run, call: Call, handler: Handler, rule: Rule) -> Tensor:
    """Serve an in-place form by the out-of-place one and a copy, so that every use of the target sees the rule."""
    call = positional(call)
    target: Tensor = call.args[0] if call.args else call.kwargs["input"]
    outside = call.out_of_place()
    # The operation may keep its input, which the copy is about to overwrite.
    saved = target.clone()
    facts.hand_on(target, saved, run)
    outside = outside.replaced({id(target): saved})
    target.copy_(handler(run, outside, rule))
    return target


def positional(call: Call) -> Call:
    """Return an in-place form with its target by position, whatever keyword it came by."""
    if call.args or not call.operation.in_place:
        return call
    key, *_ = (k for k in ("input", "self", "a", "x", "x1") if k in call.kwargs)
    rest = {k: v for k, v in call.kwargs.items() if k != key}
    return Call(call.operation, call.function, (call.kwargs[key],), rest, call.dependent)


def exchanged(call: Call, position: int, name: str, tensor: Tensor) -> Call:
    """Return the call with another tensor in one place; the same tensor in other places stays."""
    args, kwargs = list(call.args), dict(call.kwargs)
    if position < len(args):
        args[position] = tensor
    else:
        kwargs[name] = tensor
    return Call(call.operation, call.function, tuple(args), kwargs, call.dependent)


def learned(call: Call) -> list[Tensor]:
    """Return the constants of a call that have a derivative of their own, such as a learned exponent."""
    source = call.dependent[0]
    return [t for t in tensors_in((call.args, call.kwargs)) if t is not source and t.requires_grad]


def function_of(call: Call) -> Callable[..., Tensor]:
    """Return the call as a function of its one dependent tensor and of its learned constants."""
    return call.over([call.dependent[0], *learned(call)])
