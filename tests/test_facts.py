"""What is noted on a tensor counts for that tensor alone, whoever hands its attributes on."""

import copy
import gc
import io

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrphooks
from lrphooks import Composite, composites
from lrphooks.engine import facts
from lrphooks.engine.plan import Plan
from lrphooks.matching import AnyLinear, First
from lrphooks.rules import AlphaBeta, Epsilon, Gamma, WSquare, ZBox, ZPlus

HANDED = {
    "copied": copy.copy,
    "copied in depth": copy.deepcopy,
    "shared": lambda attributes: attributes,
}


def picture(hand):
    """A tensor type that hands its attributes to its results, as fastai's TensorImage does."""

    class Picture(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            out = super().__torch_function__(func, types, args, kwargs or {})
            source = next((value for value in args if isinstance(value, cls)), None)
            if isinstance(out, cls) and source is not None and out is not source:
                out.__dict__ = hand(source.__dict__)
            return out

    return Picture


class Net(nn.Module):
    def __init__(self, before):
        super().__init__()
        self.before = before
        self.first, self.second, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(F.relu(self.second(F.relu(self.first(self.before(x))))).mean((2, 3)))


BEFORE = {
    "nothing": lambda x: x,
    "normalised": lambda x: (x - 0.1) / 0.3,
    "padded": lambda x: F.pad(x, (1,) * 4),
    "resized": lambda x: F.interpolate(x, scale_factor=2.0),
    "a ReLU turned around": lambda x: 0.5 - F.relu(x),
    "a ReLU times -1": lambda x: -F.relu(x),
    "a part of a ReLU less 1": lambda x: F.relu(x)[:, :, 1:] - 1,
    "a gate": lambda x: x * (1 + x.tanh()),
    "in place": lambda x: F.relu(x).clone().mul_(-1.0),
}
COMPOSITES = {
    "first": Composite([(First(AnyLinear), ZBox(-3.0, 3.0)), (AnyLinear, Gamma(0.25))]),
    "w square": Composite([(First(AnyLinear), WSquare()), (AnyLinear, Epsilon(1e-3))]),
    "z plus": Composite([(AnyLinear, ZPlus())]),
    "alpha beta": Composite([(AnyLinear, AlphaBeta(2.0, 1.0))]),
    "flat": composites.EpsilonPlusFlat(),
}


@pytest.mark.parametrize("hand", HANDED.values(), ids=HANDED)
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("composite", COMPOSITES.values(), ids=COMPOSITES)
def test_a_subclass_that_hands_attributes_on_has_the_relevance_of_plain_tensors(composite, before, hand, close):
    model, x = Net(before).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    expected = lrphooks.lrp(model, x, 1, composite)
    found = lrphooks.lrp(model, picture(hand)(x.clone()), 1, composite)
    close(found.as_subclass(torch.Tensor), expected, 1e-12)


@pytest.mark.parametrize("hand", HANDED.values(), ids=HANDED)
@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
def test_the_books_of_a_subclass_are_those_of_plain_tensors(before, hand):
    """The copies that the audit keeps on tensors are of these tensors too."""
    model, x = Net(before).double(), torch.randn(2, 3, 8, 8, dtype=torch.float64)
    composite = composites.EpsilonAlpha2Beta1()
    expected = lrphooks.audit(model, x, 1, composite)
    found = lrphooks.audit(model, picture(hand)(x.clone()), 1, composite)
    assert found.unexplained < 1e-12
    assert found.sinks == pytest.approx(expected.sinks, rel=1e-9, abs=1e-12)


def test_activations_with_notes_are_saved_and_loaded():
    """A hook that saves what it sees saves the values, not the run that explains the model."""
    model, x = Net(lambda x: x), torch.randn(2, 3, 8, 8, requires_grad=True)
    file = io.BytesIO()
    kept = []

    def save(module, args, out):
        kept.append(out.detach().clone())
        torch.save({"activation": out}, file)

    model.second.register_forward_hook(save)
    with composites.EpsilonPlus().context(model):
        model(x)
    file.seek(0)
    loaded = torch.load(file)["activation"]
    assert torch.equal(loaded, kept[0])
    assert not any(type(value) is facts.Facts for value in vars(loaded).values())


def test_a_weight_made_anew_is_not_taken_for_a_layers_own():
    """A parametrised weight is another tensor each time that it is read, and its identity is free for others then."""
    model = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)), nn.ReLU())
    plan = Plan(Composite([(AnyLinear, Epsilon())]), model)
    gc.collect()
    others = [torch.randn(3, 3) for _ in range(2000)]
    assert all(plan.layer_module(None, other) is None for other in others)
