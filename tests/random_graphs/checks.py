"""What each graph is asked, and what is wrong with the answers."""

import copy
from functools import partial

import torch

import lrphooks
from lrphooks import Composite, composites
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, Gamma

from .graph import input_of, model_of
from .oracle import RULES, Interpreter, Open

TOLERANCE = 1e-9
COMPOSITES = {
    "AttnLRP": lambda model: composites.AttnLRP(epsilon=0.0),
    "AttnLRP(1e-3)": lambda model: composites.AttnLRP(epsilon=1e-3),
    "CPLRP": lambda model: composites.CPLRP(epsilon=0.0),
    "Epsilon": lambda model: Composite([(AnyLinear, Epsilon(0.25))]),
    "Gamma": lambda model: Composite([(AnyLinear, Gamma(0.25))]),
    "ExcitationBackprop": lambda model: composites.ExcitationBackprop(),
    "EpsilonPlus": lambda model: composites.EpsilonPlus(),
    "EpsilonPlusFlat": lambda model: composites.EpsilonPlusFlat(),
    "EpsilonAlpha2Beta1": lambda model: composites.EpsilonAlpha2Beta1(),
    "EpsilonGammaBox": lambda model: composites.EpsilonGammaBox(-3.0, 3.0),
    "GammaDecay": lambda model: composites.GammaDecay(model, -3.0, 3.0),
}
assert list(COMPOSITES) == list(RULES)
#: Rules whose relevance is smooth enough that finite differences tell its derivative.
SMOOTH = ("AttnLRP", "CPLRP", "Epsilon")


def in_context(model, x, composite, **options):
    """Relevance by an ordinary backward pass in a context."""
    leaf = x.clone().requires_grad_()
    with composite.context(model):
        value = model(leaf)[:, 1].sum()
        (found,) = torch.autograd.grad(value, leaf, **options)
    return found, leaf


def hooked(model):
    """A copy of the model with backward hooks that do nothing on every module."""
    model = copy.deepcopy(model)
    for module in model.modules():
        module.register_full_backward_hook(lambda *_: None)
    return model


def frozen(model):
    """A copy of the model whose parameters need no gradient."""
    return copy.deepcopy(model).requires_grad_(requires_grad=False)


#: Ways to ask for the relevance of output 1.
WAYS = {
    "lrp": lambda m, x, c: lrphooks.lrp(m, x, 1, c),
    "context": lambda m, x, c: in_context(m, x, c)[0],
    "create_graph": lambda m, x, c: in_context(m, x, c, create_graph=True)[0].detach(),
    "record": lambda m, x, c: lrphooks.explain(m, x, 1, c, record="head").relevance,
    "lrp_targets": lambda m, x, c: lrphooks.lrp_targets(m, x, [0, 1, 2], c)[1],
    "parameters": lambda m, x, c: lrphooks.explain(m, x, 1, c, parameters=True).relevance,
    "frozen": lambda m, x, c: lrphooks.lrp(frozen(m), x, 1, c),
    "hooks": lambda m, x, c: lrphooks.lrp(hooked(m), x, 1, c),
}


def ways_for(graph, allowed):
    """The ways that a graph is asked in: all but those that do not hold yet."""
    left_out = set()
    if "gate through hooks" not in allowed and any(n.kind == "mul" and n.form == "module" for n in graph.nodes):
        left_out.add("hooks")
    if "record and checkpoint" not in allowed and graph.blocks:
        left_out |= {"record", "recorded", "hooks"}
    return [way for way in (*WAYS, "recorded") if way not in left_out]


def recorded(graph, model, x, composite, interpreter):
    """How far the relevance that arrives at the outputs of layers is from what it is by definition.

    interpreter: what told of the relevance of the same composite last.
    """
    wanted = {}
    merged = {node.module for node in graph.nodes if node.kind == "layer and norm"}
    for k, node in enumerate(graph.nodes, 1):
        if node.kind == "layer" and interpreter.constant[node.inputs[0]]:
            # It is a constant too, and what a sum hands to it is absorbed.
            merged.add(node.module)
        if node.kind == "layer" and node.form == "module" and node.module not in merged:
            wanted.setdefault(f"m{node.module}", []).append(interpreter.values[k] * interpreter.G[k])
    if not wanted:
        return 0.0
    found = lrphooks.explain(model, x, 1, composite, record=list(wanted)).recorded
    pairs = []
    for name, expected in wanted.items():
        actual = found[name] if isinstance(found[name], tuple) else (found[name],)
        pairs += zip(actual, expected, strict=True)
    # Nothing arrives at a layer whose result a constant is made of.
    return max(apart(a, e) if e.abs().max() > 1e-12 else float(a.abs().max()) for a, e in pairs)


def runs(graph):
    """Whether the model has a plain gradient, so that what it writes over is right for torch."""
    x = input_of(graph)
    try:
        model_of(graph)(x.requires_grad_())[:, 1].sum().backward()
    except RuntimeError:
        return False
    return True


def writes_to_hooked(graph):
    """Whether something is written over that a module with a backward hook made, which torch refuses."""
    try:
        hooked(model_of(graph))(input_of(graph).requires_grad_())
    except RuntimeError:
        return True
    return False


def apart(actual, expected):
    """The largest difference over the largest value."""
    return float((actual - expected).abs().max() / expected.abs().max().clamp(min=1e-30))


def failures(graph, names=tuple(COMPOSITES), allowed=frozenset(), *, audit=True, second=False):
    """What is wrong, one line each, ``composite, way: what``; nothing where all is right."""
    found = []
    x, model = input_of(graph), model_of(graph)
    interpreter = Interpreter(graph, model, x)
    value = model(x).detach()
    if apart(value, interpreter.output) > 1e-10:
        return [f"oracle, value: off by {apart(value, interpreter.output):.2g}"]
    ways = ways_for(graph, allowed)
    if writes_to_hooked(graph):
        ways = [way for way in ways if way != "hooks"]
    for name in names:
        expected = by_definition(interpreter, name)
        # Nothing may arrive, as where all contributions are negative under z-plus.
        if expected is not None and expected.abs().max() > 1e-12:
            asked = {way: partial(compared, WAYS[way], model, x, name, expected) for way in ways if way in WAYS}
            if "recorded" in ways:
                asked["recorded"] = partial(recorded, graph, model, x, COMPOSITES[name](model), interpreter)
            if audit:
                asked["audit"] = partial(unexplained, model, x, name)
            for way, measure in asked.items():
                found += told(f"{name}, {way}", measure)
            if second and name in SMOOTH:
                found += told(f"{name}, second derivative", partial(curvature, graph, model, x, name), 1e-5)
    return found


def by_definition(interpreter, name):
    """Relevance as the oracle has it, or None where it is left open."""
    try:
        return interpreter.relevance(name, 1)
    except Open:
        return None


def compared(ask, model, x, name, expected):
    """How far relevance, asked for in one way, is from what it is by definition."""
    return apart(ask(model, x, COMPOSITES[name](model)), expected)


def unexplained(model, x, name):
    """What the audit cannot explain."""
    return lrphooks.audit(model, x, 1, COMPOSITES[name](model)).unexplained


def told(what, measure, tolerance=TOLERANCE):
    """A line where a measure raises or is too large."""
    try:
        number = measure()
    except Exception as error:  # noqa: BLE001 whatever it raises, it is a failure
        return [f"{what}: {type(error).__name__}: {' '.join(str(error).split())[:160]}"]
    return [] if number <= tolerance else [f"{what}: off by {number:.2g}"]


def curvature(graph, model, x, name):
    """How far the derivative of relevance along a direction is from finite differences of the oracle."""
    generator = torch.Generator().manual_seed(7)
    step, weights = torch.randn(2, *x.shape, dtype=x.dtype, generator=generator)
    relevance, leaf = in_context(model, x, COMPOSITES[name](model), create_graph=True)
    (gradient,) = torch.autograd.grad((relevance * weights).sum(), leaf)
    size = 1e-6
    around = [(Interpreter(graph, model, x + s * size * step).relevance(name, 1) * weights).sum() for s in (1, -1)]
    expected = float(around[0] - around[1]) / (2 * size)
    return abs(float((gradient * step).sum()) - expected) / max(1.0, abs(expected))
