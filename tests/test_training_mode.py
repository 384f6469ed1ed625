"""A model in training mode: it is said, once a model, and nothing is switched."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn

import lrphooks
from lrphooks.baselines import InputXGradient
from lrphooks.composites import EpsilonPlus

X = torch.randn(4, 3, 8, 8, generator=torch.manual_seed(0))


class Path(nn.Module):
    """What timm and transformers call DropPath."""

    def __init__(self, drop_prob):
        super().__init__()
        self.drop_prob = drop_prob

    def forward(self, x):
        return nn.functional.dropout(x, self.drop_prob, self.training)


def network(*more):
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *more, nn.Flatten(), nn.Linear(144, 5))


def told(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    return [str(each.message) for each in caught if "training mode" in str(each.message)]


def test_the_modules_and_the_way_out_are_named():
    model = network(nn.Dropout(0.5))
    (text,) = told(lambda: lrphooks.lrp(model, X))
    assert "the model (Sequential) is explained in training mode: 3 drops values at random, and 1 normalises" in text
    assert "changes its running statistics" in text
    assert "Call model.eval() first" in text
    assert all(module.training for module in model.modules())


def test_it_is_said_once_a_model():
    first, second = network(), network()
    assert len(told(lambda: [lrphooks.lrp(first, X) for _ in range(3)])) == 1
    assert len(told(lambda: lrphooks.lrp(second, X))) == 1
    assert told(lambda: lrphooks.lrp(first.train(), X)) == []


def test_it_points_at_the_line_of_the_caller():
    with pytest.warns(UserWarning, match="training mode") as caught:
        lrphooks.lrp(network(), X)
    assert caught[0].filename == __file__


def in_a_context(model):
    x = X.clone().requires_grad_()
    with EpsilonPlus().context(model):
        model(x)[:, 0].sum().backward()


@pytest.mark.parametrize(
    "call",
    [
        in_a_context,
        lambda model: lrphooks.audit(model, X),
        lambda model: lrphooks.lrp_targets(model, X, [0, 1]),
        lambda model: lrphooks.lrp(model, X, 0, InputXGradient()),
    ],
)
def test_whatever_explains_it(call):
    model = network()
    assert len(told(lambda: call(model))) == 1
    assert told(lambda: call(network().eval())) == []


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Dropout2d(0.1), (2, 3, 4, 4)),
        (Path(0.2), (2, 3)),
        (nn.RReLU(), (2, 3)),
        (nn.LSTM(3, 3, 2, dropout=0.1), (2, 2, 3)),
        (nn.InstanceNorm2d(3, track_running_stats=True), (2, 3, 4, 4)),
    ],
)
def test_what_answers_differently_in_training(module, shape):
    x = torch.randn(shape)

    def of_first(output):
        return output[0].sum() if isinstance(output, tuple) else output.sum()

    assert len(told(lambda: lrphooks.lrp(module, x, of_first, InputXGradient()))) == 1
    module.eval()
    assert told(lambda: lrphooks.lrp(copy.deepcopy(module), x, of_first, InputXGradient())) == []


@pytest.mark.parametrize(
    "module",
    [
        nn.Dropout(0.0),
        Path(0.0),
        nn.LSTM(3, 3, dropout=0.0),
        nn.BatchNorm1d(3, track_running_stats=False),
        nn.LayerNorm(3),
        nn.Linear(3, 3),
    ],
)
def test_training_mode_alone_is_no_matter(module):
    model = module if isinstance(module, nn.LSTM) else nn.Sequential(nn.Linear(3, 3), module)
    x = torch.randn(2, 3)
    target = (lambda output: output[0].sum()) if isinstance(module, nn.LSTM) else 0
    assert told(lambda: lrphooks.lrp(model, x, target, lrphooks.composites.AttnLRP())) == []


def test_many_modules_are_counted():
    model = nn.Sequential(nn.Linear(3, 3), *(nn.Dropout(0.1) for _ in range(5)))
    (text,) = told(lambda: lrphooks.lrp(model, torch.randn(2, 3)))
    assert re.search(r": 1, 2, 3 and 2 more drop values at random\.", text)
