"""How cost grows: with the batch, the depth, the length of a sequence and the number of targets.

Relevance must grow as the plain gradient does, so each point is measured beside it, in turn. Of n targets the measure
is n separate calls.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential

import lrphooks
from benchmarks.speed import cases
from benchmarks.speed.measure import Setting, in_turn, quartiles
from benchmarks.speed.memory import peak
from benchmarks.speed.subjects import SUBJECTS, Run, gradient_of, sharing
from lrphooks import composites

#: What is measured beside the gradient where nothing else is said.
USUAL = ("lrphooks epsilon", "lrphooks z-plus", "lrphooks gamma")
ATTENTION = ("lrphooks AttnLRP", "lrphooks CPLRP")


@dataclass(frozen=True)
class Growth:
    """One quantity that grows.

    points: its values, and ``quick`` those of a quick run. make: the model and its batch for a value. subjects: what
    is measured. base: what it is compared with. checkpointed: whether checkpointed forms are measured too.
    """

    name: str
    what: str
    points: tuple[int, ...]
    quick: tuple[int, ...]
    make: Callable[..., tuple[nn.Module, Tensor]]
    subjects: tuple[str, ...] = USUAL
    base: str = "gradient"
    checkpointed: bool = False


@dataclass(frozen=True)
class Point:
    """One subject at one value: the ratio of its time and peak memory to the base, and the seconds and bytes."""

    growth: str
    model: str
    value: int
    subject: str
    ratio: float
    low: float
    high: float
    seconds: float
    memory: float
    bytes: int


class Chain(nn.Module):
    """Equal convolutions one after the other, checkpointed in about as many segments as each has layers, if asked."""

    def __init__(self, depth: int, width: int = 16) -> None:
        super().__init__()
        blocks = [nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU()) for _ in range(depth)]
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
        self.segments = 0

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        h = self.stem(x)
        if self.segments:
            h = checkpoint_sequential(self.blocks, self.segments, h, use_reentrant=False)
        else:
            h = self.blocks(h)
        out: Tensor = self.head(h)
        return out


def _frozen(model: nn.Module) -> nn.Module:
    model = model.eval().requires_grad_(requires_grad=False)
    cases.scale(model)
    return model


def _batch(value: int, *, quick: bool) -> tuple[nn.Module, Tensor]:
    case = cases.CASES["tiny" if quick else "ResNet-50"]
    size = case.quick if quick else case.size
    return case.model(size), case.input(value, size)


def _depth(value: int, *, quick: bool) -> tuple[nn.Module, Tensor]:
    return _frozen(Chain(value)), torch.randn(1, 3, *(2 * (16 if quick else 64,)))


def _length(value: int, *, quick: bool) -> tuple[nn.Module, Tensor]:
    width = 32 if quick else 256
    return _frozen(cases.bert(width, layers=2, length=value)), torch.randn(1, value, width)


def _targets(_: int, *, quick: bool) -> tuple[nn.Module, Tensor]:
    return _batch(1, quick=quick)


GROWTHS = {
    growth.name: growth
    for growth in (
        Growth("batch", "images in a batch", (1, 2, 4, 8, 16, 32), (1, 2), _batch),
        Growth("depth", "convolutions in a row", (8, 16, 32, 64, 128, 256), (2, 4), _depth,
               checkpointed=True),
        Growth("length", "tokens", (128, 512, 2048, 8192), (8, 16), _length, ATTENTION),
        Growth("targets", "targets of one image", (1, 2, 5, 10, 20), (1, 2), _targets, base="separate calls"),
    )
}  # fmt: skip


def measure(growth: Growth, setting: Setting, *, quick: bool, values: Sequence[int] = ()) -> list[Point]:
    """Return the points of one growth; ``setting`` tells repeats, device and type."""
    torch.set_flush_denormal(True)
    points = []
    for value in values or (growth.quick if quick else growth.points):
        torch.manual_seed(0)
        model, x = growth.make(value, quick=quick)
        kind = type(model).__name__
        model, x = model.to(setting.device, setting.dtype), x.to(setting.device, setting.dtype)
        with ExitStack() as stack:
            base, runs = (_of_targets if growth.base != "gradient" else _of_models)(growth, model, value, stack)
            times, ratios = in_turn(base, runs, x, setting.repeats)
            least = peak(base, x)
            seconds = statistics.median(times[""])
            points.append(Point(growth.name, kind, value, growth.base, 1.0, 1.0, 1.0, seconds, 1.0, least))
            for name, run in runs.items():
                middle, (low, high) = statistics.median(ratios[name]), quartiles(ratios[name])
                memory = peak(run, x)
                taken = statistics.median(times[name])
                points.append(
                    Point(growth.name, kind, value, name, middle, low, high, taken, memory / max(least, 1), memory)
                )
    return points


def _of_models(growth: Growth, model: nn.Module, value: int, stack: ExitStack) -> tuple[Run, dict[str, Run]]:
    """Return the gradient of a model and what is measured beside it."""
    runs = {name: SUBJECTS[name].open(model, stack) for name in growth.subjects}
    if growth.checkpointed:
        saving = sharing(model)
        saving.segments = math.isqrt(value)  # type: ignore[assignment]  # an attribute of Chain, not a module
        runs["gradient, checkpointed"] = gradient_of(saving)
        for name in growth.subjects:
            runs[f"{name}, checkpointed"] = SUBJECTS[name].open(saving, stack)
    return gradient_of(model), runs


def _of_targets(_: Growth, model: nn.Module, value: int, __: ExitStack) -> tuple[Run, dict[str, Run]]:
    """Return the separate explanation of several targets, and the one of all together."""
    composite = composites.EpsilonPlus()

    def separate(x: Tensor) -> Tensor:
        return torch.stack([lrphooks.lrp(model, x, target, composite) for target in range(value)])

    def together(x: Tensor) -> Tensor:
        return torch.stack(lrphooks.lrp_targets(model, x, range(value), composite))

    return separate, {"lrp_targets": together}


def exponent(points: Sequence[Point], subject: str, of: Callable[[Point], float]) -> float:
    """Return the exponent of the power law that fits a subject's points best, in the least squares of logarithms."""
    chosen = [p for p in points if p.subject == subject and of(p) > 0]
    if len({p.value for p in chosen}) < 2:
        return math.nan
    logs = [(math.log(p.value), math.log(of(p))) for p in chosen]
    return statistics.linear_regression(*map(list, zip(*logs, strict=True))).slope


def table(points: Sequence[Point]) -> str:
    """Return the tables of all growths."""
    lines: list[str] = []
    for name in dict.fromkeys(p.growth for p in points):
        chosen = [p for p in points if p.growth == name]
        growth = GROWTHS[name]
        subjects = list(dict.fromkeys(p.subject for p in chosen))
        values = list(dict.fromkeys(p.value for p in chosen))
        lines += [
            "",
            f"## Growth with the {name}: {growth.what}, {chosen[0].model}",
            "",
            f"Time, and in brackets peak memory, as ratios to {growth.base}. The last columns are the exponents of the",
            "power laws that fit the seconds and the bytes best: 1 is linear.",
            "",
            f"| | {' | '.join(map(str, values))} | time | memory |",
            f"|---|{'---|' * (len(values) + 2)}",
        ]
        for subject in subjects:
            found = {p.value: p for p in chosen if p.subject == subject}
            cells = [f"{found[v].ratio:.2f} ({found[v].memory:.2f})" for v in values]
            powers = [exponent(chosen, subject, of) for of in (lambda p: p.seconds, lambda p: p.bytes)]
            lines.append(f"| {subject} | {' | '.join(cells)} | {' | '.join(f'{power:.2f}' for power in powers)} |")
    return "\n".join(lines)


def draw(axes: Sequence[Any], points: Sequence[Point], name: str) -> None:
    """Draw seconds and bytes of one growth on two logarithmic axes."""
    chosen = [p for p in points if p.growth == name]
    for axis, of, what in zip(
        axes, (lambda p: p.seconds, lambda p: p.bytes / 2**20), ("seconds", "peak memory, MiB"), strict=True
    ):
        for subject in dict.fromkeys(p.subject for p in chosen):
            line = [(p.value, of(p)) for p in chosen if p.subject == subject]
            axis.plot(*zip(*line, strict=True), marker="o", markersize=3, label=subject)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        axis.set_xlabel(GROWTHS[name].what)
        axis.set_ylabel(what)
        axis.legend(fontsize=7)
