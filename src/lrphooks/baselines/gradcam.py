"""Grad-CAM."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lrphooks.baselines.base import Baseline
from lrphooks.baselines.question import Question
from lrphooks.engine.errors import LRPError
from lrphooks.matching import Convolution
from lrphooks.operations import identify


@final
@dataclass(frozen=True, eq=False, repr=False)
class GradCAM(Baseline):
    """The feature maps of a layer, weighted by their mean gradients, where they speak for the explained output.

    Formula: ``L = relu(sum_k mean(df/dA_k) A_k)`` with the feature maps A_k of the layer, brought to the size of the
    input by linear interpolation, and spread over its channels in equal parts: the sum over channels is L.

    Parameters
    ----------
    layer
        The name of the module whose output A is, (rows, channels, ...) with the spatial dimensions of the input; when
        None, the convolution that is executed last and does not have single values as maps.
    channel
        The dimension of the input that counts channels; -1 for images with channels last.

    Raises
    ------
    LRPError, TypeError, ValueError
        If there is no such layer, its output is no feature map of the input, or f does not depend on it.

    References
    ----------
    Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-Based Localization", ICCV 2017.
    """

    layer: str | None = None
    channel: int = 1

    def __post_init__(self) -> None:
        if self.layer is not None and not isinstance(self.layer, str):
            raise TypeError(f"GradCAM: layer must be the name of a module or None, got {self.layer!r}.")
        if isinstance(self.channel, bool) or not isinstance(self.channel, int):
            raise TypeError(f"GradCAM: channel must be a dimension of the input, got {self.channel!r}.")

    def attributions(self, question: Question) -> list[Tensor]:
        """Return the attribution of each input of a question, with its shape."""
        if len(question.inputs) != 1:
            raise LRPError(
                f"GradCAM: the model has {len(question.inputs)} floating-point inputs, and which one the feature maps "
                "are of cannot be told. Bind the others in a function."
            )
        x = question.inputs[0]
        with torch.enable_grad(), self._watching(question.model) as seen:
            # The maps of a frozen model have a gradient only where its input has one.
            explained = question.explained([x.unsqueeze(0).requires_grad_()]).sum()
            maps = self._maps(seen, x)
            connected = explained.requires_grad and maps.requires_grad
            (gradient,) = torch.autograd.grad(explained, maps, allow_unused=True) if connected else (None,)
        if gradient is None:
            raise question.unconnected("the feature maps")
        with torch.no_grad():
            spatial = tuple(range(2, maps.dim()))
            cam = (gradient.mean(spatial, keepdim=True) * maps).sum(1, keepdim=True).relu()
            size = [n for d, n in enumerate(x.shape) if d not in (0, self.channel % x.dim())]
            cam = F.interpolate(cam, size, mode=("linear", "bilinear", "trilinear")[len(size) - 1], align_corners=False)
            return [cam.movedim(1, self.channel).expand_as(x) / x.shape[self.channel]]

    @contextmanager
    def _watching(self, model: nn.Module) -> Iterator[list[Tensor]]:
        """Collect the outputs that may be the feature maps; the last one counts."""
        seen: list[Tensor] = []
        if self.layer is None:
            with _Convolutions(seen):
                yield seen
            return
        modules = dict(model.named_modules(remove_duplicate=False))
        if not self.layer or self.layer not in modules:
            known = [repr(name) for name in modules if name]
            raise LRPError(
                f"GradCAM: the model has no module {self.layer!r}. Is it misspelt? The modules are "
                f"{', '.join(known[:8])}{', ...' if len(known) > 8 else ''}."
            )

        def keep(module: nn.Module, _: Any, output: Any) -> Any:
            if not isinstance(output, Tensor):
                raise LRPError(
                    f"GradCAM: module {self.layer!r} ({type(module).__name__}) returns a {type(output).__name__}, no "
                    "tensor of feature maps. Name a layer inside of it."
                )
            seen[:] = [output]
            return output.clone()  # so that what follows in place leaves the maps alone

        hook = modules[self.layer].register_forward_hook(keep)
        try:
            yield seen
        finally:
            hook.remove()

    def _maps(self, seen: list[Tensor], x: Tensor) -> Tensor:
        """Return the feature maps, or raise an error that says why there are none."""
        where = "the last convolution" if self.layer is None else f"module {self.layer!r}"
        if not seen:
            why = f"{where} did not run" if self.layer else "no convolution with maps larger than one value ran"
            raise LRPError(f"GradCAM: {why}. Name the layer whose output the feature maps are: GradCAM(layer=...).")
        maps = seen[-1]
        if maps.dim() != x.dim() or not 3 <= maps.dim() <= 5 or len(maps) != len(x):
            raise LRPError(
                f"GradCAM: the output of {where} has shape {tuple(maps.shape)}, which is no (rows, channels, ...) with "
                f"the spatial dimensions of an input of shape {tuple(x.shape)}. Name another layer: GradCAM(layer=...)."
            )
        return maps


@final
class _Convolutions(TorchFunctionMode):
    """Keeps the output of the last convolution whose maps are larger than one value."""

    def __init__(self, seen: list[Tensor]) -> None:
        super().__init__()
        self._seen = seen

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if identify(function) not in Convolution.operations or math.prod(output.shape[2:]) < 2:
            return output
        self._seen[:] = [output]
        return output.clone()  # so that what follows in place leaves the maps alone
