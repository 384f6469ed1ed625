"""Compiled explanations: equal to ``lrphooks.lrp``, one graph for many calls, and never out of date."""

import copy
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrphooks
from counting import PRODUCTS, cost
from lrphooks import LRPError, composites, targets
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, Gamma
from small_networks import NETWORKS, PRESETS, equal, every_layer, network

#: What torch's compiler warns of in its own code.
pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture
def uncompiled():
    """Run graphs as they are traced: what a compiler makes of them is its own business."""
    torch.compiler.set_stance("force_eager")
    yield
    torch.compiler.set_stance("default")


class Recurrent(nn.Module):
    """A bidirectional LSTM over the pixels, and a head on its last state."""

    def __init__(self):
        super().__init__()
        self.lstm, self.head = nn.LSTM(3, 5, batch_first=True, bidirectional=True), nn.Linear(10, 4)

    def forward(self, x):
        return self.head(self.lstm(x.flatten(2).transpose(1, 2)[:, :4])[0][:, -1])


class Fused(nn.Module):
    """torch's encoder layer and its fused attention, and tanh, whose slope at 0 is a limit."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 4)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")

    def forward(self, x):
        return self.head(self.layer(self.embed(x.flatten(2).transpose(1, 2))).mean(1).tanh())


@pytest.fixture(autouse=True)
def more_networks(monkeypatch):
    monkeypatch.setitem(NETWORKS, "recurrent", Recurrent)
    monkeypatch.setitem(NETWORKS, "fused", Fused)


CASES = [
    ("residual", "EpsilonPlus"), ("residual", "EpsilonPlusFlat"), ("residual", "EpsilonAlpha2Beta1"),
    ("residual", "EpsilonGammaBox"), ("vgg", "ExcitationBackprop"), ("vgg", "GuidedBackprop"),
    ("strange", "EpsilonAlpha2Beta1Flat"), ("gates", "EpsilonPlus"), ("tokens", "AttnLRP"), ("tokens", "CPLRP"),
    ("fused", "AttnLRP"), ("recurrent", "EpsilonPlus"),
]  # fmt: skip


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("name", "preset"), CASES)
def test_equal_to_lrp_and_one_graph_for_all_batch_sizes(name, preset):
    model, x = network(name)
    composite, state = PRESETS[preset](), copy.deepcopy(model.state_dict())
    explainer = lrphooks.compiled(model, composite, dynamic=True)
    for rows in (x, torch.cat((x, x.flip(0) / 2, x + 1))):
        found = explainer.explain(rows, 1)
        equal(found.relevance, lrphooks.lrp(model, rows, 1, composite))
        with torch.no_grad():
            equal(found.explained, model(rows)[:, 1])
    assert len(explainer.graphs) == 1
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert x.grad is None
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(("dynamic", "graphs"), [(True, [1, 1, 1, 2]), (None, [1, 2, 2, 3]), (False, [1, 2, 3, 4])])
def test_when_a_graph_is_traced_again(dynamic, graphs):
    model, x = network("functional")
    explainer = lrphooks.compiled(model, dynamic=dynamic)
    found = []
    for rows in (2, 3, 5, 1):
        batch = torch.randn(rows, *x.shape[1:], dtype=x.dtype)
        equal(explainer(batch), lrphooks.lrp(model, batch))
        found.append(len(explainer.graphs))
    assert found == graphs


@pytest.mark.usefixtures("uncompiled")
def test_an_image_size_may_vary_too():
    model, _ = network("strange")
    explainer = lrphooks.compiled(model)
    for side in (4, 6, 8, 10):
        x = torch.randn(2, 3, side, side, dtype=torch.float64)
        equal(explainer(x, 2), lrphooks.lrp(model, x, 2))
    assert len(explainer.graphs) == 2


def test_compiled_once_as_a_whole():
    """The compiler is handed one graph for all sizes, with nothing left to Python."""
    handed = []

    def backend(module, inputs):
        handed.append(module)
        return module.forward

    model, x = network("residual")
    explainer = lrphooks.compiled(model, dynamic=True, backend=backend)
    for rows in (x, torch.cat((x, x)), torch.cat((x, x, x))):
        equal(explainer(rows, 0), lrphooks.lrp(model, rows, 0))
    assert len(handed) == 1


@pytest.mark.parametrize("device", DEVICES)
def test_compiled_by_inductor_with_cuda_graphs_where_there_are_any(device, tmp_path, monkeypatch):
    """What a call returned stays good after the next one."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double().to(device)
    composite = every_layer(Gamma())
    explainer = lrphooks.compiled(model, composite, dynamic=True, mode="reduce-overhead")
    batches = [torch.randn(rows, 6, dtype=torch.float64, device=device) for rows in (2, 2, 4)]
    found = [explainer(x, 1) for x in batches]
    for x, relevance in zip(batches, found, strict=True):
        equal(relevance, lrphooks.lrp(model, x, 1, composite))
    assert len(explainer.graphs) == 1


# --- targets and inputs ----------------------------------------------------------------------------------------------


def largest(output):
    return output.amax(1)


@pytest.mark.usefixtures("uncompiled")
def test_indices_share_a_graph_and_other_targets_have_their_own():
    model, x = network("functional")
    model.class_names = ["cat", "dog", "cow", "owl"]
    explainer = lrphooks.compiled(model)
    for target, graphs in (
        (1, 1), (3, 1), (-1, 1), ("owl", 1), ([0, 3], 2), (torch.tensor([2, 1]), 2), (None, 3), (largest, 4),
        (targets.Difference("cat", "dog"), 5), (targets.Difference("cat", "dog"), 5), (largest, 5),
    ):  # fmt: skip
        equal(explainer(x, target), lrphooks.lrp(model, x, target))
        assert len(explainer.graphs) == graphs


class Masked(nn.Module):
    """Two inputs and a keyword, one of them of integers."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 3), nn.Linear(5, 3)

    def forward(self, x, pair, *, mask=None):
        h = self.a(x).relu() + self.b(pair["second"])
        return h if mask is None else h * mask


@pytest.mark.usefixtures("uncompiled")
def test_structures_of_inputs():
    model, given = Masked(), (torch.randn(2, 4), {"second": torch.randn(2, 5)})
    mask = {"mask": torch.tensor([[1, 0, 1]])}
    explainer = lrphooks.compiled(model)
    for kwargs in (None, mask):
        found, expected = explainer(given, 2, kwargs=kwargs), lrphooks.lrp(model, given, 2, kwargs=kwargs)
        if kwargs:
            assert found[1] == expected[1] == {"mask": None}
            found, expected = found[0], expected[0]
        equal(found[0], expected[0])
        equal(found[1]["second"], expected[1]["second"])
    assert len(explainer.graphs) == 2


@pytest.mark.usefixtures("uncompiled")
def test_memory_formats_and_types():
    model, x = network("residual")
    explainer, model32 = lrphooks.compiled(model), copy.deepcopy(model).float()
    expected = lrphooks.lrp(model, x, 0)
    strided = torch.cat((x, x), 3)[..., :8]
    for given in (x, x.contiguous(memory_format=torch.channels_last), strided):
        equal(explainer(given, 0), expected)
    assert len(explainer.graphs) == 2
    equal(lrphooks.compiled(model32)(x.float(), 0).double(), expected, tol=1e-5)


def test_channels_last_through_torch_compile():
    """What the rules write into other tensors passes the tracer of torch.compile in any memory format."""
    model, x = network("residual")
    explainer = lrphooks.compiled(model, every_layer(Gamma()), backend="eager")
    expected = lrphooks.lrp(model, x, 0, every_layer(Gamma()))
    found = explainer(x.contiguous(memory_format=torch.channels_last), 0)
    equal(found, expected)


@pytest.mark.usefixtures("uncompiled")
def test_autocast_has_its_own_graph():
    model, x = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(2, 4)
    explainer = lrphooks.compiled(model)
    outside = explainer(x, 0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = explainer(x, 0)
        equal(inside, lrphooks.lrp(model, x, 0), tol=1e-6)
    assert not torch.equal(inside, outside)
    assert len(explainer.graphs) == 2


# --- the model changes -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("uncompiled")
def test_values_that_change_in_place_are_seen_without_another_graph():
    model, x = network("residual")
    composite = PRESETS["EpsilonGammaBox"]()
    explainer = lrphooks.compiled(model, composite)
    before = explainer(x, 0)
    with torch.no_grad():
        model.conv1.weight.mul_(-1)
        model.bn2.running_var.add_(1)
    model.fc.weight.data = model.fc.weight.data.flip(1)
    changed = explainer(x, 0)
    assert not torch.allclose(before, changed)
    equal(changed, lrphooks.lrp(model, x, 0, composite))
    assert len(explainer.graphs) == 1


def exchange_parameter(model):
    model.fc.weight = nn.Parameter(model.fc.weight.detach() * 2)


def exchange_module(model):
    model.relu = nn.SiLU()


def change_plain_attribute(model):
    model.bn.eps = 1.0


def add_hook(model):
    model.conv2.register_forward_hook(lambda module, args, output: output * 2)


CHANGES = {f.__name__: f for f in (exchange_parameter, exchange_module, change_plain_attribute, add_hook)}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("change", [*CHANGES.values(), nn.Module.train], ids=[*CHANGES, "train"])
def test_another_model_has_another_graph(change):
    model, x = network("residual")
    explainer = lrphooks.compiled(model)
    before = explainer(x, 0)
    change(model)
    reference = copy.deepcopy(model)
    changed = explainer(x, 0)
    equal(changed, lrphooks.lrp(reference, x, 0))
    assert not torch.allclose(before, changed)
    assert len(explainer.graphs) == 2


@pytest.mark.usefixtures("uncompiled")
def test_statistics_in_training_mode_change_as_in_a_forward_pass():
    """Tracing by itself counts no batch."""
    model, x = network("residual", train=True)
    reference = copy.deepcopy(model)
    explainer = lrphooks.compiled(model)
    for _ in range(2):
        explainer(x, 0)
        reference(x)
    assert len(explainer.graphs) == 1
    for key, value in reference.state_dict().items():
        # Of activations that lie otherwise in memory, so summed in another order.
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-12, atol=1e-12, msg=key)
    assert model.bn.num_batches_tracked == 2


@pytest.mark.usefixtures("uncompiled")
def test_inside_of_a_context_and_without_gradients():
    model, x = network("functional")
    explainer, expected = lrphooks.compiled(model), lrphooks.lrp(model, x, 0)
    with torch.inference_mode():
        equal(explainer(x, 0), expected)
    with torch.no_grad():
        equal(explainer(x, 0), expected)
    with pytest.warns(UserWarning, match="without a forward pass"), composites.EpsilonAlpha2Beta1().context(model):
        equal(explainer(x, 0), expected)


def test_compiled_while_contexts_of_its_own_thread_are_open():
    """A context of another thread may meet functions that were compiled, so it keeps the whole process eager."""
    handed, traced = [], []

    def backend(module, inputs):
        handed.append(module)
        return module.forward

    @torch.compile(backend="eager")
    def function(z):
        traced.append(torch.compiler.is_compiling())
        return z * 2

    model, x = network("functional")
    other, y = network("residual")
    y.requires_grad_()
    expected = lrphooks.lrp(model, x, 0)
    explainer = lrphooks.compiled(model, backend=backend)
    opened, done = threading.Event(), threading.Event()

    def elsewhere():
        with composites.EpsilonPlus().context(other):
            other(y)
            opened.set()
            done.wait()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    try:
        assert opened.wait(600)
        with composites.EpsilonPlus().context(other):
            other(y)
            equal(explainer(x, 0), expected)
            assert not handed
    finally:
        done.set()
        thread.join()
    with composites.EpsilonPlus().context(other), composites.EpsilonAlpha2Beta1().context(model):
        other(y)
        model(x.clone().requires_grad_())
        equal(explainer(x, 0), expected)
        assert len(handed) == 1
        # Everything else still runs as it is written.
        function(x)
        assert traced == [False]
    function(x)
    assert traced == [False, True]


# --- compiled models -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("uncompiled")
def test_a_compiled_model_is_explained_by_the_one_it_was_made_from():
    model, x = network("functional")
    explainer = lrphooks.compiled(torch.compile(model))
    assert explainer.model is model
    equal(explainer(x, 0), lrphooks.lrp(model, x, 0))


def test_a_context_for_a_compiled_model_names_the_way():
    model, x = network("functional")
    with pytest.raises(LRPError, match=r"lrphooks\.compiled\(model, composite\)"):
        lrphooks.lrp(torch.compile(model), x, 0)


def test_functions_that_are_compiled_by_themselves_become_part_of_the_graph():
    inner = torch.compile(lambda z: torch.tanh(z) * 2, backend="eager")

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return inner(self.fc(x))

    model, x = Model().double(), torch.randn(2, 4, dtype=torch.float64)
    model(x)
    equal(lrphooks.compiled(model, backend="eager")(x, 0), lrphooks.lrp(model, x, 0))


# --- errors ----------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    """Python decides on a value."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        h = self.fc(x)
        if h.sum() > 0:
            return h * 2
        return h


def by_value(output):
    return output[:, int(output.sum().item()) % 3]


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    ("model", "target"), [(Branching(), 0), (nn.Sequential(nn.Linear(4, 3)), by_value)], ids=["model", "target"]
)
def test_values_asked_for_while_tracing(model, target):
    message = r"cannot become a graph.*test_compilation\.py:\d+ asks for values.*torch\.where.*lrphooks\.lrp"
    hooks = len(model._forward_hooks)
    for _ in range(2):
        with pytest.raises(LRPError, match=message):
            lrphooks.compiled(model)(torch.randn(2, 4), target)
    assert len(model._forward_hooks) == hooks
    assert lrphooks.lrp(model, torch.randn(2, 4), target).shape == (2, 4)


@pytest.mark.usefixtures("uncompiled")
def test_errors_of_the_values_are_those_of_lrp():
    model, x = network("functional")
    explainer = lrphooks.compiled(model)
    explainer(x, 0)
    for given, target, kind, message in (
        (x, 4, ValueError, "target 4 is out of range for a model with 4 outputs"),
        (x, [0, 1, 2], ValueError, "3 targets were given for 2 rows"),
        (x, 0.5, TypeError, "a target is an integer or one integer a row, got 0.5"),
        (x * torch.nan, 0, LRPError, "the model's output contains NaN or infinite values"),
        (x.long(), 0, LRPError, "x has dtype torch.int64"),
        (x[..., :3], 0, RuntimeError, "mat1 and mat2|invalid for input|must match|a and b must have same"),
    ):
        with pytest.raises(kind, match=message):
            explainer(given, target)
    equal(explainer(x, 0), lrphooks.lrp(model, x, 0))


@pytest.mark.parametrize(
    ("arguments", "kind", "message"),
    [
        ({"composite": composites.EpsilonPlus}, TypeError, r"Did you mean EpsilonPlus\(\)\?"),
        ({"dynamic": 4}, TypeError, "dynamic is True, False or None, got 4"),
        ({"mode": "fast"}, RuntimeError, "fast"),
        ({"model": 3}, TypeError, r"Expected a torch\.nn\.Module"),
    ],
    ids=["composite", "dynamic", "mode", "model"],
)
def test_wrong_arguments(arguments, kind, message):
    with pytest.raises(kind, match=message):
        lrphooks.compiled(**{"model": nn.Linear(2, 2), **arguments})


@pytest.mark.usefixtures("uncompiled")
def test_a_target_made_anew_for_each_call(monkeypatch):
    monkeypatch.setattr("lrphooks.compilation.explainer._MOST", 2)
    explainer = lrphooks.compiled(nn.Sequential(nn.Linear(4, 3)))
    x = torch.randn(2, 4)
    for _ in range(2):
        explainer(x, lambda output: output[:, 0])
    with pytest.raises(LRPError, match=r"2 graphs were made for one model.*make it once"):
        explainer(x, lambda output: output[:, 0])


def test_what_an_explainer_prints():
    explainer = lrphooks.compiled(nn.Linear(2, 2), every_layer(Epsilon(0.5)), dynamic=True)
    assert repr(explainer) == (
        "<CompiledExplainer of Linear under Composite([(AnyLinear, Epsilon(epsilon=0.5))]), mode=None, dynamic=True, "
        "backend='inductor', options=None: 0 graphs>"
    )


# --- work ------------------------------------------------------------------------------------------------------------


def products(module):
    """The products with weights in a graph."""
    nodes = [n for n in module.graph.nodes if n.op == "call_function"]
    packets = [getattr(n.target, "overloadpacket", None) for n in nodes]
    backward = [
        sum(map(bool, n.args[-1][:2]))
        for n, p in zip(nodes, packets, strict=True)
        if p is torch.ops.aten.convolution_backward
    ]
    return sum(p in PRODUCTS for p in packets) + sum(backward)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("frozen", [False, True], ids=["learning", "frozen"])
@pytest.mark.parametrize(("name", "rule"), [("residual", Epsilon()), ("residual", Gamma()), ("vgg", Gamma())])
def test_a_graph_has_no_product_more_than_an_eager_pass_and_no_dead_operation(name, rule, frozen):
    model, x = network(name)
    model.requires_grad_(not frozen)
    composite = lrphooks.Composite([(AnyLinear, rule)])
    explainer = lrphooks.compiled(model, composite)
    explainer(x, 0)
    eager = cost(model, x, composite)
    module = explainer.graphs[0].module
    assert products(module) == eager.forward + eager.backward
    assert all(n.users for n in module.graph.nodes if n.op in ("call_function", "get_attr"))


@pytest.mark.usefixtures("uncompiled")
def test_activations_between_convolutions_are_laid_out_as_the_compiler_runs_them():
    """Channels last where they arrive: any other layout is a copy of each of them."""
    model, x = network("residual")
    explainer = lrphooks.compiled(model, every_layer(Epsilon()))
    equal(explainer(x, 0), lrphooks.lrp(model, x, 0, every_layer(Epsilon())))
    graph, aten = explainer.graphs[0].module.graph, torch.ops.aten
    convolutions = graph.find_nodes(op="call_function", target=aten.convolution.default)
    backward = graph.find_nodes(op="call_function", target=aten.convolution_backward.default)
    assert len(convolutions) == len(backward) == 4
    for node in (*convolutions, *backward):
        assert node.args[0].meta["val"].is_contiguous(memory_format=torch.channels_last), node
    # Of the input alone; what a ReLU is about to overwrite is copied as it lies.
    copies = [n for n in graph.nodes if n.target in (aten.clone.default, aten._to_copy.default)]
    laid_out = [n for n in copies if n.args[0].meta["val"].stride() != n.meta["val"].stride()]
    assert [n.meta["val"].shape for n in laid_out if n.meta["val"].dim() == 4] in ([], [x.shape])


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("name", ["residual", "transposed"])
def test_a_merged_batch_norm_scales_gradients_and_no_weight(name, monkeypatch):
    monkeypatch.setitem(NETWORKS, "transposed", Transposed)
    model, x = network(name)
    explainer = lrphooks.compiled(model, every_layer(Epsilon()))
    equal(explainer(x, 0), lrphooks.lrp(model, x, 0, every_layer(Epsilon())))
    graph = explainer.graphs[0].module.graph
    backward = graph.find_nodes(op="call_function", target=torch.ops.aten.convolution_backward.default)
    assert all(n.args[2].op == "get_attr" for n in backward if not n.args[7])
    assert backward


class Transposed(nn.Module):
    """A grouped convolution and a transposed one, whose output channels are its weight's second dimension."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 6, 3, groups=3), nn.BatchNorm2d(6)
        self.up, self.bn_up, self.head = nn.ConvTranspose2d(6, 6, 2, groups=2), nn.BatchNorm2d(6), nn.Linear(6, 4)

    def forward(self, x):
        return self.head(self.bn_up(self.up(self.bn(self.conv(x)).relu())).relu().mean((2, 3)))


class Wide(nn.Module):
    """Layers whose weights are worth keeping in modified form: for inputs of either sign, and BatchNorm."""

    def __init__(self):
        super().__init__()
        self.conv, self.down, self.bn = nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3, stride=2), nn.BatchNorm2d(64)
        nn.init.normal_(self.bn.weight)
        self.fc, self.head = nn.Linear(64, 256), nn.Linear(256, 65)

    def forward(self, x):
        h = self.bn(self.down(self.conv(x).relu())).mean((2, 3))
        return self.head(self.fc(h).relu())


CHANGED = {
    "in place": lambda weight: weight.mul_(-0.5),
    "past the version": lambda weight: weight.data.mul_(-0.5),
    "other memory": lambda weight: setattr(weight, "data", weight.flip(0)),
}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
@pytest.mark.parametrize("name", ["down.weight", "fc.weight", "bn.weight"])
def test_modified_weights_are_kept_until_the_model_changes(name, change):
    torch.manual_seed(0)
    model, x = Wide().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    composite = every_layer(Gamma())
    explainer = lrphooks.compiled(model, composite, dynamic=True)
    before = explainer(x, 0)
    (graph,) = explainer.graphs
    made, module = [], graph._kept.module
    module.register_forward_hook(lambda *_: made.append(1))
    again = explainer(torch.cat((x, x)), 0)[:2]
    equal(again, before)
    assert not made
    with torch.no_grad():
        change(model.get_parameter(name))
    expected = lrphooks.lrp(model, x, 0, composite)
    assert not torch.allclose(expected, before)
    equal(explainer(x, 0), expected)
    assert made == [1]
    assert explainer.graphs == (graph,)


@pytest.mark.usefixtures("uncompiled")
def test_a_call_modifies_no_large_weight():
    model, x = Wide().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    explainer = lrphooks.compiled(model, every_layer(Gamma()))
    equal(explainer(x, 0), lrphooks.lrp(model, x, 0, every_layer(Gamma())))
    large = {model.down.weight.shape, model.fc.weight.shape, model.head.weight.shape}
    nodes = [n for n in explainer.graphs[0].module.graph.nodes if n.op == "call_function" and "val" in n.meta]
    modified = [n for n in nodes if getattr(n.meta["val"], "shape", None) in large]
    assert not modified, modified


def test_kept_weights_are_inputs_of_one_compiled_graph():
    """Other sizes and other values of the weights are served without compiling again."""
    handed = []

    def backend(module, inputs):
        handed.append(module)
        return module.forward

    model, x = Wide().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    explainer = lrphooks.compiled(model, every_layer(Gamma()), dynamic=True, backend=backend)
    for rows in (x, torch.cat((x, x)), torch.cat((x, x, x))):
        with torch.no_grad():
            model.down.weight.add_(0.01)
        equal(explainer(rows, 0), lrphooks.lrp(model, rows, 0, every_layer(Gamma())))
    assert len(handed) == len(explainer.graphs) == 1


@pytest.mark.usefixtures("uncompiled")
def test_a_large_weight_is_laid_out_once_for_both_directions_and_seen_to_change():
    model, x = Wide().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    explainer = lrphooks.compiled(model, every_layer(Epsilon()))
    for _ in range(2):
        equal(explainer(x, 0), lrphooks.lrp(model, x, 0, every_layer(Epsilon())))
        model.down.weight.data.mul_(-0.5)
    (graph,) = explainer.graphs
    assert graph._kept.origins == (model.down.weight,)
    convolution, backward = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default
    (laid_out,) = (n for n in graph.module.graph.nodes if n.name.startswith("modified"))
    assert sorted(str(n.target) for n in laid_out.users) == sorted(map(str, (convolution, backward)))
    assert laid_out.meta["val"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.usefixtures("uncompiled")
def test_weights_stay_in_the_graph_where_inductor_freezes_them():
    model, x = Wide().double().eval(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    explainer = lrphooks.compiled(model, every_layer(Gamma()))
    with torch._inductor.config.patch(freezing=True):
        equal(explainer(x, 0), lrphooks.lrp(model, x, 0, every_layer(Gamma())))
    assert explainer.graphs[0]._kept is None


class Sharing(nn.Module):
    """A buffer that is written to while the model runs, and serves as a weight."""

    def __init__(self):
        super().__init__()
        self.register_buffer("weight", torch.randn(130, 130))
        self.fc = nn.Linear(130, 3)

    def forward(self, x):
        self.weight.mul_(0.5)
        return self.fc(nn.functional.linear(x, self.weight).relu())


@pytest.mark.usefixtures("uncompiled")
def test_a_weight_that_a_call_writes_to_is_not_kept():
    model, x = Sharing().double(), torch.randn(2, 130, dtype=torch.float64)
    reference = copy.deepcopy(model)
    explainer = lrphooks.compiled(model, every_layer(Gamma()))
    for _ in range(3):
        equal(explainer(x, 0), lrphooks.lrp(reference, x, 0, every_layer(Gamma())))
    assert torch.equal(model.weight, reference.weight)


class Gates(nn.Module):
    """Products with what is a number plus an activation, also after a function of each element."""

    def __init__(self, gate):
        super().__init__()
        self.first, self.second, self.gate = nn.Linear(4, 4), nn.Linear(4, 4), gate

    def forward(self, x):
        return self.first(x) * self.gate(self.second(x))


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "gate", [lambda u: F.relu6(u + 3) / 6, lambda u: (1 + u.tanh()).view(-1, 4), lambda u: (u / 6 + 0.5).clamp(0, 1)]
)
def test_what_gates_is_known_without_values(gate):
    model, x = Gates(gate), torch.randn(2, 4)
    explainer = lrphooks.compiled(model, every_layer(Epsilon()))
    equal(explainer(x, 0), lrphooks.lrp(model, x, 0, every_layer(Epsilon())))


@pytest.mark.usefixtures("uncompiled")
def test_a_gate_that_only_values_tell_is_refused():
    explainer = lrphooks.compiled(Gates(lambda u: torch.ones(4) + u), every_layer(Epsilon()))
    with pytest.raises(LRPError, match=r"one number everywhere is added to an activation.*Add a number, as in 1 \+ x"):
        explainer(torch.randn(2, 4), 0)
