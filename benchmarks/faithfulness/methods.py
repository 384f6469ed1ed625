"""What is compared: every preset of lrphooks, the usual baselines, and zennit's presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.faithfulness.networks import Network
from lrphooks import baselines, composites
from lrphooks.evaluation import Judged


@dataclass(frozen=True)
class Subject:
    """A method by name, made for a network."""

    name: str
    family: str
    """lrphooks, baseline or zennit."""
    build: Callable[[Network], Judged]
    gradient: bool = True
    """Whether it takes gradients; one that does not runs the quick form of the network, and no mosaics."""


def chance(_: nn.Module, x: Tensor, target: Any) -> Tensor:
    """Return relevance by chance."""
    return torch.randn(x.shape, generator=torch.Generator().manual_seed(int(target.sum())))


def _zennit(name: str, **bounds: bool) -> Callable[[Network], Judged]:
    def build(network: Network) -> Judged:
        from benchmarks.faithfulness import zennit_methods

        return zennit_methods.preset(name, network, box=bool(bounds))

    return build


def _plain(preset: Callable[[], Judged]) -> Callable[[Network], Judged]:
    return lambda _: preset()


# The quick ones first, for a run that is stopped.
SUBJECTS = (
    Subject("GammaDecay", "lrphooks", lambda n: composites.GammaDecay(n.module, n.low, n.high)),
    Subject("EpsilonGammaBox", "lrphooks", lambda n: composites.EpsilonGammaBox(n.low, n.high)),
    Subject("zennit EpsilonGammaBox", "zennit", _zennit("EpsilonGammaBox", low=True, high=True)),
    Subject("EpsilonPlusFlat", "lrphooks", _plain(composites.EpsilonPlusFlat)),
    Subject("zennit EpsilonPlusFlat", "zennit", _zennit("EpsilonPlusFlat")),
    Subject("Grad-CAM", "baseline", _plain(baselines.GradCAM)),
    Subject("chance", "baseline", lambda _: chance),
    Subject("EpsilonPlus", "lrphooks", _plain(composites.EpsilonPlus)),
    Subject("EpsilonAlpha2Beta1", "lrphooks", _plain(composites.EpsilonAlpha2Beta1)),
    Subject("EpsilonAlpha2Beta1Flat", "lrphooks", _plain(composites.EpsilonAlpha2Beta1Flat)),
    Subject("ExcitationBackprop", "lrphooks", _plain(composites.ExcitationBackprop)),
    Subject("GuidedBackprop", "lrphooks", _plain(composites.GuidedBackprop)),
    Subject("DeconvNet", "lrphooks", _plain(composites.DeconvNet)),
    Subject("AttnLRP", "lrphooks", _plain(composites.AttnLRP)),
    Subject("CPLRP", "lrphooks", _plain(composites.CPLRP)),
    Subject("gradient", "baseline", _plain(baselines.Gradient)),
    Subject("input × gradient", "baseline", _plain(baselines.InputXGradient)),
    Subject("zennit EpsilonPlus", "zennit", _zennit("EpsilonPlus")),
    Subject("zennit EpsilonAlpha2Beta1Flat", "zennit", _zennit("EpsilonAlpha2Beta1Flat")),
    Subject("SmoothGrad", "baseline", lambda _: baselines.SmoothGrad(samples=20)),
    Subject("occlusion", "baseline", lambda n: baselines.Occlusion((n.patch, n.patch)), gradient=False),
    Subject("Integrated Gradients", "baseline", lambda _: baselines.IntegratedGradients(steps=20)),
)
