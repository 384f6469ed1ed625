"""Linear layers that a model writes out: products of an activation and a parameter, and sums of activations."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lrphooks.engine import notes
from lrphooks.engine.call import Call
from lrphooks.engine.epsilon_node import EpsilonCall
from lrphooks.engine.layer_call import saving_hooks
from lrphooks.layers.linear_map import Dense, General, LinearMap, Summation
from lrphooks.operations.names import SUM

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

#: The operations that are linear layers where one operand is a parameter.
OPERATIONS = ("matmul", "mm", "bmm", "addmm", "_grouped_mm")
#: The operations that are linear layers, with weights 1 and -1, where both operands are activations.
SUMS = frozenset(SUM.split())


@dataclass(frozen=True)
class WeightedProduct:
    """A linear map, its input, weight and bias, and the call as a function of the three."""

    map: LinearMap
    tensors: tuple[Tensor, Tensor, Tensor | None]
    function: Callable[..., Tensor]


def weighted_product(run: Run, call: Call) -> WeightedProduct | None:
    """Return a product with a parameter as a linear layer, or None where it is something else."""
    if call.operation.name not in OPERATIONS or call.operation.reversed:
        return None
    if call.operation.name == "_grouped_mm":
        return _grouped(run, call)
    bias: Tensor | None = None
    if call.operation.name == "addmm":
        if call.kwargs.get("beta", 1) != 1 or call.kwargs.get("alpha", 1) != 1 or len(call.args) != 3:
            return None
        bias, a, weight = call.args
    elif len(call.args) == 2:
        a, weight = call.args
    else:
        return None
    if not _is_weight(run, a, weight):
        return None
    multiply, options, repeated = call.function, call.kwargs, call.operation.name == "bmm"
    if repeated and (weight.shape[0] == 1 or weight.stride(0) == 0):
        # One matrix for the whole batch, as programs that torch.export decomposed write a layer.
        weight = weight[0]
    if weight.dim() != 2:
        return None
    if isinstance(bias, Tensor) and (run.carries(bias) or bias.dim() != 1):
        return None

    def function(a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        matrix = weight.t().expand(a.shape[0], -1, -1) if repeated else weight.t()
        operands = (a, matrix) if bias is None else (bias, a, matrix)
        out: Tensor = multiply(*operands, **options)
        return out

    return WeightedProduct(Dense(), (a, weight.t(), bias), function)


def with_bias(run: Run, call: Call) -> Tensor | None:
    """Run the sum of a product with a parameter and a bias as the linear layer that both are, or return None."""
    if len(call.args) != 2 or call.kwargs or call.writes_in_place:
        return None
    (z,) = call.dependent
    note = notes.read(z, run)
    if note is None or note.product is None:
        return None
    layer = note.product
    first, bias = call.args
    bias = first if bias is z else bias
    if layer.hooks != saving_hooks() or not isinstance(bias, Tensor):
        return None
    if bias.shape != z.shape[-1:] or z.dtype != bias.dtype or not run.made_of_parameters(bias):
        return None
    if isinstance(layer, EpsilonCall):
        # The rule of both together goes back past that of the product alone.
        output = layer.output if layer.output.shape == z.shape else layer.output.reshape(z.shape)
        return layer.joined(run.shielded(call.replaced({id(z): output})).invoke())
    if not layer.intact:
        return None
    return layer.with_bias(bias, z.shape).guard(run.shielded(call).invoke())


def weighted_sum(run: Run, call: Call) -> tuple[Summation, tuple[Tensor, Tensor, None]] | None:
    """Return the sum of two activations as a linear layer, or None where it is something else."""
    scale = call.argument(2, "alpha", 1)
    scale = scale.item() if isinstance(scale, Tensor) else scale
    first, second = call.argument(0, "input"), call.argument(1, "other")
    if not (run.carries(first) and run.carries(second) and isinstance(scale, int | float)):
        return None
    if first.is_complex() or second.is_complex():
        # Their contributions have no sign; a sum that a matcher of all sums means too has its gradient.
        return None
    sign = -scale if call.operation.name == "sub" else scale
    weights = (sign, 1) if call.operation.reversed else (1, sign)
    summands = [first, second]
    if run.watched:
        assert run.observer is not None
        summands = [run.observer.probe(run, summand) for summand in summands]
    shape = torch.broadcast_shapes(first.shape, second.shape)  # type: ignore[no-untyped-call]
    stacked = torch.stack([summand.expand(shape) for summand in summands])
    # What is infinite masks; its share of nothing would be no number.
    operands = torch.nan_to_num(stacked, nan=math.nan, posinf=0.0, neginf=0.0)
    known = [notes.read(summand, run) for summand in (first, second)]
    notes.write(operands, run, nonnegative=all(note is not None and note.nonnegative for note in known))
    return Summation(), (operands, operands.new_tensor(weights), None)


def _grouped(run: Run, call: Call) -> WeightedProduct | None:
    """The experts of a mixture: each row times the matrix of its own expert."""
    if len(call.args) < 2 or call.kwargs.get("bias") is not None or len(call.args) > 3:
        return None
    a, weight, *rest = call.args
    if not _is_weight(run, a, weight):
        return None

    multiply, options = call.function, call.kwargs

    def function(a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        out: Tensor = multiply(a, weight, *rest, **options)
        return out if bias is None else out + bias

    return WeightedProduct(General(function), (a, weight, None), function)


def _is_weight(run: Run, a: object, weight: object) -> bool:
    return isinstance(weight, Tensor) and run.carries(a) and not run.carries(weight) and run.made_of_parameters(weight)
