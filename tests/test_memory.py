"""How much memory relevance takes, counted by the allocator in bytes, beside the plain input gradient.

Modified weights are kept for as long as a context lasts; they are made before anything is counted.
"""

import gc

import pytest
import torch
from benchmarks.speed.cases import bert, llama
from benchmarks.speed.memory import peak
from benchmarks.speed.subjects import gradient_of
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

import torchvision_shim  # noqa: F401  (before torchvision)
from counting import held
from lrphooks import composites
from lrphooks.rules import AlphaBeta, Epsilon, Gamma, ZPlus
from small_networks import every_layer


def vgg():
    """VGG-16 with a smaller head."""
    from torchvision.models.vgg import cfgs, make_layers

    return nn.Sequential(make_layers(cfgs["D"]), nn.Flatten(), nn.Linear(512, 10)), (2, 3, 32, 32)


def resnet():
    """ResNet-50 with two blocks where it has three to six."""
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [2, 2, 2, 2], num_classes=10), (2, 3, 64, 64)


def vit():
    """ViT-B/16 but narrower."""
    from torchvision.models.vision_transformer import VisionTransformer

    model = VisionTransformer(32, 4, num_layers=12, num_heads=2, hidden_dim=32, mlp_dim=128, num_classes=10)
    nn.init.normal_(model.heads.head.weight)
    return model, (2, 3, 32, 32)


def swin():
    """Swin-T but narrower, with blocks whose windows are shifted, and one that merges patches."""
    from torchvision.models.swin_transformer import SwinTransformer

    return SwinTransformer([4, 4], 48, [2, 6], [2, 4], [4, 4], num_classes=10), (2, 3, 64, 64)


def short_bert():
    """BERT-base but narrower."""
    return bert(64, layers=12, length=32), (2, 32, 64)


def short_llama():
    """A Llama of eight layers, narrow."""
    return llama(256, layers=8), (2, 64, 256)


MODELS = {"VGG": vgg, "ResNet": resnet, "ViT": vit, "Swin": swin, "BERT": short_bert, "Llama": short_llama}
RULES = {
    "LRP-0": every_layer(Epsilon(0)),
    "AttnLRP": composites.AttnLRP(),
    "CPLRP": composites.CPLRP(),
    "AttnLRP, epsilon": composites.AttnLRP(1e-6),
    "CPLRP, epsilon": composites.CPLRP(1e-6),
    "Epsilon": every_layer(Epsilon()),
    "ZPlus": every_layer(ZPlus()),
    "Gamma": every_layer(Gamma(0.25)),
    "AlphaBeta": every_layer(AlphaBeta(2, 1)),
}


def made(name):
    torch.manual_seed(0)
    model, shape = MODELS[name]()
    return model.eval().requires_grad_(False), torch.randn(shape)


def activations(model, x):
    """The memory of activations that Python holds after a forward pass, by address, with their shapes."""
    gc.collect()
    before = {id(t) for t in gc.get_objects() if type(t) is torch.Tensor}
    out = model(x.clone().requires_grad_())
    gc.collect()
    alive = [t for t in gc.get_objects() if type(t) is torch.Tensor and id(t) not in before and t.grad_fn is not None]
    return {t.untyped_storage().data_ptr(): t.shape for t in alive if t is not out and t.untyped_storage().nbytes() > 4}


#: The most memory of an explanation over that of a gradient, by model.
BARS = {
    "VGG": {"LRP-0": 1.1, "Epsilon": 1.5, "ZPlus": 2.0, "Gamma": 2.0, "AlphaBeta": 2.0},
    "ResNet": {"LRP-0": 1.1, "Epsilon": 1.5, "ZPlus": 1.5, "Gamma": 1.5, "AlphaBeta": 1.5},
    "ViT": {"LRP-0": 1.1, "AttnLRP": 1.1, "CPLRP": 1.1, "AttnLRP, epsilon": 1.5, "CPLRP, epsilon": 1.5},
    "Swin": {"LRP-0": 1.1, "AttnLRP": 1.1, "CPLRP": 1.1, "AttnLRP, epsilon": 1.5, "CPLRP, epsilon": 1.5},
    "BERT": {"LRP-0": 1.1, "AttnLRP": 1.1, "CPLRP": 1.1, "AttnLRP, epsilon": 1.5, "CPLRP, epsilon": 1.5},
    "Llama": {"LRP-0": 1.1, "AttnLRP": 1.1, "CPLRP": 1.1, "AttnLRP, epsilon": 1.5, "CPLRP, epsilon": 1.5},
}


@pytest.mark.parametrize(("name", "rule"), [(name, rule) for name, bars in BARS.items() for rule in bars])
def test_peak_memory(name, rule):
    model, x = made(name)
    explain = gradient_of(model)
    explain(x)
    plain = peak(explain, x)
    with RULES[rule].context(model):
        explain(x)
        ruled = peak(explain, x)
    assert 0 < ruled <= BARS[name][rule] * plain


@pytest.mark.parametrize("rule", ["LRP-0", "Epsilon", "AlphaBeta", "AttnLRP, epsilon"])
@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_held_that_autograd_does_not_save(name, rule):
    """What autograd saves is freed as a backward pass goes on, and left out by checkpoints; what nodes hold is not."""
    model, x = made(name)
    saved = set()

    def pack(tensor):
        saved.add(tensor.untyped_storage().data_ptr())
        return tensor

    with RULES[rule].context(model), saved_tensors_hooks(pack, lambda tensor: tensor):
        alive = activations(model, x)
    assert alive, "nothing is held: this case tests nothing"
    assert not [tuple(shape) for address, shape in alive.items() if address not in saved]


class Checkpointed(nn.Module):
    """Blocks of which each is run again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
            for _ in range(3)
        )

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False)
        return x.flatten(1)


@pytest.mark.parametrize("rule", ["LRP-0", "Epsilon", "ZPlus", "Gamma", "AlphaBeta"])
def test_checkpoints_keep_the_inputs_of_blocks_alone(rule):
    model, x = Checkpointed().eval().requires_grad_(False), torch.randn(2, 4, 32, 32)
    plain = held(model, x)
    with RULES[rule].context(model):
        held(model, x)
        more = held(model, x) - plain
    # The model sees a copy of its input.
    assert 0 < more <= 1.01 * x.nbytes
