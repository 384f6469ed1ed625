"""Recorded relevance of inner modules: against the part of the model above it, dense formulas and zennit."""

import gc
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import lrphooks
import zennit_helper
from lrphooks import Composite, LRPError, composites, explain, lrp
from lrphooks.matching import AnyLinear, Convolution
from lrphooks.rules import AlphaBeta, Epsilon, Flat, Gamma, Pass, WSquare, ZBox, ZPlus
from small_networks import NETWORKS, PRESETS, equal, every_layer, network

RULES = [Epsilon(0), Epsilon(0.1), Gamma(), ZPlus(), AlphaBeta(), Flat(), WSquare(), ZBox(-3.0, 3.0)]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", NETWORKS)
def test_recording_changes_nothing(name, preset):
    model, x = network(name)
    composite = PRESETS[preset]()
    before = lrp(model, x, 1, composite)
    found = explain(model, x, 1, composite, record=["", *(n for n, _ in model.named_modules() if n)])
    # But for rounding: what is watched has a node for each layer.
    equal(found.relevance, before, tol=1e-13)
    assert not any(t.requires_grad for t in found.recorded.values() if isinstance(t, torch.Tensor))


class Stack(nn.Module):
    """Convolutions with and without BatchNorm, ReLUs, pooling and dense layers, one after the other."""

    def __init__(self, inplace=False):
        super().__init__()
        self.steps = nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(inplace), nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5),
            nn.ReLU(inplace), nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5), nn.MaxPool2d(2), nn.Dropout(), nn.Flatten(),
            nn.Linear(20, 6), nn.ReLU(inplace), nn.Linear(6, 3),
        )  # fmt: skip

    def forward(self, x):
        return self.steps(x)


def stack(*, inplace=False):
    torch.manual_seed(0)
    model = Stack(inplace).double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return model.steps, torch.randn(2, 2, 6, 6, dtype=torch.float64)


#: The steps of the stack whose output begins a part that can be explained by itself: no BatchNorm merges across it.
CUTS = [0, 1, 3, 4, 6, 7, 8, 9, 10, 11, 12]


@pytest.mark.parametrize("inplace", [False, True], ids=["", "in place"])
@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_it_is_the_relevance_of_the_part_of_the_model_above(rule, inplace):
    """The rest of the model, explained by itself with what the step returned as its input."""
    steps, x = stack(inplace=inplace)
    composite = every_layer(rule)
    found = explain(steps, x, 1, composite, record="*").recorded
    for cut in CUTS[:-1]:
        if isinstance(steps[cut], nn.Conv2d | nn.BatchNorm2d | nn.Linear) and inplace:
            continue  # the rest would overwrite its own input
        rest = steps[cut + 1 :]
        # Explained from behind the ReLU, the rest does not know that its input is not negative; the rule is the same.
        expected = lrp(rest, steps[: cut + 1](x).detach(), 1, composite)
        equal(found[str(cut)], expected, tol=1e-10)
    torch.testing.assert_close(found["12"].sum(1), steps(x)[:, 1].detach())


@pytest.mark.parametrize("rule", RULES[1:], ids=repr)
def test_a_layer_has_the_relevance_of_the_batch_norm_that_is_merged_with_it(rule):
    steps, x = stack()
    found = explain(steps, x, 1, every_layer(rule), record=["2", "3", "5", "6"]).recorded
    assert torch.equal(found["2"], found["3"])
    assert torch.equal(found["5"], found["6"])
    assert found["2"].abs().max() > 0


def test_where_nothing_is_merged_the_batch_norm_keeps_its_shift():
    """LRP-0 is gradient times input at every tensor, so the shift of the BatchNorm stays behind."""
    steps, x = stack()
    hidden = steps[:3](x).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(steps[3:](hidden)[:, 1].sum(), hidden)
    found = explain(steps, x, 1, every_layer(Epsilon(0)), record="2").recorded
    equal(found["2"], hidden.detach() * gradient)


@pytest.mark.parametrize("rule", RULES, ids=repr)
def test_what_a_layer_has_and_what_is_absorbed_above_it_is_the_output(rule):
    steps, x = stack()
    composite = every_layer(rule)
    found = explain(steps, x, 1, composite, record="*")
    report = lrphooks.audit(steps, x, 1, composite)
    absorbed = 0.0
    for row in reversed(report.layers):
        if not row.name:
            continue
        total = float(found.recorded[row.name].sum())
        assert total + absorbed == pytest.approx(float(found.explained.sum()), rel=1e-9), row.name
        absorbed += row.absorbed
    assert absorbed != 0 or isinstance(rule, Flat | WSquare)


@pytest.mark.parametrize("name", ["residual", "tokens", "gates", "strange", "vgg"])
def test_modules_have_what_the_audit_says_that_arrived(name):
    model, x = network(name)
    composite = composites.AttnLRP(0.01) if name == "tokens" else composites.EpsilonPlus(0.01, 0.01)
    found = explain(model, x, 1, composite, record="*").recorded
    report = lrphooks.audit(model, x, 1, composite)
    arrived = {}
    for row in report.layers:
        arrived.setdefault(row.name, []).append(row.arrived)
    for path, recorded in found.items():
        if path not in arrived:
            # A merged BatchNorm, and a module whose operation only hands on, have no row of their own.
            assert isinstance(model.get_submodule(path), nn.BatchNorm2d | nn.Dropout)
            continue
        totals = [float(t.sum()) for t in (recorded if isinstance(recorded, tuple) else (recorded,))]
        assert totals == pytest.approx(arrived[path], rel=1e-9, abs=1e-9 * report.scale), path


class Shared(nn.Module):
    """One layer that runs three times, also on its own output, and one that does not run."""

    def __init__(self):
        super().__init__()
        self.layer, self.head, self.spare = nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 3)

    def forward(self, x):
        h = F.relu(self.layer(x))
        h = F.relu(self.layer(h))
        return self.head(self.layer(h) + h)


@pytest.mark.parametrize("rule", RULES[:5], ids=repr)
def test_a_module_that_runs_several_times_has_one_relevance_for_each(rule):
    model, x = Shared().double(), torch.randn(4, 3, dtype=torch.float64)
    found = explain(model, x, 0, every_layer(rule), record="layer").recorded["layer"]
    assert isinstance(found, tuple)
    hidden = [model.layer(x).detach()]
    hidden.append(model.layer(F.relu(hidden[0])).detach())
    hidden.append(model.layer(F.relu(hidden[1])).detach())

    class Rest(nn.Module):
        def __init__(self, start):
            super().__init__()
            self.model, self.start = model, start

        def forward(self, h):
            if self.start == 0:
                h = self.model.layer(F.relu(h))
            h = F.relu(h)
            return self.model.head(self.model.layer(h) + h)

    equal(found[0], lrp(Rest(0), hidden[0], 0, every_layer(rule)), tol=1e-10)
    equal(found[1], lrp(Rest(1), hidden[1], 0, every_layer(rule)), tol=1e-10)
    from_sum = lrp(model.head, hidden[2] + F.relu(hidden[1]), 0, every_layer(rule))
    equal(found[2], from_sum * hidden[2] / (hidden[2] + F.relu(hidden[1])), tol=1e-10)


class Several(nn.Module):
    """Returns a dict with a tuple in it, of which one tensor is not used and one not of numbers."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)

    def forward(self, x):
        return {"pair": (self.a(x), self.b(x)), "spare": self.c(x), "count": torch.tensor(len(x)), "name": "several"}


class User(nn.Module):
    def __init__(self):
        super().__init__()
        self.several, self.head = Several(), nn.Linear(4, 2)

    def forward(self, x):
        first, second = self.several(x)["pair"]
        return self.head(first * 2 - second)


def test_outputs_in_containers_keep_their_structure():
    model, x = User().double(), torch.randn(2, 3, dtype=torch.float64)
    found = explain(model, x, 1, every_layer(Epsilon(0)), record="several").recorded["several"]
    weight = model.head.weight.detach()[1]
    equal(found["pair"][0], 2 * weight * model.several.a(x).detach())
    equal(found["pair"][1], -weight * model.several.b(x).detach())
    assert found["spare"].shape == (2, 4)
    assert not found["spare"].any()
    assert found["count"] is None
    assert found["name"] == "several"


def test_a_recurrent_layer():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 2)

        def forward(self, x):
            return self.head(self.lstm(x)[0][:, -1])

    model, x = Model().double(), torch.randn(2, 5, 3, dtype=torch.float64)
    states, (last, cell) = explain(model, x, 1, every_layer(Epsilon(0.01)), record="lstm").recorded["lstm"]
    hidden = model.lstm(x)[0][:, -1].detach()
    equal(states[:, -1], lrp(model.head, hidden, 1, every_layer(Epsilon(0.01))))
    assert not states[:, :-1].any()
    assert not last.any()
    assert not cell.any()


@pytest.mark.parametrize("rule", [Epsilon(0), Epsilon(0.1), ZPlus()], ids=repr)
def test_checkpoints_and_hooks_of_the_user_change_nothing(rule):
    steps, x = stack()
    expected = explain(steps, x, 1, every_layer(rule), record="*").recorded

    class Saving(nn.Module):
        def __init__(self):
            super().__init__()
            self.steps = steps

        def forward(self, x):
            return self.steps[6:](checkpoint(self.steps[:6], x, use_reentrant=False))

    found = explain(Saving(), x, 1, every_layer(rule), record="steps.*").recorded
    handles = [module.register_full_backward_hook(lambda *_: None) for module in steps]
    hooked = explain(steps, x, 1, every_layer(rule), record="*").recorded
    for handle in handles:
        handle.remove()
    for name, relevance in expected.items():
        # Behind the checkpoint the last BatchNorm finds its layer all the same.
        equal(found[f"steps.{name}"], relevance, tol=1e-10)
        equal(hooked[name], relevance, tol=1e-10)


def test_a_module_under_pass_has_what_it_passes():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 2)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    composite = Composite([("1", Pass()), (AnyLinear, Epsilon(0.01))])
    found = explain(model, x, 0, composite, record=["0", "1"]).recorded
    equal(found["1"], lrp(model[2], model[:2](x).detach(), 0, every_layer(Epsilon(0.01))))
    assert torch.equal(found["0"], found["1"])


def test_a_module_that_returns_its_input():
    model = nn.Sequential(nn.Linear(3, 9), nn.Identity(), nn.ReLU(), nn.Linear(9, 2)).double()
    x = torch.randn(2, 3, dtype=torch.float64)
    found = explain(model, x, 0, every_layer(ZPlus()), record="*").recorded
    for name in ("0", "1"):
        equal(found[name], lrp(model[2:], model[0](x).detach(), 0, every_layer(ZPlus())))


def test_the_modified_gradient_of_guided_backpropagation():
    model, x = nn.Sequential(nn.Linear(3, 6), nn.ReLU(), nn.Linear(6, 2)).double(), torch.randn(4, 3).double()
    found = explain(model, x, 1, composites.GuidedBackprop(), record="*").recorded
    weight = model[2].weight.detach()[1].expand(4, 6)
    equal(found["1"], weight)
    equal(found["0"], weight.clamp(min=0) * (model[0](x) > 0))


@pytest.mark.parametrize("rule", ["Epsilon", "ZPlus", "Gamma"])
def test_zennit_agrees(rule):
    """Where a chain of layers without BatchNorm makes it right: the gradient at a layer's output is its relevance."""
    import zennit.rules

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.ReLU(),
        nn.Linear(5, 3),
    ).double()  # fmt: skip
    x = torch.randn(2, 2, 6, 6, dtype=torch.float64)
    mine, theirs = getattr(lrphooks.rules, rule)(), getattr(zennit.rules, rule)()
    found = explain(model, x, 1, every_layer(mine), record=AnyLinear).recorded
    kept = {}
    handles = [
        model[index].register_forward_hook(lambda _m, _i, out, index=index: kept.__setitem__(index, out))
        for index in (2, 5)
    ]
    with zennit_helper.everywhere(theirs).context(model) as modified:
        output = modified(x.clone().requires_grad_())
        seed = torch.zeros_like(output)
        seed[:, 1] = output.detach()[:, 1]
        relevance = torch.autograd.grad(output, list(kept.values()), seed)
    for handle in handles:
        handle.remove()
    for index, expected in zip(kept, relevance, strict=True):
        # zennit passes relevance through a ReLU as it is, so both tensors have it.
        equal(found[str(index)], expected, tol=1e-6)


def test_what_cannot_be_recorded():
    model, x = Shared(), torch.randn(2, 3)
    with pytest.raises(LRPError, match=r"Module 'spare' \(Linear\) did not run in this forward pass"):
        explain(model, x, 0, every_layer(Epsilon()), record="spare")
    sizes = nn.Sequential(nn.Linear(3, 3))

    class Silent(nn.Module):
        def forward(self, x):
            return x.shape

    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            self.size, self.inner = Silent(), sizes

        def forward(self, x):
            return self.inner(x.reshape(self.size(x)))

    with pytest.raises(LRPError, match=r"Module 'size' \(Silent\) returned a Size without a tensor of numbers"):
        explain(Asking(), x, 0, every_layer(Epsilon()), record="size")
    written = nn.Sequential(nn.Linear(4, 4), nn.Flatten(), nn.ReLU(inplace=True), nn.Linear(8, 2))
    with pytest.raises(LRPError, match=r"Module '1' \(Flatten\) returned a view .* overwritten in place"):
        explain(written, torch.randn(2, 2, 4), 0, every_layer(Epsilon()), record="1")
    written, x = written.double(), torch.ones(2, 2, 4, dtype=torch.float64)
    equal(
        explain(written, x, 0, every_layer(Epsilon(0)), record="2").recorded["2"],
        written[3].weight.detach()[0] * written[:3](x).detach(),
    )


def test_taps_hold_nothing_when_the_explanation_is_gone():
    steps, x = stack()
    found = explain(steps, x, 1, every_layer(ZPlus()), record="*")
    tensor = weakref.ref(found.recorded["0"])
    del found
    gc.collect()
    assert tensor() is None
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in steps.modules())


def test_convolutions_alone_by_group():
    steps, x = stack()
    assert list(explain(steps, x, 1, every_layer(ZPlus()), record=Convolution).recorded) == ["0", "2", "5"]
