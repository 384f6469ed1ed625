"""Other libraries on the same models: each runs in a process of its own, and only where it is installed."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks.zoo.case import Case, Positional, Subject, default_dtype
from benchmarks.zoo.measure import REPEATS, describe, relevance, seconds
from benchmarks.zoo.weights import perturb, remove_additive

#: Returns f(x) and the relevance of each explained input.
Explain = Callable[[Case], tuple[Tensor, list[Tensor]]]


@dataclass(frozen=True)
class Peer:
    """A library to compare with.

    package: what must be installed. explain: how it explains a case. sources: where it can be tried; all if empty.
    """

    package: str
    explain: Explain
    sources: tuple[str, ...] = ()

    def serves(self, source: str) -> bool:
        """Whether the library is there and made for models of this source."""
        return importlib.util.find_spec(self.package) is not None and (not self.sources or source in self.sources)

    def measure(self, subject: Subject) -> dict[str, Any]:
        """Return the library's part of a row: what it loses of f(x) without additive parameters, and its time."""
        row: dict[str, Any] = {}
        try:
            with default_dtype(torch.float64):
                case = subject.case(torch.float64, perturb)
                remove_additive(case)
                value, found = self.explain(case)
                total = float(torch.stack([r.detach().sum() for r in found if r is not None]).sum())
                larger = max(abs(float(value)), abs(total))
                row["conserved"] = abs(float(value) - total) / larger if larger else 0.0
            with default_dtype(torch.float32):
                row["ratio"] = _ratio(subject, self.explain)
        except Exception as error:  # any error belongs in the row
            row["error"] = describe(error)
        return row


def _ratio(subject: Subject, explain: Explain) -> float:
    torch.set_flush_denormal(True)
    case = subject.case(torch.float32, perturb)
    explain(case)
    plain, explained = [], []
    for _ in range(REPEATS):
        plain.append(seconds(lambda: relevance(case, None)))
        explained.append(seconds(lambda: explain(case)))
    return min(explained) / min(plain)


def _zennit(case: Case) -> tuple[Tensor, list[Tensor]]:
    from zennit.canonizers import SequentialMergeBatchNorm
    from zennit.composites import LayerMapComposite
    from zennit.rules import Epsilon, Norm, Pass
    from zennit.types import Activation, AvgPool, BatchNorm, Linear

    layers = [(Activation, Pass()), (AvgPool, Norm()), (BatchNorm, Pass()), (Linear, Epsilon(1e-6))]
    inputs = case.inputs()
    with LayerMapComposite(layers, canonizers=[SequentialMergeBatchNorm()]).context(case.model):
        outputs = case(inputs)
        places = case.choose(outputs)
        value = case.pick(outputs, places)
        # zennit starts from relevance: the output itself in place of 1.
        seeded = case.pick([output * output.detach() for output in outputs], places)
        found = torch.autograd.grad(seeded, inputs, allow_unused=True)
    return value.detach(), list(found)


def _captum(case: Case) -> tuple[Tensor, list[Tensor]]:
    from captum.attr import LRP

    outputs = case(case.inputs())
    model = Seeded(case, case.choose(outputs))
    model.eval()
    with torch.no_grad():
        scale = model(*case.inputs())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = LRP(model).attribute(tuple(case.inputs()), target=0)
    # captum starts every explained value from 1, and multiplies by the model's output at the end.
    return case.pick(outputs, model.places).detach(), [r / scale for r in found]


class Seeded(Positional):
    """A case whose explained values start from relevance, the values themselves in place of 1."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the sum of each explained value times itself as a constant, as a (1, 1) tensor."""
        outputs = self.case(list(inputs))
        return self.case.pick([output * output.detach() for output in outputs], self.places).reshape(1, 1)


def _lxt(case: Case) -> tuple[Tensor, list[Tensor]]:
    from lxt.efficient import monkey_patch

    monkey_patch(sys.modules[type(case.model).__module__])
    inputs = case.inputs()
    outputs = case(inputs)
    value = case.pick(outputs, case.choose(outputs))
    found = torch.autograd.grad(value, inputs, allow_unused=True)
    return value.detach(), [x * g for x, g in zip(inputs, found, strict=True) if g is not None]


def _autolrp(case: Case) -> tuple[Tensor, list[Tensor]]:
    import autolrp

    inputs = [autolrp.tensor(x) for x in case.inputs()]
    outputs = case(inputs)
    value = case.pick(outputs, [place.as_subclass(Tensor) for place in case.choose(outputs)])
    value.lrp(config=autolrp.LRPConfig(rule={**autolrp.BASE, **autolrp.CPLRP}))
    value = value.detach().as_subclass(Tensor)
    # Its relevance sums to 1, not to f(x).
    return value, [x.relevance * value for x in inputs if x.relevance is not None]


PEERS: dict[str, Peer] = {
    "zennit": Peer("zennit", _zennit),
    "captum": Peer("captum", _captum),
    "autolrp": Peer("autolrp", _autolrp),
    # The last, since it changes classes of transformers for the rest of the process.
    "lxt": Peer("lxt", _lxt, ("transformers",)),
}
