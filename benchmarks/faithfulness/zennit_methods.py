"""zennit's presets as methods, with its canonizers for BatchNorm and residual sums."""

from __future__ import annotations

from typing import Any

import benchmarks.zoo.subjects.shim  # noqa: F401  (before zennit, which imports torchvision)

# isort: split
import torch
import zennit.composites
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import InvertedResidual, MobileNetV2
from zennit.canonizers import AttributeCanonizer, CompositeCanonizer, SequentialMergeBatchNorm
from zennit.layer import Sum
from zennit.torchvision import ResNetCanonizer

from benchmarks.faithfulness.networks import Network
from lrphooks.evaluation import Method


class MobileNetCanonizer(CompositeCanonizer):
    """Lets zennit see the residual sums and the pooling of torchvision's MobileNetV2, for which it has no canonizer.

    Without the pooling, which is a function there, every position receives the same relevance.
    """

    def __init__(self) -> None:
        super().__init__((SequentialMergeBatchNorm(), AttributeCanonizer(_with_sum), AttributeCanonizer(_with_pool)))


def _with_sum(_: str, module: nn.Module) -> dict[str, Any] | None:
    if not isinstance(module, InvertedResidual):
        return None
    return {"forward": _forward.__get__(module), "canonizer_sum": Sum()}


def _forward(self: InvertedResidual, x: Tensor) -> Tensor:
    result: Tensor = self.conv(x)
    return self.canonizer_sum(torch.stack([x, result], dim=-1)) if self.use_res_connect else result  # type: ignore[operator, no-any-return]


def _with_pool(_: str, module: nn.Module) -> dict[str, Any] | None:
    if not isinstance(module, MobileNetV2):
        return None
    return {"forward": _classify.__get__(module), "canonizer_pool": nn.AdaptiveAvgPool2d(1)}


def _classify(self: MobileNetV2, x: Tensor) -> Tensor:
    result: Tensor = self.classifier(self.canonizer_pool(self.features(x)).flatten(1))  # type: ignore[operator]  # added by zennit
    return result


def preset(name: str, network: Network, *, box: bool) -> Method:
    """Return one of zennit's presets as a method."""
    bounds = {"low": network.low, "high": network.high} if box else {}

    def method(model: nn.Module, x: Tensor, target: Any) -> Tensor:
        canonizer = {"ResNet": ResNetCanonizer, "MobileNetV2": MobileNetCanonizer}.get(
            type(model).__name__, SequentialMergeBatchNorm
        )
        composite = getattr(zennit.composites, name)(canonizers=[canonizer()], **bounds)
        x = x.requires_grad_()
        with composite.context(model) as modified:
            output = modified(x)
            start = torch.zeros_like(output).scatter_(1, target[:, None], 1.0) * output.detach()
            (relevance,) = torch.autograd.grad(output, x, start)
        return relevance.detach()

    return method
