"""What goes in and out of an explained model and its modules, as each side is to see it."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lrphooks.engine import containers, cuts, facts, functions, passing, settling
from lrphooks.engine.checks import check_input, nothing_to_explain, refuse_reentrant_checkpoint
from lrphooks.engine.frame import Frame
from lrphooks.engine.interception import notice_checkpoint
from lrphooks.engine.nodes import InputNode, OutputNode
from lrphooks.torch_private import OutOfSight, has_backward_hooks, top_saved_tensors_hooks

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


def enter_inputs(run: Run, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Return the model's arguments with the explained inputs as the model is to see them."""
    found: dict[int, tuple[Tensor, Tensor]] = {}

    def enter(tensor: Tensor) -> Tensor:
        # A tensor that is given twice stays one tensor.
        if id(tensor) not in found:
            found[id(tensor)] = (tensor, _enter_input(run, tensor))
        return found[id(tensor)][1]

    args, kwargs = containers.map_tensors((args, kwargs), enter, "input", keep=lambda t: not t.requires_grad)
    if found:
        return args, kwargs
    raise nothing_to_explain(args, kwargs)


def _enter_input(run: Run, x: Tensor) -> Tensor:
    """Return the explained input as the model is to see it."""
    check_input(x, run.cache.owned)
    inner, link = InputNode.apply(run.passes, x)
    run.provenance.begin(inner)
    facts.write(inner, run, fresh=True, link=lambda: link)
    if run.observer is not None:
        run.observer.explained(run, inner)
    return inner  # type: ignore[no-any-return]


def enter(run: Run, module: nn.Module, args: Any, kwargs: Any) -> Any:
    """Begin a module; return its arguments where they change."""
    if not torch.is_grad_enabled():
        refuse_reentrant_checkpoint()
    elif top_saved_tensors_hooks(True) is not None:
        notice_checkpoint(run)
    frames = run.frames
    hooked = has_backward_hooks(module) or (bool(frames) and frames[-1].hooked)
    frames.append(Frame(module, hooked=hooked))
    if run.looked_at or run.plan.passing:
        with OutOfSight():
            if run.observer is not None and run.watched:
                run.observer.entered(frames[-1], run.plan.path_of(module))
            if id(module) in run.plan.passing:
                args, kwargs, frames[-1].passing = passing.enter(run, module, args, kwargs)
    return args, kwargs


def leave(run: Run, module: nn.Module, output: Any) -> Any:
    """End a module, also one that raised (without output); return its output as others are to see it."""
    if not run.frames or run.frames[-1].module is not module:
        return output
    frame = run.frames.pop()
    if output is None or (frame.passing is None and not run.watched):
        return output
    with OutOfSight():
        if frame.passing is not None:
            output = settling.settled(run, output) if isinstance(output, Tensor) else output
            output = passing.passed(run, frame.passing, output, run.plan.name_of(module))
        if run.watched:
            assert run.observer is not None
            run.observer.left(run, module, output)
    return output


def leave_outputs(run: Run, output: Any) -> Any:
    """Return what the model returned as the user is to see it."""
    cuts.end(run, output)
    output = containers.map_tensors(output, partial(_leave, run), "output", keep=lambda t: not t.requires_grad)
    run.tell(output)
    return output


def _leave(run: Run, output: Tensor) -> Tensor:
    node: Any = output.grad_fn
    unseen = node is not None and not run.provenance.in_sight(node)
    if unseen and facts.read(output, run) is None and run.provenance.leads(output):
        functions.serve(run, output)
    note = facts.read(output, run)
    stopped = note is not None and note.constant == "stopped"
    settled = settling.settled(run, output)
    out: Tensor = OutputNode.apply(run.passes, stopped, settled)
    if run.observer is not None:
        run.observer.output(run, settled, out)
    return out
