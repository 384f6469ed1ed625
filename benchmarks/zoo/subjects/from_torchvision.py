"""torchvision: classification, segmentation, video, the backbones of detection, optical flow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.case import Case, Subject
from benchmarks.zoo.subjects import shim as _shim  # noqa: F401

# isort: split
import torchvision
from torchvision.models import VisionTransformer, detection, list_models, optical_flow, quantization
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.models.video import MViT
from torchvision.models.video.mvit import MSBlockConfig

#: Image sizes of classification models that do not take 64 pixels.
_SIZES = {"inception_v3": 96, "maxvit_t": 224, "alexnet": 64}

#: Models of hundreds of millions of parameters, with fewer layers.
_SHORTER: dict[str, Callable[[], nn.Module]] = {
    "regnet_y_128gf": lambda: RegNet(BlockParams.from_init_params(4, 456, 160.83, 2.52, 264, 0.25)),
    **{
        name: partial(
            VisionTransformer, image_size=4 * patch, patch_size=patch, num_layers=3, num_heads=heads,
            hidden_dim=width, mlp_dim=4 * width,
        )
        for name, patch, heads, width in (
            ("vit_b_16", 16, 12, 768), ("vit_b_32", 32, 12, 768), ("vit_l_16", 16, 16, 1024),
            ("vit_l_32", 32, 16, 1024), ("vit_h_14", 14, 16, 1280),
        )
    },
}  # fmt: skip


def subjects() -> list[Subject]:
    """Return all models."""
    named = [(name, _classifier) for name in list_models(module=torchvision.models)]
    named += [(name, _segmenter) for name in list_models(module=torchvision.models.segmentation)]
    named += [(name, _video) for name in list_models(module=torchvision.models.video)]
    named += [(name, _backbone) for name in list_models(module=detection)]
    named += [(name, _flow) for name in list_models(module=optical_flow)]
    quantized = set(list_models(module=quantization))
    return [Subject("torchvision", name, partial(make, name)) for name, make in named if name not in quantized]


def _get(name: str, **keywords: Any) -> nn.Module:
    model: nn.Module = torchvision.models.get_model(name, weights=None, **keywords)
    return model


def _classifier(name: str) -> Case:
    if name in _SHORTER:
        model = _SHORTER[name]()
        size = getattr(model, "image_size", 64)
    elif name in ("inception_v3", "googlenet"):
        model, size = _get(name, init_weights=False, aux_logits=False), 96
    else:
        model, size = _get(name), _SIZES.get(name, 64)
    return Case(model, (torch.randn(2 if size < 200 else 1, 3, size, size),))


def _segmenter(name: str) -> Case:
    return Case(_get(name, weights_backbone=None), (torch.randn(2, 3, 64, 64),), outputs=_only_out)


def _only_out(output: dict[str, Tensor]) -> Tensor:
    return output["out"]


def _video(name: str) -> Case:
    if name.startswith("mvit"):
        return Case(_multiscale(second=name.startswith("mvit_v2")), (torch.randn(1, 3, 8, 64, 64),))
    if name == "s3d":
        # Its last pool is made for this size.
        return Case(_get(name), (torch.randn(1, 3, 16, 224, 224),))
    return Case(_get(name), (torch.randn(2, 3, 8, 32, 32),))


def _multiscale(*, second: bool) -> nn.Module:
    """Return a short MViT of the first or second version; the whole one takes gigabytes in double precision."""
    blocks = [
        MSBlockConfig(1, 96, 192, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 4, 4]),
        MSBlockConfig(2, 192, 192, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 2, 2]),
        MSBlockConfig(2, 192, 192, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
    ]
    flags = dict.fromkeys(("residual_pool", "rel_pos_embed", "proj_after_attn"), second)
    return MViT((64, 64), 8, blocks, residual_with_cls_embed=not second, **flags)


def _backbone(name: str) -> Case:
    size = 300 if name == "ssd300_vgg16" else 64
    return Case(_get(name, weights_backbone=None).backbone, (torch.randn(1, 3, size, size),))


def _flow(name: str) -> Case:
    # One update: a second one starts from the flow of the first, which RAFT detaches.
    images = (torch.randn(1, 3, 128, 128), torch.randn(1, 3, 128, 128))
    return Case(_get(name), images, {"num_flow_updates": 1}, explained=(0, 1), outputs=lambda flows: flows[-1])
