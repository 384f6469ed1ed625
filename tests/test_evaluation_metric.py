"""What every metric shares: what it takes, what it refuses, and that the model is left as it was."""

import dataclasses
import inspect
import pickle
from typing import get_origin

import pytest
import torch
from torch import nn

from judged import contributions, linear, small_cnn
from lrphooks import evaluation, lrp, targets
from lrphooks.baselines import InputXGradient
from lrphooks.composites import EpsilonPlus
from lrphooks.evaluation import (
    Blur,
    Complexity,
    ConservationError,
    Deletion,
    GridPointingGame,
    Insertion,
    MaxSensitivity,
    Mean,
    ParameterRandomisation,
    PixelFlipping,
    PointingGame,
    RelevanceMass,
    RelevanceRank,
    Sparseness,
    SymmetricRelevanceGain,
)
from lrphooks.evaluation.localisation import Localisation

METRICS = [
    PixelFlipping(patch=4),
    SymmetricRelevanceGain(patch=4, infill=Mean()),
    Deletion(steps=3),
    Insertion(steps=3),
    PointingGame(),
    RelevanceMass(),
    RelevanceRank(),
    GridPointingGame(),
    Sparseness(),
    Complexity(),
    MaxSensitivity(samples=2),
    ParameterRandomisation(),
    ConservationError(),
]
JUDGED = [metric for metric in METRICS if not isinstance(metric, MaxSensitivity | ParameterRandomisation)]


def truth_for(metric, x):
    return torch.ones_like(x[:, 0]) if isinstance(metric, Localisation) else None


def test_every_metric_is_tested_here():
    public = {getattr(evaluation, name) for name in evaluation.__all__}
    metrics = {
        kind
        for kind in public
        if inspect.isclass(kind) and get_origin(kind) is None and issubclass(kind, evaluation.Metric)
    }
    assert metrics - {evaluation.Metric} == {type(metric) for metric in METRICS}


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_a_metric_is_a_value(metric):
    names = {name: getattr(evaluation, name) for name in evaluation.__all__}
    again = eval(repr(metric), names)
    assert again == metric == pickle.loads(pickle.dumps(metric))
    assert hash(again) == hash(metric)
    assert type(metric)(batch_size=5) == type(metric)()
    with pytest.raises(AttributeError, match="cannot assign"):
        metric.batch_size = 3


@pytest.mark.parametrize("metric", METRICS, ids=repr)
@pytest.mark.parametrize("kind", ["composite", "baseline", "method"])
def test_the_model_and_the_input_are_left_as_they_were(metric, kind):
    model, x = small_cnn(), torch.randn(3, 1, 12, 12)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kept = x.clone()

    def changing(m, rows, target):
        relevance = lrp(m, rows.clone(), target, EpsilonPlus())
        rows.zero_()  # a method that works in place must not spoil the input
        return relevance

    method = {"composite": EpsilonPlus(), "baseline": InputXGradient(), "method": changing}[kind]
    result = metric(model, x, [0, 1, 2], method, truth=truth_for(metric, x))
    assert result.values.shape == (3,)
    assert torch.equal(x, kept)
    assert not x.requires_grad
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_no_more_rows_than_the_batch_size_are_explained_or_run_at_once(metric):
    model, x = linear(1, 8, 8)
    small = dataclasses.replace(metric, batch_size=2)
    explained = []

    def watching(m, rows, target):
        explained.append(len(rows))
        return contributions(m, rows, target)

    result = small(model, x, [0, 1, 2], watching, truth=truth_for(metric, x))
    assert max(model.sizes) <= 2
    assert max(explained) <= 2
    whole = metric(model, x, [0, 1, 2], contributions, truth=truth_for(metric, x))
    assert result.values == pytest.approx(whole.values, abs=1e-10)


def test_a_method_is_given_an_index_for_each_row():
    model, x = linear(6)
    largest = model(x).argmax(1).tolist()
    for given, expected in [
        (2, [2, 2, 2]),
        ([0, 1, 2], [0, 1, 2]),
        (None, largest),
        (torch.tensor([1, 0, -1]), [1, 0, 2]),
    ]:
        seen = []

        def watching(m, rows, target, seen=seen):
            seen.extend(target.tolist())
            return rows

        Sparseness(batch_size=2)(model, x, given, watching)
        assert seen == expected


def test_labels_and_formulas_of_the_output_are_targets_of_the_rows_that_they_are_for(close):
    model, x = linear(6)
    model.class_names = ["cat", "dog", "bird"]
    metric = PixelFlipping(output="logit", infill=evaluation.Constant(), batch_size=2)
    relevance = contributions(model, x, [0, 2, 1])
    by_index = metric(model, x, [0, 2, 1], relevance)
    close(metric(model, x, ["cat", "bird", "dog"], relevance).curve, by_index.curve)
    against = metric(model, x, targets.Difference([0, 2, 1], "dog"), relevance)
    dog = metric(model, x, 1, relevance)
    close(against.curve, by_index.curve - dog.curve)
    seen = []

    def watching(m, rows, target):
        seen.append(target)
        return rows

    Sparseness(batch_size=2)(model, x, targets.Difference([0, 2, 1], 1), watching)
    assert seen == [targets.Difference((0, 2), 1), targets.Difference((1,), 1)]


def test_a_model_that_answers_with_logits_by_name_is_judged(close):
    class Answer(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return {"logits": self.inner(x)}

    model, x = linear(6)
    metric = PixelFlipping(infill=evaluation.Constant())
    relevance = contributions(model, x, 1)
    close(metric(Answer(model), x, 1, relevance).curve, metric(model, x, 1, relevance).curve)


@pytest.mark.parametrize("metric", JUDGED, ids=repr)
def test_relevance_that_does_not_fit_is_refused(metric):
    model, x = linear(2, 8, 8)
    truth = truth_for(metric, x)
    name = type(metric).__name__
    with pytest.raises(ValueError, match=rf"{name}: the relevance has shape \(3, 8\) and x \(3, 2, 8, 8\)"):
        metric(model, x, 0, torch.zeros(3, 8), truth=truth)
    with pytest.raises(ValueError, match=f"{name}: the relevance holds NaN or infinite values"):
        metric(model, x, 0, torch.full_like(x, float("nan")), truth=truth)
    with pytest.raises(TypeError, match=f"{name}: the method must return a tensor of relevance, got ndarray"):
        metric(model, x, 0, lambda m, rows, t: rows.numpy(), truth=truth)


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_wrong_arguments_are_refused(metric):
    model, x = linear(1, 8, 8)
    truth, name = truth_for(metric, x), type(metric).__name__
    with pytest.raises(TypeError, match=f"{name}: model must be a torch.nn.Module, got function"):
        metric(lambda x: x, x, 0, contributions, truth=truth)
    with pytest.raises(TypeError, match=f"{name}: x must be a floating-point tensor, got a tensor of torch.int64"):
        metric(model, x.long(), 0, contributions, truth=truth)
    with pytest.raises(TypeError, match=f"{name}: x must be a floating-point tensor, got tuple"):
        metric(model, (x,), 0, contributions, truth=truth)
    with pytest.raises(ValueError, match=rf"{name}: x has shape \(8,\).*unsqueeze"):
        metric(model, x[0, 0, 0], 0, contributions, truth=truth)
    with pytest.raises(ValueError, match=f"{name}: 2 targets were given for 3 rows"):
        metric(model, x, [0, 1], contributions, truth=truth)
    with pytest.raises(ValueError, match="target 3 is out of range for a model with 3 outputs"):
        metric(model, x, 3, contributions, truth=truth)
    with pytest.raises(ValueError, match=f"{name}: batch_size must be at least 1, got 0"):
        type(metric)(batch_size=0)
    if truth is None:
        with pytest.raises(ValueError, match=f"{name}: takes no truth; metrics of localisation do"):
            metric(model, x, 0, contributions, truth=torch.ones(3, 8, 8))
    with pytest.raises(TypeError, match="composite must be a Composite"):
        metric(model, x, 0, "EpsilonPlus", truth=truth)


@pytest.mark.parametrize("layer", [nn.Dropout(), nn.BatchNorm1d(6)], ids=repr)
def test_a_model_in_training_mode_is_refused(layer):
    model = nn.Sequential(nn.Linear(6, 6), layer)
    kind = type(layer).__name__
    with pytest.raises(ValueError, match=rf"Sparseness: module '1' \({kind}\) is in training mode.*model.eval\(\)"):
        Sparseness()(model, torch.randn(2, 6), 0, lambda m, rows, t: rows)
    # What does the same in both modes may be in either.
    Sparseness()(nn.Sequential(nn.Linear(6, 6), nn.ReLU()).train(), torch.randn(2, 6), 0, lambda m, rows, t: rows)


def test_blur_is_the_usual_infill():
    assert PixelFlipping().infill == Blur(10.0)
