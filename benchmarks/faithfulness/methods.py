"""What is compared: every preset of lrphooks, the usual baselines, and zennit's presets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.faithfulness.networks import Network
from lrphooks import Composite, baselines, composites, lrp, tune
from lrphooks.baselines import Baseline
from lrphooks.evaluation import Blur, Judged, Space, SymmetricRelevanceGain
from lrphooks.targets import AgainstOthers


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


#: Of how many classes the strongest are that a picture is explained against.
STRONGEST = 5


@dataclass(frozen=True)
class Against:
    """A method of lrphooks that explains a class against the strongest others."""

    method: Composite | Baseline
    chosen: str = ""
    """The parameters that were searched for, where they were."""

    def __call__(self, model: nn.Module, x: Tensor, target: Any) -> Tensor:
        """Return relevance for the classes against others."""
        against = AgainstOthers(target, STRONGEST)
        if isinstance(self.method, Composite):
            return lrp(model, x, against, self.method)
        return self.method(model, x, against)


def _tuned(network: Network) -> Judged:
    """Search for the parameters of GammaDecay on the pictures that are held apart."""
    apart, fixed = network.apart, {"model": network.module, "low": network.low, "high": network.high}
    assert apart is not None
    metric = SymmetricRelevanceGain(patch=network.patch, infill=blur(network), steps=7, batch_size=28)
    choices = {"first": [0.3, 1.0], "last": [0.03, 0.1], "sums": [None, 10.0]}
    space = Space(composites.GammaDecay, **{name: [value] for name, value in fixed.items()}, **choices)
    found = tune(network.module, apart.x, apart.y, space, metric)
    chosen = ", ".join(f"{name}={found.best.arguments[name]!r}" for name in choices)
    return Against(found.composite, f"{chosen} (on {len(apart.x)} pictures)")


def blur(network: Network, sigma: float = 10.0) -> Blur:
    """Return the blur of the photographs, in proportion to the side of the patches."""
    return Blur(sigma * network.patch / 16)


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
    Subject("GammaDecay against 5", "lrphooks", lambda n: Against(composites.GammaDecay(n.module, n.low, n.high))),
    Subject("GammaDecay tuned against 5", "lrphooks", _tuned),
    Subject("EpsilonGammaBox", "lrphooks", lambda n: composites.EpsilonGammaBox(n.low, n.high)),
    Subject("zennit EpsilonGammaBox", "zennit", _zennit("EpsilonGammaBox", low=True, high=True)),
    Subject("EpsilonPlusFlat", "lrphooks", _plain(composites.EpsilonPlusFlat)),
    Subject("zennit EpsilonPlusFlat", "zennit", _zennit("EpsilonPlusFlat")),
    Subject("Grad-CAM", "baseline", _plain(baselines.GradCAM)),
    Subject("Grad-CAM against 5", "baseline", lambda _: Against(baselines.GradCAM())),
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
