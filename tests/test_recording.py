"""How inner modules are named for recording, and what is made of their relevance."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lrphooks import LRPError, composites, explain
from lrphooks.baselines import InputXGradient
from lrphooks.matching import ReLU
from lrphooks.rules import Epsilon
from small_networks import every_layer

X = torch.randn(2, 3)
EXACT = every_layer(Epsilon(0))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(3, 4)
        self.layer1 = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.layer2 = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.head = nn.Linear(4, 2)
        self.again = self.stem

    def forward(self, x):
        return self.head(self.layer2(self.layer1(self.stem(x))))


MODEL = Model()


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ("layer1", ["layer1"]),
        ("layer1.0", ["layer1.0"]),
        ("layer?", ["layer1", "layer2"]),
        ("layer*.0", ["layer1.0", "layer2.0"]),
        (["head", "stem"], ["head", "stem"]),
        (("layer1", "layer?.1"), ["layer1", "layer1.1", "layer2.1"]),
        (MODEL.layer2, ["layer2"]),
        ([MODEL.head, "layer1"], ["head", "layer1"]),
        (nn.ReLU, ["layer1.1", "layer2.1"]),
        (ReLU, ["layer1.1", "layer2.1"]),
        ("again", ["again"]),
        (MODEL, [""]),
        ("", [""]),
        ({"layer1": None, MODEL.head: None}, ["layer1", "head"]),
        ((name for name in ("stem", "head")), ["stem", "head"]),
    ],
    ids=lambda value: str(value)[:30],
)
def test_modules_by_name_pattern_type_or_themselves(record, names):
    everything = explain(MODEL, X, 0, EXACT, record=["", "again", *(n for n, _ in MODEL.named_modules() if n)])
    found = explain(MODEL, X, 0, EXACT, record=record).recorded
    assert list(found) == names
    for name in names:
        assert torch.equal(found[name], everything.recorded[name])


def test_functions_of_the_relevance():
    plain = explain(MODEL, X, 0, EXACT, record="layer?").recorded
    found = explain(MODEL, X, 0, EXACT, record={"layer?": lambda r: r.sum(1), "head": None}).recorded
    assert torch.equal(found["layer1"], plain["layer1"].sum(1))
    assert torch.equal(found["layer2"], plain["layer2"].sum(1))
    assert found["head"].shape == (2, 2)


@pytest.mark.parametrize(
    ("record", "error", "message"),
    [
        ("layre1", LRPError, r"explain: no module of the model is named 'layre1'\. Did you mean 'layer1'"),
        ("nothing.*", LRPError, r"no module of the model is named 'nothing\.\*'"),
        (["stem", "layer3"], LRPError, r"no module of the model is named 'layer3'\. Did you mean 'layer"),
        (nn.Linear(2, 2), LRPError, r"the model has no module Linear inside"),
        (nn.Conv2d, LRPError, r"the model has no module torch\.nn\.Conv2d inside"),
        (3, TypeError, r"a module is given by its name, a pattern, its type or itself, got 3 of type int"),
        ([None], TypeError, r"got None of type NoneType"),
        ({"stem": 3}, TypeError, r"record maps modules to functions of their relevance.*got 3 for 'stem'"),
        (int, TypeError, r"A layer type must be a torch\.nn\.Module class"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_modules_that_are_not_there(record, error, message):
    with pytest.raises(error, match=message):
        explain(MODEL, X, 0, EXACT, record=record)


def test_a_baseline_attributes_to_inputs_alone():
    method = InputXGradient()
    found = explain(MODEL, X, 1, method)
    assert torch.equal(found.relevance, method(MODEL, X, 1))
    assert torch.equal(found.explained, MODEL(X)[:, 1].detach())
    assert found.composite == method
    for asked in ({"record": "stem"}, {"parameters": True}):
        with pytest.raises(LRPError, match=r"explain: InputXGradient\(\) attributes to inputs alone.*give a composite"):
            explain(MODEL, X, 1, method, **asked)


class Checkpointed(nn.Module):
    """A layer, whose output a checkpoint takes, and a head; the same with and without the checkpoint."""

    def __init__(self, kept: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.head, self.kept = nn.Linear(6, 6), nn.Linear(6, 3), kept
        self.double().eval()

    def forward(self, x):
        u = self.first(x)

        def attend(u):
            return nn.functional.scaled_dot_product_attention(u, u, u)

        return self.head((checkpoint(attend, u, use_reentrant=False) if self.kept else attend(u)).mean(1))


@pytest.mark.parametrize("composite", [composites.AttnLRP(1e-3), composites.AttnLRP(), composites.EpsilonPlus()])
def test_a_checkpoint_behind_a_recorded_layer_changes_nothing(composite):
    """What it runs again sets nodes anew, which are no further places at which relevance arrives."""
    x = torch.randn(2, 4, 6, dtype=torch.float64)
    found = [explain(Checkpointed(kept), x, 1, composite, record="first") for kept in (True, False)]
    torch.testing.assert_close(found[0].recorded["first"], found[1].recorded["first"], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[0].relevance, found[1].relevance, rtol=0, atol=1e-12)


def test_a_recorded_view_that_is_a_constant_may_be_overwritten():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.gate, self.signal = nn.Linear(6, 6), nn.Linear(6, 6)
            self.double().eval()

        def forward(self, x):
            gate = self.gate(x.softmax(-1))
            assert gate.add_(1) is gate
            return (gate * self.signal(x)).sum(1)

    x = torch.randn(2, 4, 6, dtype=torch.float64)
    found = explain(Model(), x, 1, composites.CPLRP(), record="gate")
    assert not found.recorded["gate"].any()
