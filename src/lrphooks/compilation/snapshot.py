"""What a graph took for granted of the model it was traced from, to see whether it still holds."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from lrphooks.torch_private import REGISTRIES

_PLAIN = (bool, int, float, str, type(None))
_ABSENT = object()


@final
class Snapshot:
    """The modules, tensors, hooks, modes and plain attributes of a model, and what its tensors are like.

    The values of its tensors are no part of it: a graph holds the tensors themselves.
    """

    __slots__ = ("_attributes", "_registries", "_tensors")

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        self._registries = [(vars(m)[n], dict(vars(m)[n])) for m in modules for n in REGISTRIES]
        self._attributes = [(vars(m), _plain(vars(m))) for m in modules]
        self._tensors = [(t, _facts(t)) for t in (*model.parameters(), *model.buffers())]

    def holds(self) -> bool:
        """Whether the model is as it was."""
        return (
            all(len(now) == len(then) and _same(now, then) for now, then in self._registries)
            and all(_same(now, then) for now, then in self._attributes)
            and all(_facts(tensor) == facts for tensor, facts in self._tensors)
        )


def _same(now: dict[str, Any], then: dict[str, Any]) -> bool:
    for name, value in then.items():
        found = now.get(name, _ABSENT)
        if found is not value and not (type(value) in _PLAIN and type(found) is type(value) and found == value):
            return False
    return True


def _plain(attributes: dict[str, Any]) -> dict[str, Any]:
    # Tuples and tensors count by identity.
    return {k: v for k, v in attributes.items() if isinstance(v, (*_PLAIN, tuple, Tensor))}


def _facts(tensor: Tensor) -> tuple[torch.dtype, torch.device, torch.Size, tuple[int, ...], bool]:
    return tensor.dtype, tensor.device, tensor.shape, tensor.stride(), tensor.requires_grad
