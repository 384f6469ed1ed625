"""One method on one network: what it explains, judged by lrphooks.evaluation."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import nn

from benchmarks.faithfulness.methods import Subject, blur
from benchmarks.faithfulness.networks import Network
from lrphooks.evaluation import GridPointingGame, Judged, SymmetricRelevanceGain, mosaics
from lrphooks.evaluation.method import relevance_of


@dataclass(frozen=True)
class Setting:
    """How much is measured, and how."""

    images: int = 60
    mosaics: int = 4
    steps: int = 14
    sigma: float = 10.0
    batch: int = 4


@dataclass
class Row:
    """What one method got on one network."""

    network: str
    method: str
    family: str
    setting: dict[str, Any]
    gain: list[float] = field(default_factory=list)
    """The symmetric relevance gain of each picture."""
    pointing: list[float] = field(default_factory=list)
    """The grid pointing game, of each cell of each mosaic."""
    seconds: float = 0.0
    """Processor time of one explanation."""
    error: str = ""
    chosen: str = ""
    """The parameters that a search found."""

    def as_dict(self) -> dict[str, Any]:
        """Return the row for a file of results."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Bench:
    """A network with a quick form of it that scores perturbed pictures."""

    network: Network
    quick: nn.Module
    setting: Setting

    @classmethod
    def of(cls, network: Network, setting: Setting) -> Bench:
        """Prepare a network; on pictures in hand its quick form must agree with it."""
        return cls(network, quick(network), setting)

    def measure(self, subject: Subject) -> Row:
        """Judge one method."""
        network, setting = self.network, self.setting
        row = Row(network.name, subject.name, subject.family, asdict(setting))
        try:
            method = subject.build(network)
            row.chosen = getattr(method, "chosen", "")
            start = time.process_time()
            relevance = _explained(
                method, network.module if subject.gradient else self.quick, network.x, network.y, setting.batch
            )
            row.seconds = (time.process_time() - start) / len(network.x)
            gain = SymmetricRelevanceGain(
                patch=network.patch, infill=blur(network, setting.sigma), steps=setting.steps, batch_size=28
            )
            row.gain = gain(self.quick, network.x, network.y, relevance).values.tolist()
            if network.mosaics and setting.mosaics and subject.gradient:
                made = mosaics(network.x, network.y)
                rows = slice(4 * setting.mosaics)
                seen = _explained(method, network.module, made.x[rows], made.target[rows], 1)
                # The relevance was computed before, so the quick network settles no target of its own.
                pointing = GridPointingGame(batch_size=4)
                row.pointing = pointing(
                    network.module, made.x[rows], made.target[rows], seen, truth=made.truth[rows]
                ).values.tolist()
        except Exception as error:  # noqa: BLE001  other libraries fail in any way
            row.error = f"{type(error).__name__}: {error}"
        return row


def _explained(method: Judged, model: nn.Module, x: torch.Tensor, y: torch.Tensor, batch: int) -> torch.Tensor:
    return relevance_of(method, model, x, y, batch_size=batch, who="benchmarks.faithfulness")


class Quick(nn.Module):
    """A compiled network, out of sight of what asks modules for hooks and modes."""

    def __init__(self, compiled: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self._compiled = (compiled,)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the compiled network."""
        return self._compiled[0](x)


def quick(network: Network) -> nn.Module:
    """Return the network compiled for inference where torch can, which scores three times as many pictures a second."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            traced = torch.jit.trace(network.module, network.x[:2])
            found = torch.jit.optimize_for_inference(torch.jit.freeze(traced))
            expected, scores = network.module(network.x[:4]), found(network.x[:4])
        except (RuntimeError, AttributeError):
            return network.module
    worst = (scores - expected).abs().max() / expected.abs().max()
    assert worst < 1e-3, f"the compiled {network.name} differs by {worst:.1e}"
    return Quick(found)
