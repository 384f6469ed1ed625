"""Operations as a compiler serves them best: what is recorded in place of what was called."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from lrphooks.torch_private import TorchDispatchMode

aten = torch.ops.aten


@final
class Prepared(TorchDispatchMode):
    """Records other calls of the same values while an explanation is traced.

    Two-dimensional convolutions on the CPU read and write channels last, and so does what lies between them. Inductor
    runs them so in any case, but hands a backward pass its tensors in the layout they were traced in: otherwise every
    activation would be written once more for it. And results are copied into ``out``, which torch.compile refuses
    where it is not contiguous; the compiler makes one of both.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        out = kwargs.get("out")
        if isinstance(out, Tensor):
            found = func.overloadpacket(*args, **{name: value for name, value in kwargs.items() if name != "out"})
            # One of another shape is made to fit.
            return out.copy_(found) if found.shape == out.shape else func(*args, **kwargs)
        if func is aten.convolution.default and args[0].dim() == 4 and args[0].device.type == "cpu":
            args = (args[0].contiguous(memory_format=torch.channels_last), *args[1:])
        return func(*args, **kwargs)


def share_laid_out_weights(module: GraphModule, least: int) -> None:
    """Lay each large weight of two-dimensional convolutions on the CPU out channels last, once for all that use it.

    Inductor would do so in the forward convolution, and once more in the backward one.
    """
    graph = module.graph
    copies: dict[str, Node] = {}
    targets = {aten.convolution.default: 1, aten.convolution_backward.default: 2}
    for node in [n for n in graph.nodes if n.target in targets]:
        position = targets[node.target]
        weight = node.args[position]
        value = weight.meta["val"]
        if weight.op != "get_attr" or value.dim() != 4 or value.device.type != "cpu" or value.numel() < least:
            continue
        if value.is_contiguous(memory_format=torch.channels_last):
            continue
        if weight.target not in copies:
            with graph.inserting_after(weight):
                copy = graph.call_function(aten.clone.default, (weight,), {"memory_format": torch.channels_last})
            copy.meta["val"] = value.contiguous(memory_format=torch.channels_last)
            copies[weight.target] = copy
        node.update_arg(position, copies[weight.target])


def take_scales_out_of_weights(module: GraphModule) -> None:
    """Scale gradients in place of the weights that they go back through, where these were scaled by output channel.

    A merged BatchNorm is such a scale. Compilers scale the gradient in passing, but each weight in a pass of its own.
    """
    graph = module.graph
    for node in graph.find_nodes(op="call_function", target=aten.convolution_backward.default):
        gradient, a, weight, *others = node.args
        if others[4] or list(others[7]) != [True, False, False]:
            continue
        plain, scale = _scaled(weight)
        if plain is not None:
            with graph.inserting_before(node):
                shape = [1, -1] + [1] * (weight.meta["val"].dim() - 2)
                aligned = graph.call_function(aten.reshape.default, (scale, shape))
                scaled = graph.call_function(aten.mul.Tensor, (gradient, aligned))
            scaled.meta["val"] = gradient.meta["val"]
            node.args = (scaled, a, plain, *others)


def _scaled(weight: Any) -> tuple[Node, Node] | tuple[None, None]:
    """Return a weight before it was scaled for each output channel, and the scale."""
    if isinstance(weight, Node) and weight.target is aten.mul.Tensor:
        plain, scale = weight.args
        if isinstance(plain, Node) and isinstance(scale, Node):
            size, by = weight.meta["val"].shape, scale.meta["val"].shape
            if plain.meta["val"].shape == size and by == (size[0], *(1,) * (len(size) - 1)):
                return plain, scale
    return None, None
