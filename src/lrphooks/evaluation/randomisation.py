"""Randomisation: whether an explanation depends on what the model has learnt."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from lrphooks.evaluation import similarity
from lrphooks.evaluation.method import Judged, Target
from lrphooks.evaluation.metric import Metric, numbers, one_of, whole
from lrphooks.evaluation.result import Result


@dataclass(frozen=True, kw_only=True, repr=False)
class ParameterRandomisation(Metric):
    """Model-parameter randomisation: how alike relevance stays when the parameters are drawn anew.

    Formula: the mean over the modules with parameters of ``similarity(R of x, R of x by the randomised model)``, each
    channel-summed. "cascading" randomises the modules one after the other from the output to the input, so that the
    last model has nothing learnt; "independent" randomises one at a time.

    Range: -1 to 1; lower is better, for an explanation that stays the same does not depend on what was learnt.

    Result: ``curve`` is the similarity after each module, ``at`` the names of the modules.

    A module draws its parameters by its own ``reset_parameters``; parameters of modules without one are drawn from a
    normal distribution with their own mean and standard deviation. The model itself is left as it was: a copy is
    randomised, so a method must find layers by name, not hold modules of the model.

    Parameters
    ----------
    order
        "cascading" or "independent".
    similarity
        "spearman", the correlation of ranks, or "ssim", the structural similarity (of inputs with positions).
    absolute
        Whether absolute relevance is compared.
    seed
        The chance that draws the parameters; the global state of chance is left as it was.

    References
    ----------
    Adebayo et al., "Sanity Checks for Saliency Maps", NeurIPS 2018.
    """

    order: Literal["cascading", "independent"] = "cascading"
    similarity: Literal["spearman", "ssim"] = "spearman"
    absolute: bool = False
    seed: int = 0
    better: ClassVar[Literal["higher", "lower"] | None] = "lower"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of(self, "order", self.order, ("cascading", "independent"))
        one_of(self, "similarity", self.similarity, ("spearman", "ssim"))
        whole(self, "seed", self.seed, minimum=0)

    def _judge(self, model: nn.Module, x: Tensor, target: Target, method: Judged, truth: Tensor | None) -> Result:  # noqa: ARG002
        if isinstance(method, Tensor):
            raise TypeError(f"{self.name}: explains changed models, so it needs a method, not its relevance for x.")
        if self.similarity == "ssim" and (x.dim() < 3 or min(x.shape[2:]) < similarity.WINDOW):
            raise ValueError(
                f"{self.name}: x has shape {tuple(x.shape)}, too small for the windows of ssim, {similarity.WINDOW} "
                "positions a side. Take similarity='spearman'."
            )
        names = executed(model, x[:1])
        if not names:
            raise ValueError(f"{self.name}: the model has no parameters, so there is nothing to randomise.")
        usual = self._map(self._relevance(model, x, target, method))
        compare = similarity.spearman if self.similarity == "spearman" else similarity.ssim
        curve = [
            compare(usual, self._map(self._relevance(changed, x, target, method)))
            for changed in self._randomised(model, names)
        ]
        values = numbers(torch.stack(curve, 1))
        return Result(self, values.mean(1), values, np.array(names[::-1]))

    def _map(self, relevance: Tensor) -> Tensor:
        relevance = relevance.sum(1) if relevance.dim() > 2 else relevance
        return relevance.abs() if self.absolute else relevance

    def _randomised(self, model: nn.Module, names: list[str]) -> Iterator[nn.Module]:
        changed = copy.deepcopy(model)
        devices = {p.device for p in changed.parameters() if p.device.type == "cuda"}
        for step, name in enumerate(reversed(names)):
            if self.order == "independent":
                changed = copy.deepcopy(model)
            with torch.random.fork_rng(sorted(devices, key=str)), torch.no_grad():
                torch.manual_seed(self.seed + step)
                _draw(changed.get_submodule(name))
            yield changed


def _draw(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    for parameter in module.parameters(recurse=False):
        if parameter.is_floating_point():
            spread = parameter.std(correction=0)
            parameter.copy_(parameter.mean() + spread * torch.randn_like(parameter))


@torch.no_grad()
def executed(model: nn.Module, x: Tensor) -> list[str]:
    """Return the modules that own parameters in the order in which they run.

    One that is never called itself, as the output projection of torch's attention, counts with the module around it.
    """
    place: dict[str, int] = {}

    def note(name: str) -> None:
        place.setdefault(name, len(place))

    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: note(name)) for name, module in model.named_modules()
    ]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()

    def when(name: str) -> int:
        while name not in place and name:
            name = name.rpartition(".")[0]
        return place.get(name, 0)

    owners = [
        name for name, module in model.named_modules() if next(module.parameters(recurse=False), None) is not None
    ]
    return sorted(owners, key=when)
