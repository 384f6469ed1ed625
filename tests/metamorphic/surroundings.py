"""What changes no value may change no relevance: checkpoints, hooks, modules around a function, memory formats."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .networks import compare
from .table import TABLE


def checkpointed(function):
    """The function, computed again in the backward pass."""
    return partial(checkpoint, function, use_reentrant=False)


class Whole(nn.Module):
    """The function as a module, with its operands as arguments."""

    def __init__(self, function):
        super().__init__()
        self.compute = function

    def forward(self, *args):
        return self.compute(*args)


def hooked(function, register="register_full_backward_hook"):
    """The function as a module with a hook that does nothing."""
    module = Whole(function)
    getattr(module, register)(lambda *_: None)
    return module


def everywhere(model, register="register_full_backward_hook"):
    """A network with a hook that does nothing on every module, itself included."""
    for module in model.modules():
        getattr(module, register)(lambda *_: None)
    return model


def watched(function, hook=lambda _: None):
    """The function with hooks on the gradients of its operands and its result, set before these are consumed."""

    def run(p, *operands):
        for a in operands:
            a.register_hook(hook)
        z = function(p, *operands)
        z.register_hook(hook)
        return z

    return lambda p, *operands: run(p, *operands) if all(a.requires_grad for a in operands) else function(p, *operands)


def strided(x):
    """The values of x at every second place of a larger memory."""
    return torch.stack([x, x], -1)[..., 0]


def transposed(x):
    """The values of x, the last dimension but one lying closest in memory."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2) if x.dim() > 2 else x.T.contiguous().T


def channels_last(x):
    """Images as they lie channels last; anything else as it is."""
    return x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x


#: What is done, as arguments of :func:`compare`.
SURROUNDINGS = {
    "in a checkpoint": {"wrap": checkpointed},
    "in a checkpoint in a checkpoint": {"wrap": lambda f: checkpointed(checkpointed(f))},
    "as a module": {"wrap": Whole},
    "as a module with a backward hook": {"wrap": hooked},
    "as a module with a backward pre-hook": {"wrap": partial(hooked, register="register_full_backward_pre_hook")},
    "as a module with a forward hook": {"wrap": partial(hooked, register="register_forward_hook")},
    "as a module with a backward hook in a checkpoint": {"wrap": lambda f: Around(hooked(f))},
    "backward hooks on all modules": {"around": everywhere},
    "backward pre-hooks on all modules": {"around": partial(everywhere, register="register_full_backward_pre_hook")},
    "hooks on tensors": {"wrap": watched},
    "the whole network in a checkpoint": {"around": lambda model: Around(model)},
    "frozen parameters": {"around": lambda model: model.requires_grad_(False)},
    "an input with strides": {"prepare": strided},
    "an input that is transposed": {"prepare": transposed},
    "an input channels last": {"prepare": channels_last},
}


class Around(nn.Module):
    """A module inside of a checkpoint."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args):
        return checkpoint(self.inner, *args, use_reentrant=False)


#: One rule without a layer that is special, and one with a rule for the first.
COMPOSITES = ("AttnLRP(1e-3)", "EpsilonPlusFlat", "Gamma")


@dataclass(frozen=True)
class Surrounded:
    """A function in a surrounding."""

    function: str
    surrounding: str

    def differences(self):
        """What differs from the function by itself, under each composite."""
        function = TABLE[self.function]
        chosen = [c for c in COMPOSITES if c in function.composites][:2] or ["AttnLRP"]
        found = []
        for composite in chosen:
            different = compare(function, function.canonical, composite, **SURROUNDINGS[self.surrounding])
            found += [f"{composite}, {line}" for line in different]
        return found


def cases():
    """Every function in every surrounding."""
    return [Surrounded(function, surrounding) for surrounding in SURROUNDINGS for function in TABLE]
