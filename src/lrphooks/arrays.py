"""Arrays of numpy as inputs: they become tensors as the model wants them, and their relevance becomes arrays again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from lrphooks.engine import containers

#: What makes an array of the relevance of an array.
Back: TypeAlias = Callable[[Any], Any]


def as_tensors(model: nn.Module, x: Any, kwargs: Mapping[str, Any] | None) -> tuple[Any, Any, Back]:
    """Return inputs with tensors in place of arrays, and what puts arrays in place of relevance.

    Numbers with a fraction get the precision and the device of the model's parameters; their relevance has the type of
    the array. Where no input is an array, nothing is changed.
    """
    kinds: list[np.dtype[Any]] = []
    weight = (
        next((p for p in model.parameters() if p.is_floating_point()), None) if isinstance(model, nn.Module) else None
    )

    def converted(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            kinds.append(value.dtype)
            # A copy: an array may be read-only, reversed or of another byte order.
            tensor = torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("="), order="C"))
            if weight is None:
                return tensor
            return tensor.to(weight) if tensor.is_floating_point() else tensor.to(weight.device)
        if isinstance(value, dict):
            return {key: converted(item) for key, item in value.items()}
        if type(value) in (list, tuple):
            return type(value)(converted(item) for item in value)
        return value

    x, keywords = converted(x), None if kwargs is None else converted(dict(kwargs))
    if not kinds:
        return x, keywords, lambda relevance: relevance
    floats = {kind for kind in kinds if kind.kind == "f"}
    wanted = floats.pop() if len(floats) == 1 else None

    def array(tensor: Tensor) -> Any:
        found = tensor.detach().cpu().numpy()
        return found if wanted is None else found.astype(wanted.newbyteorder("="), copy=False)

    return x, keywords, lambda relevance: containers.map_tensors(relevance, array, "relevance")
