"""The models that are timed, random but with activations in range, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A model to time.

    make: returns it for inputs of a given side (images) or length (tokens). size: that side or length by default, and
    ``quick`` the one of a quick run. input: returns a batch. unit: what a throughput counts.
    """

    name: str
    make: Callable[[int], nn.Module]
    size: int
    quick: int
    input: Callable[[int, int], Tensor]
    unit: str = "images"

    def model(self, size: int) -> nn.Module:
        """Return the model, frozen and in evaluation mode."""
        torch.manual_seed(0)
        model = self.make(size).eval().requires_grad_(requires_grad=False)
        scale(model)
        return model


def scale(model: nn.Module) -> None:
    """Give every layer weights that keep activations in range, and every norm statistics and biases other than 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d):
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.3, 0.6)
            nn.init.normal_(module.bias, std=0.1)
        bias = getattr(module, "bias", None)
        if isinstance(module, nn.Conv2d | nn.Linear) and isinstance(bias, Tensor):
            nn.init.normal_(bias, std=0.01)


def _images(batch: int, size: int) -> Tensor:
    return torch.randn(batch, 3, size, size)


def _vision(name: str, **arguments: object) -> Callable[[int], nn.Module]:
    def make(size: int) -> nn.Module:
        from benchmarks.zoo.subjects import shim as _shim  # noqa: F401, I001  (before torchvision)
        from torchvision import models

        sized = {"image_size": size} if name.startswith("vit") else {}
        made: nn.Module = getattr(models, name)(weights=None, **arguments, **sized)
        return made

    return make


class Logits(nn.Module):
    """BERT as a classifier of given embeddings."""

    def __init__(self, inner: nn.Module, width: int) -> None:
        super().__init__()
        self.inner, self.head = inner, nn.Linear(width, 10)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the logits of each row."""
        out: Tensor = self.head(self.inner(inputs_embeds=embeddings).last_hidden_state[:, 0])
        return out


def _bert(_: int) -> nn.Module:
    from transformers import BertConfig, BertModel

    return Logits(BertModel(BertConfig(), add_pooling_layer=False), 768)


def _tiny(_: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


CASES = {
    case.name: case
    for case in (
        Case("VGG-16", _vision("vgg16"), 224, 64, _images),
        Case("ResNet-50", _vision("resnet50"), 224, 96, _images),
        Case("EfficientNet-B0", _vision("efficientnet_b0"), 224, 64, _images),
        Case("ConvNeXt-T", _vision("convnext_tiny"), 224, 64, _images),
        Case("ViT-B/16", _vision("vit_b_16"), 224, 96, _images),
        Case("Swin-T", _vision("swin_t"), 224, 64, _images),
        Case("BERT-base", _bert, 128, 32, lambda batch, length: torch.randn(batch, length, 768), "tokens"),
        Case("tiny", _tiny, 16, 8, _images),
    )
}
#: What runs where no model is named.
USUAL = tuple(name for name in CASES if name != "tiny")
QUICK = ("VGG-16", "ResNet-50", "ViT-B/16")
