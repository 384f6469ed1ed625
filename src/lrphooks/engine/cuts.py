"""Where relevance ends inside of a model without a word: under ``torch.no_grad``, and in kernels without a derivative.

The values go on without a graph. They are followed until one meets a value that carries relevance, or is the model's
output: then relevance is missing, and that is said. ``detach`` says that it is meant, and what counts as a constant
anyway, a shape or a type are no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor

from lrphooks.engine import containers
from lrphooks.engine.call import Call, tensors_in
from lrphooks.engine.conventions import CONVENTIONS
from lrphooks.engine.errors import LRPError
from lrphooks.engine.handlers.products import denominator_of
from lrphooks.engine.reporting import Place
from lrphooks.engine.reports import Cut, Unmatched, nodes_behind
from lrphooks.engine.unmatched import NO_DERIVATIVE, way_without_derivative
from lrphooks.operations.names import SHAPED_BY_ANOTHER
from lrphooks.rules.operation import Constant
from lrphooks.torch_private import current_backward_pass

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


def without_gradients(run: Run, call: Call, out: Any) -> None:
    """Follow the results of an operation that ran with gradients disabled."""
    if current_backward_pass() != -1:
        # What a checkpoint runs again was told of before.
        return
    operands = _operands(run, call)
    carrying = next((t for t in operands if run.carries(t)), None)
    cut = _of(run, operands)
    if carrying is not None and cut is None:
        how = "torch.inference_mode()" if torch.is_inference_mode_enabled() else "torch.no_grad()"
        message = (
            f"it runs under {how} on values that depend on the explained input, and its result is used after that, "
            "so no relevance comes back through it. Enable gradients there; if it is meant, x.detach() says so"
        )
        cut = _cut(run, call, message, carrying, _warn)
        cut.how = how
    if cut is not None:
        # What comes out as it went in, as from cpu() on the CPU, has its graph.
        _hold(run, [t for t in _results(call, out) if not run.carries(t)], cut)


def without_derivative(run: Run, call: Call, out: Tensor, *, ruled: bool = False) -> None:
    """Follow the result of an operation that has no graph though its operands carry relevance.

    Raises
    ------
    LRPError
        If a rule is to serve the operation.
    """
    if current_backward_pass() != -1:
        return
    if not any(t.requires_grad and not t.is_leaf for t in tensors_in((call.args, call.kwargs))):
        return
    carrying = next((t for t in _operands(run, call) if run.carries(t)), None)
    if carrying is None:
        return
    ruled = ruled or run.plan.operation_rule(call.operation, run.frames) is not None
    policy = "error" if ruled else run.plan.composite.unmatched
    passes = run.passes

    def tell(text: str, place: Place | None) -> None:
        if policy != "gradient":
            Unmatched(text, policy, passes, place).tell()

    cut = _cut(run, call, f"{NO_DERIVATIVE}. {way_without_derivative(call.operation)}", carrying, tell)
    if ruled:
        cut.tell()
    _hold(run, (out,), cut)


def use(run: Run, call: Call, out: Any) -> None:
    """Tell of what an operation with gradients meets beside values that carry relevance; follow the rest."""
    operands = _operands(run, call)
    cut = _of(run, operands)
    if cut is None:
        return
    if not any(run.carries(t) for t in operands):
        _hold(run, _results(call, out), cut)
    elif not cut.told:
        cut.told = True
        if run.observer is not None and cut.how:
            run.observer.taken_out(f"{cut.how} in {cut.where}")
        cut.tell()


def end(run: Run, output: Any) -> None:
    """Raise an error if an explained input, or all of them, reach the model's output by no path that is left."""
    made, outputs, leads = list(run.cuts.made.values()), list(containers.tensors(output)), run.provenance.reaches
    if not made:
        return
    whole = None if any(run.provenance.leads(t) for t in outputs) else _of(run, outputs)
    run.cuts.clear()
    if whole is not None:
        raise LRPError(
            "The output of the model does not depend on the input through any differentiable path, so there is no "
            f"relevance: {whole.message}"
        )
    reached = set().union(*(nodes_behind(t.grad_fn, leads) for t in outputs))
    for cut in made:
        for node in nodes_behind(cut.node, leads) if cut.told else ():
            if type(node).__name__ == "InputNodeBackward" and node not in reached:
                raise LRPError(
                    f"An explained input of shape {tuple(node.saved_tensors[0].shape)} reaches the output of the "
                    f"model by no path, so it would have no relevance at all. {cut.message} Or leave that input "
                    "out of what is explained: wrap the model in a module that holds it."
                )


def reason(run: Run, tensor: Tensor) -> str:
    """Return what is to be said of the operation that cut a tensor off, empty if none did."""
    cut = _of(run, (tensor,))
    return "" if cut is None else cut.message


def _cut(
    run: Run,
    call: Call,
    message: str,
    carrying: Tensor,
    tell: Callable[[str, Place | None], None],
) -> Cut:
    """Return what is known of such an operation in the module that runs, made anew for the first."""
    name, where = call.operation.name, run.name_of_running()
    if (name, where) not in run.cuts.made:
        place, shape = Place.of_running(), tuple(carrying.shape)
        here = f"{where} ({place})" if place else where
        text = f"operation {name} in {here} on shape {shape}: {message}."
        run.cuts.made[name, where] = Cut(text, lambda: tell(text, place), here, carrying.grad_fn)
    return run.cuts.made[name, where]


def _of(run: Run, tensors: Iterable[Tensor]) -> Cut | None:
    for tensor in tensors:
        held = run.cuts.held.get(id(tensor))
        # What an autograd function computes runs without gradients too, but its results get its node.
        if held is not None and held[0]() is tensor and held[1] is tensor.grad_fn:
            return held[2]
    return None


def _hold(run: Run, tensors: Iterable[Tensor], cut: Cut) -> None:
    for tensor in tensors:
        if has_values(tensor):
            run.cuts.held[id(tensor)] = ref(tensor), tensor.grad_fn, cut


def has_values(tensor: Tensor) -> bool:
    """Whether a tensor is of numbers that could carry relevance."""
    return tensor.is_floating_point() or tensor.is_complex() or tensor.is_quantized


def _warn(text: str, place: Place | None) -> None:
    if place is not None:
        place.warn(text, UserWarning)


def _results(call: Call, out: Any) -> list[Tensor]:
    return tensors_in((call.args[0] if out is None and call.args else out,))


def _operands(run: Run, call: Call) -> list[Tensor]:
    """Return the operands through which an operation would hand on relevance."""
    operation = call.operation
    rule = run.plan.operation_rule(operation, run.frames) or (
        CONVENTIONS.get(operation.kind) if run.times_input else None
    )
    if isinstance(rule, Constant) or operation.name.endswith("_like") or call.kwargs.get("rounding_mode") is not None:
        return []
    data = call.args[:1] if operation.name in SHAPED_BY_ANOTHER else (call.args, call.kwargs)
    found = [t for t in tensors_in(data) if has_values(t)]
    if operation.kind == "division" and run.times_input:
        denominator = call.argument(*denominator_of(call))
        found = [t for t in found if t is not denominator]
    return found
