"""What is left of a call once its result is dropped: no node of its graph, no input, no model.

Nodes of autograd hold Python objects where the garbage collector does not see it, so a cycle through one is never
freed, and each call would keep its whole graph and its model for ever.
"""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import lrphooks
from lrphooks import Composite, adapters, baselines, composites, concepts, evaluation, targets
from lrphooks.engine import containers
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, Gradient, Identity, Pass, Uniform
from small_networks import Vgg, network


class Canary:
    """Lives as long as what holds it."""

    __slots__ = ("__weakref__",)


class Watch:
    """Weak references to whatever a call makes: a canary on each node of the graph, and the output of each module."""

    def __init__(self, model):
        self.made = []
        for module in model.modules():
            module.register_forward_hook(self._hook)

    def _hook(self, module, args, output):
        for tensor in containers.tensors(output):
            self.made.append(("output", weakref.ref(tensor)))
            self.walk(tensor.grad_fn)

    def walk(self, node):
        waiting = [node]
        while waiting:
            node = waiting.pop()
            if node is None or "canary" in node.metadata:
                continue
            canary = node.metadata["canary"] = Canary()
            self.made.append((node.name(), weakref.ref(canary)))
            waiting += [behind for behind, _ in node.next_functions]

    @property
    def alive(self):
        return sorted({name for name, reference in self.made if reference() is not None})


def left_behind(call, make):
    """What is alive of a call whose result was dropped, and of its model, without a run of the garbage collector."""
    model, x = make()
    watch = Watch(model)
    given = weakref.ref(x)
    gc.collect()
    gc.disable()
    # What is there already takes no part, so that looking for what is new takes no time.
    gc.freeze()
    try:
        result = call(model, x)
        del result, x
        alive = watch.alive
        if given() is not None:
            alive.append("the input")
        reference = weakref.ref(model)
        del model
        if reference() is not None:
            alive.append("the model")
    finally:
        gc.unfreeze()
        gc.enable()
    assert watch.made, "nothing was watched: this case tests nothing"
    return alive


# --- models ----------------------------------------------------------------------------------------------------


class Parts(nn.Module):
    """Parts named by letters, and a function of them and the input."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


class Cube(torch.autograd.Function):
    """A function of the model's own."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


def vision(function, **parts):
    return lambda: (Parts(function, **{n: make() for n, make in parts.items()}).eval(), torch.randn(2, 3, 6, 6))


def dense(function, **parts):
    return lambda: (Parts(function, **{n: make() for n, make in parts.items()}).eval(), torch.randn(2, 6))


def sequence(function, **parts):
    return lambda: (Parts(function, **{n: make() for n, make in parts.items()}).eval(), torch.randn(2, 5, 6))


def hooked(make):
    def made():
        model, x = make()
        for module in list(model.modules()):
            module.register_full_backward_hook(lambda module, given, taken: None)
        return model, x

    return made


def layer(n=6, m=6):
    return lambda: nn.Linear(n, m)


def conv():
    return nn.Conv2d(3, 3, 3, padding=1)


def norm():
    return nn.BatchNorm2d(3)


def frozen(name):
    model, x = MODELS[name]()
    return model.requires_grad_(False), x


MODELS = {
    **{name: (lambda name=name: network(name, dtype=torch.float32)) for name in ("vgg", "residual", "tokens", "gates")},
    "BatchNorm": vision(lambda s, x: s.h(F.relu(s.n(s.c(x))).mean((2, 3))), c=conv, n=norm, h=layer(3, 4)),
    "frozen BatchNorm": lambda: frozen("BatchNorm"),
    "frozen tokens": lambda: frozen("tokens"),
    "frozen vgg": lambda: frozen("vgg"),
    "hooks": hooked(vision(lambda s, x: s.h(F.relu(s.n(s.c(x))).mean((2, 3))), c=conv, n=norm, h=layer(3, 4))),
    "hooked Vgg": hooked(lambda: (Vgg(inplace=False).eval(), torch.randn(2, 3, 8, 8))),
    "LSTM": sequence(lambda s, x: s.h(s.r(x)[0][:, -1]), r=lambda: nn.LSTM(6, 5, batch_first=True), h=layer(5, 4)),
    "two GRUs": sequence(
        lambda s, x: s.h(s.r(x)[0][:, -1]),
        r=lambda: nn.GRU(6, 5, num_layers=2, bidirectional=True, batch_first=True),
        h=layer(10, 4),
    ),
    "LSTM cell": dense(lambda s, x: s.h(s.r(x, s.r(x))[0]), r=lambda: nn.LSTMCell(6, 5), h=layer(5, 4)),
    "checkpoint": dense(
        lambda s, x: s.h(checkpoint(lambda h: F.gelu(s.b(h)) * 2, F.relu(s.a(x)), use_reentrant=False)),
        a=layer(), b=layer(), h=layer(6, 4),
    ),
    "written softmax": dense(
        lambda s, x: s.h((e := torch.exp(s.a(x))) / e.sum(-1, keepdim=True) * s.b(x)), a=layer(), b=layer(),
        h=layer(6, 4),
    ),
    "attention": sequence(
        lambda s, x: s.h((x + s.t(x, x, x, need_weights=False)[0]).mean(1)),
        t=lambda: nn.MultiheadAttention(6, 2, batch_first=True), h=layer(6, 4),
    ),
    "activation passed": dense(
        lambda s, x: s.h(s.p(s.a(x))), a=layer(), p=lambda: Parts(lambda s, x: torch.tanh(x) * 2), h=layer(6, 4)
    ),
    "function": dense(lambda s, x: s.h(Cube.apply(s.a(x)) + x), a=layer(), h=layer(6, 4)),
    "moved": dense(
        lambda s, x: s.h(torch.cat([part * 2 for part in s.a(x).view(2, 3, 2).transpose(0, 1).unbind()], 1)),
        a=layer(), h=layer(6, 4),
    ),
    "several": dense(lambda s, x: s.h(sum(s.a(x) for _ in range(3)).relu_() * s.a(x)), a=layer(), h=layer(6, 4)),
}  # fmt: skip


RECURRENT = ("LSTM", "two GRUs", "LSTM cell")


def fitting(name, composite=None):
    """A composite that serves a model, with rules of first layers, links and passing modules where it can."""
    composite = composite or (composites.EpsilonPlus if name in RECURRENT else composites.EpsilonPlusFlat)()
    parts = [("p", Pass())] if name == "activation passed" else []
    return Composite([*parts, (Cube, Identity()), *composite.entries])


COMPOSITES = {
    "flat": composites.EpsilonPlusFlat,
    "AttnLRP": composites.AttnLRP,
    "filter": lambda: composites.EpsilonPlusFlat().filtered(50),
    "sums": lambda: Composite([((torch.add, torch.mul), Epsilon(0.1)), (AnyLinear, Epsilon(0.1))]),
    "softmax": lambda: Composite([(torch.softmax, Gradient()), (torch.mul, Uniform()), (AnyLinear, Epsilon(0.1))]),
}


# --- calls -----------------------------------------------------------------------------------------------------


def context(**options):
    """An ordinary backward pass in a context."""

    def call(model, x, composite):
        y = x.clone().requires_grad_()
        with composite.context(model):
            model(y)[:, 0].sum().backward(**options)
        return y.grad

    return call


def forward_only(model, x, composite):
    with composite.context(model):
        return model(x.clone().requires_grad_())


def backward_twice(model, x, composite):
    y = x.clone().requires_grad_()
    with composite.context(model):
        output = model(y)
    (first,) = torch.autograd.grad(output[:, 0].sum(), y, create_graph=True)
    return torch.autograd.grad(first.square().sum(), [y, *(p for p in model.parameters())], allow_unused=True)


def not_differentiated(model, x, composite):
    y = x.clone().requires_grad_()
    with composite.context(model):
        output = model(y)
    return torch.autograd.grad(output[:, 0].sum(), y, create_graph=True)


class StopError(Exception):
    pass


def raising(error, *, first, how):
    """A model that raises where its first or its last module ends."""

    def call(model, x, composite):
        def stop(module, args, output):
            raise error

        modules = [m for m in model.modules() if not list(m.children())]
        modules[0 if first else -1].register_forward_hook(stop)
        with pytest.raises(error):
            how(model, x, composite)

    return call


def names(model):
    return [name for name, module in model.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]


CALLS = {
    "lrp": lambda model, x, composite: lrphooks.lrp(model, x, 1, composite),
    "explain": lambda model, x, composite: lrphooks.explain(model, x, None, composite),
    "record": lambda model, x, composite: lrphooks.explain(model, x, 1, composite, record=names(model)),
    "record and parameters": lambda model, x, composite: lrphooks.explain(
        model.requires_grad_(), x, 1, composite, record={names(model)[0]: str}, parameters=True
    ),
    "lrp_targets": lambda model, x, composite: lrphooks.lrp_targets(model, x, [0, 1, 2], composite),
    "one target at a time": lambda model, x, composite: lrphooks.lrp_targets(model, x, [0, 1], composite, budget=1),
    "audit": lambda model, x, composite: str(lrphooks.audit(model, x, 1, composite)),
    "conditional_relevance": lambda model, x, composite: concepts.conditional_relevance(
        model, x, [{names(model)[0]: [0, 1]}, {names(model)[-1]: 0, names(model)[0]: 1}], 1, composite
    ),
    "relevant_channels": lambda model, x, composite: concepts.relevant_channels(
        model, x, names(model)[0], 1, composite, top=2
    ),
    "maximizing_inputs": lambda model, x, composite: concepts.maximizing_inputs(
        model, [x, (x, torch.tensor([0, 1]))], names(model)[0], [0, 1], None, composite
    ),
    "most active inputs": lambda model, x, composite: concepts.maximizing_inputs(
        model, [x, x], names(model)[0], by="activation"
    ),
    "context": context(),
    "retained graph": context(retain_graph=True),
    "forward only": forward_only,
    "backward twice": backward_twice,
    "not differentiated": not_differentiated,
}
for error in (StopError, KeyboardInterrupt):
    for first in (True, False):
        place = f"{error.__name__} in the {'first' if first else 'last'}"
        for how in ("context", "record", "audit", "conditional_relevance"):
            CALLS[f"{place}, {how}"] = raising(error, first=first, how=CALLS[how])

#: One call of each kind.
KINDS = (
    "record and parameters",
    "audit",
    "context",
    "forward only",
    "not differentiated",
    "StopError in the last, record",
)


@pytest.mark.parametrize(
    ("name", "call"),
    [(name, call) for name in ("residual", "tokens") for call in CALLS]
    + [(name, call) for name in MODELS if name not in ("residual", "tokens") for call in KINDS],
)
def test_nothing_is_left_of_a_call(name, call):
    composite = fitting(name)
    assert not left_behind(lambda model, x: CALLS[call](model, x, composite), MODELS[name])


@pytest.mark.parametrize("composite", COMPOSITES)
@pytest.mark.parametrize("call", ["record", "audit", "forward only"])
def test_nothing_is_left_under_any_rules(call, composite):
    for name in ("residual", "tokens", "written softmax"):
        rules = fitting(name, COMPOSITES[composite]())
        assert not left_behind(lambda model, x, rules=rules: CALLS[call](model, x, rules), MODELS[name])


#: Whatever else explains a model, judges it or shows what was found.
OTHERS = {
    "baseline Gradient": baselines.Gradient(),
    "baseline InputXGradient": baselines.InputXGradient(),
    "baseline IntegratedGradients": baselines.IntegratedGradients(steps=4, tolerance=1e3),
    "baseline SmoothGrad": baselines.SmoothGrad(composites.EpsilonPlus(), samples=2),
    "baseline Occlusion": baselines.Occlusion(4, 4),
    "baseline GradCAM": baselines.GradCAM(),
    "metric PixelFlipping": evaluation.PixelFlipping(patch=4),
    "metric MaxSensitivity": evaluation.MaxSensitivity(samples=2),
    "metric ParameterRandomisation": evaluation.ParameterRandomisation(),
    "metric ConservationError": evaluation.ConservationError(),
    "metric Complexity": evaluation.Complexity(),
    "Captum": lambda model, x: adapters.CaptumAttribution(model, composites.EpsilonPlus()).attribute(x, target=1),
    "Quantus": lambda model, x: adapters.quantus_explain(model, x.numpy(), [1, 2]),
    "compiled": lambda model, x: lrphooks.compiled(model, composites.EpsilonPlus(), backend="eager")(x, 1),
    "picture": lambda model, x: lrphooks.explain(model, x, 1).picture(),
    "notebook": lambda model, x: lrphooks.explain(model, x, 1, record="classifier")._repr_html_(),
    "difference of targets": lambda model, x: lrphooks.lrp(model, x, targets.Difference(1, 2)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_nothing_is_left_of_what_is_built_on_it(name):
    other = OTHERS[name]

    def call(model, x):
        if isinstance(other, baselines.Baseline):
            return lrphooks.explain(model, x, 1, other)
        if isinstance(other, evaluation.Metric):
            return other(model, x, [1, 2], composites.EpsilonPlus())
        return other(model, x)

    assert not left_behind(call, MODELS["vgg"])


@pytest.mark.parametrize("call", [call for call in CALLS if " in the " not in call])
def test_memory_stays_flat(call):
    """Also where one explains the same model over and over: no call leaves an object, of whatever kind."""
    model, x = MODELS["residual"]()
    composite = fitting("residual")

    def objects(calls):
        for _ in range(calls):
            CALLS[call](model, x, composite)
        gc.collect()
        return len(gc.get_objects())

    objects(2)
    before = objects(1)
    assert objects(20) - before < 10
