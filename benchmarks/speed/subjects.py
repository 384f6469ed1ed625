"""What is timed: the forward pass, the gradient, lrphooks by rule and preset, and other libraries."""

from __future__ import annotations

import copy
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

import lrphooks
from lrphooks import Composite, composites
from lrphooks.matching import AnyLinear
from lrphooks.rules import AlphaBeta, Epsilon, Gamma, ZPlus

#: Explains a batch; contexts are open already, so that neither side pays for them.
Run = Callable[[Tensor], Tensor]
Open = Callable[[nn.Module, ExitStack], Run]


@dataclass(frozen=True)
class Subject:
    """One way to explain a model.

    rule: what is computed; subjects with the same rule are compared with lrphooks. peer: whose it is. alone: whether it
    changes classes of other libraries, so that it runs in a process of its own. compiled: whether torch.compile makes
    it, so that it runs apart: while a context is open, compiled functions run as they are written.
    """

    name: str
    rule: str
    peer: str
    open: Open
    alone: bool = False
    compiled: bool = False


def _forward(model: nn.Module, _: ExitStack) -> Run:
    def run(x: Tensor) -> Tensor:
        with torch.no_grad():
            out: Tensor = model(x)
        return out

    return run


def gradient_of(model: nn.Module) -> Run:
    """Return the plain input gradient of a model, which is also how relevance is asked for in a context."""

    def run(x: Tensor) -> Tensor:
        leaf = x.detach().clone().requires_grad_()
        (found,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
        return found

    return run


def _compiled(model: nn.Module, _: ExitStack) -> Run:
    compiled: nn.Module = torch.compile(copy.deepcopy(model))
    return gradient_of(compiled)


def _one_graph(model: nn.Module, _: ExitStack) -> Run:
    """The gradient traced to a single graph, forward and backward, in the layout of compiled explanations."""
    gradient = gradient_of(copy.deepcopy(model))
    compiled: list[Run] = []

    def run(x: Tensor) -> Tensor:
        if x.dim() == 4 and x.device.type == "cpu":
            x = x.contiguous(memory_format=torch.channels_last)
        if not compiled:
            graph = make_fx(gradient, tracing_mode="fake", _allow_non_fake_inputs=True)(x)
            compiled.append(torch.compile(graph, fullgraph=True))
        with torch.no_grad():
            return compiled[0](x)

    return run


def _lrphooks_compiled(composite: Composite) -> Open:
    def open_(model: nn.Module, _: ExitStack) -> Run:
        model = sharing(model)
        explainer = lrphooks.compiled(model, composite)

        def run(x: Tensor) -> Tensor:
            new = not explainer.graphs
            found: Tensor = explainer(x, 0)
            if new:
                expected = lrphooks.lrp(model, x, 0, composite)
                difference = float((found - expected).abs().max() / expected.abs().max())
                assert difference < 1e-3, f"it differs from what is not compiled by {difference:.2g}"
            return found

        return run

    return open_


def sharing(model: nn.Module) -> nn.Module:
    """Return a copy of a model with hooks of its own and the same parameters and buffers."""
    return copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def _lrphooks(composite: Composite) -> Open:
    def open_(model: nn.Module, stack: ExitStack) -> Run:
        model = sharing(model)
        stack.enter_context(composite.context(model))
        return gradient_of(model)

    return open_


def _zennit(rule: str) -> Open:
    def open_(model: nn.Module, stack: ExitStack) -> Run:
        from zennit import rules
        from zennit.canonizers import SequentialMergeBatchNorm
        from zennit.composites import LayerMapComposite
        from zennit.layer import Sum
        from zennit.torchvision import ResNetCanonizer
        from zennit.types import Activation, AvgPool, BatchNorm, Linear

        hook = {
            "epsilon": lambda: rules.Epsilon(1e-6),
            "z-plus": lambda: rules.ZPlus(zero_params=None),
            "gamma": lambda: rules.Gamma(0.25),
            "alpha-beta": lambda: rules.AlphaBeta(2, 1),
        }[rule]()
        # The stabilisers of sums and pools are no part of the rule that is compared.
        layers = [
            (Activation, rules.Pass()),
            (BatchNorm, rules.Pass()),
            (Sum, rules.Norm(1e-9)),
            (AvgPool, rules.Norm(1e-9)),
            (Linear, hook),
        ]
        residual = type(model).__name__ == "ResNet"
        canonizers = [ResNetCanonizer() if residual else SequentialMergeBatchNorm()]
        composite = LayerMapComposite(layers, canonizers=canonizers)
        modified = stack.enter_context(composite.context(copy.deepcopy(model)))

        def run(x: Tensor) -> Tensor:
            leaf = x.detach().clone().requires_grad_()
            chosen = modified(leaf)[:, 0]
            # zennit starts from relevance: the output itself in place of 1.
            (found,) = torch.autograd.grad(chosen, leaf, chosen.detach())
            return found

        return run

    return open_


def _captum(model: nn.Module, _: ExitStack) -> Run:
    from captum.attr import LRP

    explainer = LRP(copy.deepcopy(model))

    def run(x: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Tensor = explainer.attribute(x.detach().clone().requires_grad_(), target=0)
        return found.detach()

    return run


def _autolrp(model: nn.Module, _: ExitStack) -> Run:
    import autolrp

    model = copy.deepcopy(model)
    config = autolrp.LRPConfig(rule={**autolrp.BASE, **autolrp.CPLRP})

    def run(x: Tensor) -> Tensor:
        leaf = autolrp.tensor(x.detach().clone())
        model(leaf)[:, 0].sum().lrp(config=config)
        found: Tensor = leaf.relevance.detach().as_subclass(Tensor)
        return found

    return run


def _lxt(model: nn.Module, _: ExitStack) -> Run:
    from lxt.efficient import monkey_patch

    inner = getattr(model, "inner", model)
    monkey_patch(sys.modules[type(inner).__module__])
    return gradient_of(model)


def _everywhere(rule: Epsilon | Gamma | ZPlus | AlphaBeta) -> Composite:
    return Composite([(AnyLinear, rule)])


_RULES = {
    "LRP-0": _everywhere(Epsilon(0)),
    "epsilon": _everywhere(Epsilon(1e-6)),
    "z-plus": _everywhere(ZPlus()),
    "gamma": _everywhere(Gamma(0.25)),
    "alpha-beta": _everywhere(AlphaBeta(2, 1)),
    "AttnLRP": composites.AttnLRP(),
    "AttnLRP epsilon": composites.AttnLRP(1e-6),
    "CPLRP": composites.CPLRP(),
    "CPLRP epsilon": composites.CPLRP(1e-6),
    "EpsilonPlus": composites.EpsilonPlus(),
    "EpsilonPlusFlat": composites.EpsilonPlusFlat(),
    "EpsilonAlpha2Beta1": composites.EpsilonAlpha2Beta1(),
    "EpsilonAlpha2Beta1Flat": composites.EpsilonAlpha2Beta1Flat(),
    "EpsilonGammaBox": composites.EpsilonGammaBox(-5.0, 5.0),
    "ExcitationBackprop": composites.ExcitationBackprop(),
    "GuidedBackprop": composites.GuidedBackprop(),
    "DeconvNet": composites.DeconvNet(),
}
_PEERS: dict[str, Open] = {f"zennit {rule}": _zennit(rule) for rule in ("epsilon", "z-plus", "gamma", "alpha-beta")}

SUBJECTS: dict[str, Subject] = {
    "forward": Subject("forward", "", "torch", _forward),
    **{f"lrphooks {rule}": Subject(f"lrphooks {rule}", rule, "lrphooks", _lrphooks(c)) for rule, c in _RULES.items()},
    **{name: Subject(name, name.removeprefix("zennit "), "zennit", open_) for name, open_ in _PEERS.items()},
    "captum epsilon": Subject("captum epsilon", "", "captum", _captum),
    "autoLRP CPLRP": Subject("autoLRP CPLRP", "", "autolrp", _autolrp),
    "LXT AttnLRP": Subject("LXT AttnLRP", "", "lxt", _lxt, alone=True),
}
#: What ``--compile`` adds. The better of the two gradients is what compiled relevance is to be held against.
COMPILED = (
    Subject("gradient, compiled", "", "torch", _compiled, compiled=True),
    Subject("gradient as one graph, compiled", "", "torch", _one_graph, compiled=True),
    *(
        Subject(f"lrphooks {rule}, compiled", rule, "lrphooks", _lrphooks_compiled(_RULES[rule]), compiled=True)
        for rule in ("epsilon", "gamma")
    ),
)
#: The subjects of a quick run.
QUICK = (
    "forward", "lrphooks LRP-0", "lrphooks epsilon", "lrphooks z-plus", "lrphooks gamma", "lrphooks alpha-beta",
    "lrphooks AttnLRP", "zennit epsilon", "zennit z-plus", "zennit gamma", "captum epsilon",
)  # fmt: skip
