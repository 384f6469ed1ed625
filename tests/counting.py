"""Counting work: products with weights by direction, and the tensors that a graph keeps for its backward pass."""

from dataclasses import dataclass, field

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

#: Products with a weight, forward or backward; convolutions have an operation of their own for the latter.
PRODUCTS = frozenset((aten.convolution, aten.mm, aten.addmm, aten.bmm, aten.baddbmm))

#: Operations that return the memory that they are given, though they do not count as views.
SAME_MEMORY = frozenset((aten.detach, aten._unsafe_view))


class Work(TorchDispatchMode):
    """Counts the products with weights, and all operations that compute, while it is active."""

    def __init__(self):
        super().__init__()
        self.products = 0
        self.operations = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func.overloadpacket
        if packet in PRODUCTS:
            self.products += 1
        elif packet is aten.convolution_backward:
            # One for the input, one for the weight; the bias costs next to nothing.
            self.products += sum(bool(wanted) for wanted in args[-1][:2])
        name = packet.__name__
        self.operations[name] = self.operations.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


@dataclass
class Saved:
    """The storages that a forward pass saves for backward, without those of parameters and buffers."""

    known: set
    sizes: dict = field(default_factory=dict)
    kept: list = field(default_factory=list)

    def pack(self, tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.known:
            self.sizes[storage.data_ptr()] = storage.nbytes()
            self.kept.append(tensor)  # so that no address is used twice
        return tensor

    @staticmethod
    def unpack(tensor):
        return tensor


@dataclass(frozen=True)
class Cost:
    """What one explanation takes: products forward and backward, and saved tensors by number and bytes."""

    forward: int
    backward: int
    saved: int
    bytes: int


def cost(model, x, composite=None, target=0):
    """The cost of relevance under a composite, or of the plain input gradient without one."""
    leaf = x.detach().clone().requires_grad_()
    saved = Saved({t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())})
    forward, backward = Work(), Work()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, saved.unpack), forward:
        if composite is None:
            out = model(leaf)
        else:
            with composite.context(model):
                out = model(leaf)
    with backward:
        out[:, target].sum().backward()
    return Cost(forward.products, backward.products, len(saved.sizes), sum(saved.sizes.values()))


def held(model, x):
    """The bytes that a forward pass leaves allocated."""
    leaf = x.clone().requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as found:
        out = model(leaf)
    assert out.requires_grad
    return sum(e.nbytes() for e in found.profiler.kineto_results.events() if e.name() == "[memory]")


#: What torch 2.13 does not vectorize on a CPU: it takes ten times as long as a product of elements.
MASKS = (aten.where, aten.masked_fill, aten.masked_fill_, aten.heaviside)


def passes(model, x, composite):
    """How often one explanation reads or writes a whole activation other than in products, masks counted ten times."""

    class Passes(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            first = out[0] if isinstance(out, tuple | list) else out
            product = func.overloadpacket in PRODUCTS or func.overloadpacket is aten.convolution_backward
            moves = func.is_view or func.overloadpacket in SAME_MEMORY
            if isinstance(first, torch.Tensor) and first.numel() >= x.numel() and not product and not moves:
                self.count += 10 if func.overloadpacket in MASKS else 1
            return out

    leaf = x.detach().clone().requires_grad_()
    with Passes() as mode, composite.context(model):
        model(leaf)[:, 0].sum().backward()
    return mode.count
