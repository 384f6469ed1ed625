"""The choice of parameters by a metric."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import lrphooks
from judged import linear, small_cnn
from lrphooks import Composite, LRPError, tune
from lrphooks.baselines import SmoothGrad
from lrphooks.composites import EpsilonGammaBox
from lrphooks.evaluation import (
    ConservationError,
    Mean,
    PixelFlipping,
    RelevanceMass,
    Space,
    Sparseness,
    SymmetricRelevanceGain,
)
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon


def epsilon(value):
    """On a linear model, the epsilon rule conserves all but epsilon / (|z| + epsilon)."""
    return Composite([(AnyLinear, Epsilon(value))])


def case():
    return nn.Sequential(nn.Linear(6, 3, bias=False)).double().eval(), torch.randn(5, 6, dtype=torch.float64)


@pytest.mark.parametrize("order", [[0.01, 1.0, 0.1], [1.0, 0.1, 0.01]], ids=str)
def test_the_best_by_the_metric_is_chosen(order, close):
    model, x = case()
    found = tune(model, x, 1, Space(epsilon, value=order), ConservationError())
    assert [trial.arguments["value"] for trial in found.trials] == [0.01, 0.1, 1.0]
    assert found.composite == epsilon(0.01)
    size = model(x)[:, 1].abs().detach()
    for trial in found.trials:
        lost = trial.arguments["value"] / (size + trial.arguments["value"])
        close(trial.result.values, lost, tol=1e-9)


def test_where_more_is_better_the_most_is_chosen():
    model, x = case()
    found = tune(model, x, 0, Space(epsilon, value=[0.1, 3.0]), Sparseness())
    means = [Sparseness()(model, x, 0, epsilon(v)).mean for v in (0.1, 3.0)]
    assert found.best.result.mean == max(means)


def test_every_combination_of_every_space_is_tried(capsys):
    model, x = small_cnn(), torch.randn(3, 1, 12, 12)
    spaces = [
        Space(EpsilonGammaBox, low=[-4.0], high=[4.0], gamma=[0.1, 0.5], epsilon=[1e-6, 0.1]),
        Space(SmoothGrad, samples=[2, 3]),
    ]
    calls = []
    found = tune(
        model, x, None, spaces, SymmetricRelevanceGain(patch=4, infill=Mean()), progress=lambda *a: calls.append(a)
    )
    assert len(spaces[0]) == 4
    assert sorted(repr(t.arguments) for t in found.trials) == sorted(
        repr(a) for space in spaces for a in space.combinations()
    )
    assert [(done, total) for done, total, _ in calls] == [(i + 1, 6) for i in range(6)]


def test_the_budget_bounds_the_trials_by_chance():
    model, x = case()
    space = Space(epsilon, value=[10.0**-i for i in range(12)])

    def tried(**options):
        found = tune(model, x, 0, space, ConservationError(), budget=4, **options)
        return {trial.arguments["value"] for trial in found.trials}

    assert len(tried()) == 4
    assert tried() == tried(seed=0) != tried(seed=1)


def test_what_cannot_be_judged_is_listed_last_with_its_error():
    model, x = case()

    def make(value):
        if value == 0.5:
            raise ValueError("no half")
        return Composite([]) if value == 0.7 else epsilon(value)

    found = tune(model, x, 0, Space(make, value=[0.5, 0.7, 0.1]), ConservationError())
    assert found.best.arguments == {"value": 0.1}
    errors = [trial.error for trial in found.trials]
    assert errors[0] == ""
    assert errors[1] == "ValueError: no half"
    assert errors[2].startswith("UnmatchedError: No entry of the composite gives a rule for module '0' (Linear)")


def test_the_report_is_a_table_and_the_code_of_the_best():
    model, x = case()
    found = tune(model, x, 1, Space(epsilon, value=[1.0, 0.01]), ConservationError())
    first, header, best, second, code = repr(found).splitlines()
    assert first == "ConservationError()"
    assert header.split() == ["value", "mean", "±", "se", "to", "the", "best"]
    assert best.split()[:2] == ["0.01", f"{found.best.result.mean:.4g}"]
    apart = found.trials[1].result.values - found.best.result.values
    assert second.endswith(f"{apart.mean():+.4g} ± {stats.sem(apart):.2g}")
    names = {**vars(lrphooks), **vars(lrphooks.matching), **vars(lrphooks.rules), "torch": torch}
    assert eval(code, names) == found.composite


def test_pictures_have_a_usual_metric():
    model, x = small_cnn(), torch.randn(2, 1, 12, 12)
    found = tune(model, x, 0, Space(EpsilonGammaBox, low=[-4.0], high=[4.0]))
    assert isinstance(found.metric, SymmetricRelevanceGain)
    assert len(found.trials) == 1
    assert np.isfinite(found.best.result.mean)


def test_localisation_chooses_by_a_region():
    model, x = small_cnn(), torch.randn(2, 1, 12, 12)
    truth = torch.tensor([[0, 0, 6, 12], [3, 3, 9, 9]])
    space = Space(EpsilonGammaBox, low=[-4.0], high=[4.0], gamma=[0.1, 2.0])
    found = tune(model, x, 0, space, RelevanceMass(), truth=truth)
    again = RelevanceMass()(model, x, 0, found.composite, truth=truth)
    assert found.best.result.values == pytest.approx(again.values)
    assert found.trials[0].result.mean >= found.trials[1].result.mean


def test_wrong_arguments_are_refused():
    model, x = case()
    space = Space(epsilon, value=[0.1])
    with pytest.raises(TypeError, match=r"Space: value must be a list of the values to try, got 0\.1"):
        Space(epsilon, value=0.1)
    with pytest.raises(ValueError, match="Space: value has no values to try"):
        Space(epsilon, value=[])
    with pytest.raises(TypeError, match="Space: make must be a function that makes a composite"):
        Space(epsilon(0.1))
    with pytest.raises(TypeError, match=r"tune: space must be a Space\(preset, argument=\[values\]\)"):
        tune(model, x, 0, [epsilon(0.1)], Sparseness())
    with pytest.raises(TypeError, match="tune: metric must be a metric such as"):
        tune(model, x, 0, space, max)
    with pytest.raises(ValueError, match="has no better direction, so it cannot choose"):
        tune(model, x, 0, space, PixelFlipping(order="random"))
    with pytest.raises(ValueError, match="tune: budget must be at least 1, got 0"):
        tune(model, x, 0, space, Sparseness(), budget=0)
    with pytest.raises(ValueError, match="tune: x is no batch of pictures, for which there is a usual metric"):
        tune(model, x, 0, space)
    with pytest.raises(ValueError, match="none of 1 combinations could be judged; the first: UnmatchedError"):
        tune(model, x, 0, Space(Composite, entries=[[]]), Sparseness())
    assert issubclass(lrphooks.UnmatchedError, LRPError)
    other, rows = linear(4)
    with pytest.raises(ValueError, match="could be judged; the first: ValueError: Sparseness: x has shape"):
        tune(other, rows[0], 0, space, Sparseness())
