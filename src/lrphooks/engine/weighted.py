"""Linear layers that a model writes out: products of an activation and a parameter, and sums of activations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import facts
from lrphooks.engine.call import Call, broadcast_shape, tensors_in
from lrphooks.engine.epsilon_node import EpsilonCall
from lrphooks.engine.facts import Facts
from lrphooks.engine.layer_call import LayerCall, saving_hooks
from lrphooks.engine.nodes import TwinNode, unaliased
from lrphooks.engine.serving import OPERATIONS
from lrphooks.engine.settling import settled
from lrphooks.layers.linear_map import Dense, General, LinearMap, Summation, along

if TYPE_CHECKING:
    from lrphooks.engine.run import Run


@dataclass(frozen=True)
class WeightedProduct:
    """A linear map, its input, weight and bias, and the call as a function of the three."""

    map: LinearMap
    tensors: tuple[Tensor, Tensor, Tensor | None]
    function: Callable[..., Tensor]


def weighted_product(run: Run, call: Call) -> WeightedProduct | None:
    """Return a product with one parameter as a linear layer, or None where it is something else."""
    name = call.operation.name
    if name not in OPERATIONS or call.writes_in_place:
        return None
    first = 1 if call.operation.kind == "added product" else 0
    operands = tensors_in((call.args[first:], {k: v for k, v in call.kwargs.items() if k not in ("input", "self")}))
    bias: Any = None
    if name == "bilinear":
        bias = call.argument(3, "bias")
        operands = [t for t in operands if t is not bias]
    elif first:
        bias = call.argument(0, "input", call.kwargs.get("self"))
        if not _is_bias(run, call, bias):
            return None
    operands = [t for t in operands if t.is_floating_point() or t.is_complex()]
    is_weight = run.made_of_parameters if name in _FROM_THE_RIGHT else run.holds
    weights = [t for t in operands if not run.carries(t) and is_weight(t)]
    a = call.dependent[0]
    if len(weights) != 1 or sum(t is a for t in operands) != 1 or (isinstance(bias, Tensor) and run.carries(bias)):
        return None
    (weight,) = weights
    if not call.operation.reversed and len(operands) == 2 and operands[0] is a and name in _FROM_THE_RIGHT:
        dense = _dense(call, a, weight, bias)
        if dense is not None:
            return dense
    function = call.over((a, weight, bias))
    if first or bias is not None:
        # Of the map itself, without what is added.
        nothing = bias.new_zeros(()) if first else None
        linear_map = General(lambda a, weight: function(a, weight, nothing))
    else:
        linear_map = replace(_channels(call, a, weight), function=function)
    return WeightedProduct(linear_map, (a, weight, bias), function)


_FROM_THE_RIGHT = ("matmul", "mm", "bmm", "addmm")


def _is_bias(run: Run, call: Call, summand: Any) -> bool:
    """Whether what a call adds to a product has a value for each output, in the last dimension of the result."""
    plain = call.kwargs.get("beta", 1) == 1 and call.kwargs.get("alpha", 1) == 1
    return plain and isinstance(summand, Tensor) and summand.dim() == 1 and not run.carries(summand)


def _dense(call: Call, a: Tensor, weight: Tensor, bias: Tensor | None) -> WeightedProduct | None:
    """Return ``a @ weight`` with a matrix, or one that is repeated for the whole batch, as a dense layer."""
    multiply, options, repeated = call.function, call.kwargs, call.operation.name == "bmm"
    if call.kwargs.keys() & {"input", "self", "mat1", "mat2", "other", "tensor2", "vec2"}:
        return None
    if repeated and (weight.shape[0] == 1 or weight.stride(0) == 0):
        # One matrix for the whole batch, as programs that torch.export decomposed write a layer.
        weight = weight[0]
    if weight.dim() != 2:
        return None

    def function(a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        matrix = weight.t().expand(a.shape[0], -1, -1) if repeated else weight.t()
        operands = (a, matrix) if bias is None else (bias, a, matrix)
        out: Tensor = multiply(*operands, **options)
        return out

    return WeightedProduct(Dense(), (a, weight.t(), bias), function)


def _channels(call: Call, a: Tensor, weight: Tensor) -> General:
    """Return a general map that knows where its output channels are, if that can be told."""
    name, nowhere = call.operation.name, General(call.function)
    if name == "_grouped_mm":
        return replace(nowhere, merges=True)
    if name == "einsum" and len(call.args) == 3 and isinstance(call.args[0], str) and "." not in call.args[0]:
        inputs, arrow, result = call.args[0].replace(" ", "").partition("->")
        letters = inputs.split(",")
        of_a, of_weight = letters if call.args[1] is a else reversed(letters)
        channels = [letter for letter in result if letter in of_weight and letter not in of_a]
        if arrow and len(channels) == 1 and len(set(of_weight)) == len(of_weight):
            (channel,) = channels
            places = result.index(channel) - len(result), of_weight.index(channel) - len(of_weight)
            return General(call.function, *places, merges=True)
    if weight.dim() == 2 and (found := _of_matrix(call, a, weight)) is not None:
        return General(call.function, *found, merges=True)
    matrices = name in ("matmul", "mm", "bmm") and a.dim() > 1 and weight.dim() > 1
    if matrices and (call.args[0] is weight) != call.operation.reversed:
        return General(call.function, -2, -2, merges=True)
    return nowhere


def _of_matrix(call: Call, a: Tensor, weight: Tensor) -> tuple[int, int] | None:
    """Return where the output channels are in the result and in the matrix of a product that is no matmul."""
    name, first = call.operation.name, bool(call.args) and call.args[0] is weight
    if name == "mv" or (name == "matmul" and a.dim() == 1 and first != call.operation.reversed):
        return -1, -2
    if name == "inner":
        return (-a.dim(), -2) if first else (-1, -2)
    dims = call.argument(2, "dims", 2)
    if name == "tensordot" and isinstance(dims, list | tuple) and not first:
        summed = [dim if isinstance(dim, int) else tuple(dim) for dim in dims]
        if isinstance(summed[1], tuple) and len(summed[1]) == 1:
            return -1, -1 - (summed[1][0] + 1) % 2 if summed[1][0] >= 0 else -3 - summed[1][0]
    return None


def with_summand(run: Run, call: Call) -> Tensor | None:
    """Run a product with a parameter and a summand that is no bias as the two operations that it is, or return None."""
    name = call.operation.name
    if name not in _APART or call.writes_in_place or len(call.args) != 3:
        return None
    summand, *factors = call.args
    carriers = [run.carries(t) for t in factors]
    if sum(carriers) != 1 or not run.holds(factors[carriers.index(False)]):
        return None
    with torch.no_grad():
        value = call.invoke()
    with run.mode():
        beta, alpha = call.kwargs.get("beta", 1), call.kwargs.get("alpha", 1)
        product = _APART[name](*factors)
        product, summand = (t if c == 1 else t * c for t, c in ((product, alpha), (summand, beta)))
        # In this order, so that a bias is seen behind the product.
        twin = product + summand
    out: Tensor = TwinNode.apply((unaliased(value),), twin)
    known = facts.read(twin, run)
    if known is not None:
        facts.write(out, run, maker=known.maker, degree=known.degree)
    return out


_APART: dict[str, Callable[..., Tensor]] = {
    "addmm": torch.mm,
    "addmv": torch.mv,
    "baddbmm": torch.bmm,
    "addbmm": lambda first, second: torch.bmm(first, second).sum(0),
}


def summed_product(run: Run, call: Call, known: Sequence[Facts | None]) -> WeightedProduct | None:
    """Return a sum over a product with a parameter, element by element, as the linear layer that both are."""
    before = known[0] if len(known) == 1 else None
    if call.operation.name != "sum" or before is None or before.weighted is None or call.kwargs.get("dtype"):
        return None
    multiply, a, weight = before.weighted
    (source,) = call.dependent
    dim = call.argument(1, "dim", call.kwargs.get("axis"))
    dims = range(source.dim()) if dim is None else (dim,) if isinstance(dim, int) else dim
    # A dimension that the weight lacks is summed with one weight for all.
    sizes = (1,) * (source.dim() - weight.dim()) + tuple(weight.shape)
    if all(sizes[d] == 1 for d in dims):
        return None
    add = call.over([source])

    def function(a: Tensor, weight: Tensor, _: None = None) -> Tensor:
        out: Tensor = add(multiply(a, weight))
        return out

    return WeightedProduct(General(function), (a, weight, None), function)


def with_bias(run: Run, call: Call, known: Facts | None) -> Tensor | None:
    """Run the sum of a layer's output and a bias as the linear layer that both are, or return None."""
    if known is None or not known.bias_follows or known.layer is None or len(call.args) != 2 or call.kwargs:
        return None
    (z,), layer = call.dependent, known.layer
    first, bias = call.args
    bias = first if bias is z else bias
    if isinstance(bias, Tensor):
        # Of what is repeated, once.
        for dim, stride in enumerate(bias.stride()):
            bias = bias.narrow(dim, 0, 1) if stride == 0 and bias.shape[dim] > 1 else bias
    if layer.hooks != saving_hooks() or not isinstance(bias, Tensor) or not _is_of_channels(bias, z, layer.map):
        return None
    if z.dtype != bias.dtype or not run.made_of_parameters(bias) or (call.writes_in_place and call.args[0] is not z):
        return None
    plain = call.out_of_place() if call.writes_in_place else call
    if isinstance(layer, EpsilonCall):
        if call.writes_in_place:
            layer.overwritten(used=known.ruled)
        # The rule of both together goes back past that of the product alone.
        out = layer.joined(run.shielded(plain.replaced({id(z): layer.before})).invoke())
    elif isinstance(layer, LayerCall) and layer.intact:
        dim = next(d for d in range(-z.dim(), 0) if bias.dim() >= -d and bias.shape[d] == bias.numel())
        linear_map = along(layer.map, z.shape, z.dim() + dim)
        assert linear_map is not None
        out = layer.mapped(linear_map).multiplied().with_bias(bias.reshape(-1)).guard(run.shielded(plain).invoke())
    else:
        return None
    return z.copy_(settled(run, out)) if call.writes_in_place else out


def _is_of_channels(bias: Tensor, z: Tensor, linear_map: LinearMap) -> bool:
    """Whether a tensor that is added to a layer's output has one value for each of its channels."""
    if not 0 < bias.dim() <= z.dim():
        return False
    dims = [d for d in range(-bias.dim(), 0) if bias.shape[d] == bias.numel() and z.shape[d] == bias.numel()]
    return any(along(linear_map, z.shape, z.dim() + d) is not None for d in dims[:1])


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
    shape = broadcast_shape(first.shape, second.shape)
    stacked = torch.stack([summand.expand(shape) for summand in summands])
    # What is infinite masks; its share of nothing would be no number.
    operands = torch.nan_to_num(stacked, nan=math.nan, posinf=0.0, neginf=0.0)
    known = [facts.read(summand, run) for summand in (first, second)]
    facts.write(operands, run, nonnegative=all(note is not None and note.nonnegative for note in known))
    return Summation(), (operands, operands.new_tensor(weights), None)
