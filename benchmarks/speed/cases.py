"""The models that are timed, random but with activations in range, and their inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from benchmarks.zoo.subjects import shim as _shim  # noqa: F401  (before torchvision, which many libraries import)

#: What is timed where no subject is named: what a kind of model is explained with, and the libraries that may do it.
CONVOLUTIONS = (
    "forward", "lrphooks LRP-0", "lrphooks epsilon", "lrphooks z-plus", "lrphooks gamma", "lrphooks alpha-beta",
    "zennit epsilon", "zennit z-plus", "zennit gamma", "captum epsilon",
)  # fmt: skip
ATTENTION = (
    "forward", "lrphooks LRP-0", "lrphooks AttnLRP", "lrphooks CPLRP", "lrphooks AttnLRP epsilon",
    "lrphooks z-plus", "lrphooks gamma", "zennit epsilon", "autoLRP CPLRP",
)  # fmt: skip
TOKENS = (*(name for name in ATTENTION if not name.startswith("zennit")), "LXT AttnLRP")


@dataclass(frozen=True)
class Case:
    """A model to time.

    make: returns it for inputs of a given side (images) or length (tokens). size: that side or length by default, and
    ``quick`` the one of a quick run. input: returns a batch. unit: what a throughput counts. subjects: what is timed
    where none is named. usual: whether it is timed where no model is named; one of a billion parameters wants a GPU.
    """

    name: str
    make: Callable[[int], nn.Module]
    size: int
    quick: int
    input: Callable[[int, int], Tensor]
    unit: str = "images"
    subjects: tuple[str, ...] = CONVOLUTIONS
    usual: bool = True

    def model(self, size: int) -> nn.Module:
        """Return the model, frozen and in evaluation mode."""
        torch.manual_seed(0)
        model = self.make(size).eval().requires_grad_(requires_grad=False)
        scale(model)
        return model


def scale(model: nn.Module) -> None:
    """Give every layer weights that keep activations in range, and every norm statistics and biases other than 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d):
            nn.init.kaiming_normal_(module.weight)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            assert module.running_var is not None
            module.running_var.uniform_(0.5, 2.0)
            nn.init.uniform_(module.weight, 0.3, 0.6)
            nn.init.normal_(module.bias, std=0.1)
        bias = getattr(module, "bias", None)
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear) and isinstance(bias, Tensor):
            nn.init.normal_(bias, std=0.01)


def _images(batch: int, size: int) -> Tensor:
    return torch.randn(batch, 3, size, size)


def _vision(name: str, **arguments: object) -> Callable[[int], nn.Module]:
    def make(size: int) -> nn.Module:
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


def bert(width: int, *, layers: int, length: int) -> nn.Module:
    """Return a network of the form of BERT for embeddings, of which BERT-base is 768 wide with 12 layers."""
    from transformers import BertConfig, BertModel

    config = BertConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=max(1, width // 64),
        intermediate_size=4 * width,
        max_position_embeddings=length,
    )
    return Logits(BertModel(config, add_pooling_layer=False), width)


class LastToken(nn.Module):
    """A causal language model that answers for the last of given embeddings."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, embeddings: Tensor) -> Tensor:
        """Return the logits of the next token of each row."""
        out: Tensor = self.inner(inputs_embeds=embeddings, use_cache=False, logits_to_keep=1).logits[:, -1]
        return out


def llama(width: int, *, layers: int) -> nn.Module:
    """Return a network of the form of Llama 3, of which that of a billion parameters is 2048 wide with 16 layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=max(1, width // 256),
        intermediate_size=4 * width,
        vocab_size=32000,
        max_position_embeddings=8192,
    )
    return LastToken(LlamaForCausalLM(config))


class Recurrent(nn.Module):
    """Two layers of LSTM, and a classifier of the last step."""

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.lstm = nn.LSTM(64, width, num_layers=2, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of each row."""
        out: Tensor = self.head(self.lstm(x)[0][:, -1])
        return out


class UNet3d(nn.Module):
    """A U-Net for volumes, with transposed convolutions on the way up; it answers with the mean of each class."""

    def __init__(self, widths: tuple[int, ...] = (16, 32, 64)) -> None:
        super().__init__()
        self.down = nn.ModuleList(_double(a, b) for a, b in pairwise((1, *widths)))
        upwards = [(b, a) for a, b in pairwise(widths)][::-1]
        self.up = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2) for b, a in upwards)
        self.merge = nn.ModuleList(_double(2 * a, a) for _, a in upwards)
        self.head = nn.Conv3d(widths[0], 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mean logit of each class."""
        skips: list[Tensor] = []
        for block in self.down:
            x = block(nn.functional.max_pool3d(x, 2) if skips else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], 1))
        out: Tensor = self.head(x).mean((2, 3, 4))
        return out


def _double(inner: int, outer: int) -> nn.Module:
    layers: list[nn.Module] = []
    for a, b in ((inner, outer), (outer, outer)):
        layers += [nn.Conv3d(a, b, 3, padding=1, bias=False), nn.BatchNorm3d(b), nn.ReLU()]
    return nn.Sequential(*layers)


def _vit_tiny(size: int) -> nn.Module:
    import timm

    made: nn.Module = timm.create_model("vit_tiny_patch16_224", img_size=size)
    return made


def _vectors(width: int) -> Callable[[int, int], Tensor]:
    return lambda batch, length: torch.randn(batch, length, width)


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
        Case("ViT-B/16", _vision("vit_b_16"), 224, 96, _images, subjects=ATTENTION),
        Case("Swin-T", _vision("swin_t"), 224, 64, _images, subjects=ATTENTION),
        Case("BERT-base", lambda n: bert(768, layers=12, length=n), 128, 32, _vectors(768), "tokens", TOKENS),
        Case("Llama-1B", lambda _: llama(2048, layers=16), 512, 16, _vectors(2048), "tokens", TOKENS, usual=False),
        Case("Llama-small", lambda _: llama(512, layers=8), 256, 16, _vectors(512), "tokens", TOKENS),
        Case("LSTM", lambda _: Recurrent(), 128, 16, _vectors(64), "tokens"),
        Case("U-Net 3-D", lambda _: UNet3d(), 48, 16, lambda b, n: torch.randn(b, 1, n, n, n), "volumes"),
        Case("ViT-tiny", _vit_tiny, 224, 32, _images, subjects=ATTENTION, usual=False),
        Case("BERT-2", lambda n: bert(64, layers=2, length=n), 128, 16, _vectors(64), "tokens", TOKENS, usual=False),
        Case("Llama-2", lambda _: llama(64, layers=2), 128, 16, _vectors(64), "tokens", TOKENS, usual=False),
        Case("tiny", _tiny, 16, 8, _images, usual=False),
    )
}
#: What runs where no model is named.
USUAL = tuple(case.name for case in CASES.values() if case.usual)
QUICK = ("VGG-16", "ResNet-50", "ViT-B/16")
#: Where kernels are so short that Python decides, with the side of the images or the number of tokens.
LAUNCH = {"ResNet-50": 33, "EfficientNet-B0": 33, "ViT-tiny": 32, "BERT-2": 16, "Llama-2": 16}
