"""Max-sensitivity and the conservation error, against linear and quadratic explanations."""

import numpy as np
import pytest
import torch
from torch import nn

import lrphooks
from judged import contributions, linear
from lrphooks.evaluation import ConservationError, MaxSensitivity
from lrphooks.rules import Epsilon


def test_sensitivity_of_a_linear_explanation_is_that_of_the_steps(close):
    model, x = linear(5)
    metric = MaxSensitivity(radius=0.3, samples=6, seed=4)
    drawing = torch.Generator().manual_seed(4)
    steps = [(2 * torch.rand(x.shape, generator=drawing, dtype=torch.float64) - 1) * 0.3 for _ in range(6)]
    weight = model.weight.detach()[1]
    sizes = np.stack([np.linalg.norm(weight * step, axis=1) for step in steps])
    result = metric(model, x, 1, contributions)
    close(result.values, sizes.max(0) / np.linalg.norm(weight * x, axis=1))
    close(metric(model, x, 1, lambda *args: 7 * contributions(*args)).values, result.values)


def test_steps_stay_within_the_radius_and_reach_out_for_it():
    model, x = linear(50)
    seen = []

    def watching(m, rows, target):
        seen.append(rows - x)
        return contributions(m, rows, target)

    MaxSensitivity(radius=0.3, samples=5)(model, x, 0, watching)
    largest = torch.stack(seen[1:]).abs().amax()
    assert 0.29 < largest <= 0.3
    assert not seen[0].any()


def test_a_constant_explanation_has_no_sensitivity_and_one_from_nothing_has_infinite():
    model, x = linear(5)
    assert MaxSensitivity()(model, x, 0, lambda m, rows, t: torch.ones_like(rows)).values.tolist() == [0.0] * 3
    assert MaxSensitivity()(model, x, 0, lambda m, rows, t: torch.zeros_like(rows)).values.tolist() == [0.0] * 3
    assert MaxSensitivity()(model, x, 0, lambda m, rows, t: rows - x).values.tolist() == [float("inf")] * 3


def test_the_explained_class_stays_that_of_the_input():
    model, x = linear(5)
    wanted = model(x).argmax(1).tolist()
    seen = []

    def watching(m, rows, target):
        seen.append(target.tolist())
        return contributions(m, rows, target)

    # So large that the largest output changes.
    MaxSensitivity(radius=50.0, samples=3)(model, x, None, watching)
    assert seen == [wanted] * 4


def test_conservation_error_is_what_is_missing(close):
    model, x = linear(2, 6)
    assert ConservationError()(model, x, 0, contributions).values.max() < 1e-12
    result = ConservationError()(model, x, [0, 1, 2], lambda *args: 0.7 * contributions(*args))
    close(result.values, [0.3] * 3)


def test_conservation_error_of_lrp_is_the_part_of_the_bias(close):
    model = nn.Sequential(nn.Linear(4, 3)).double().eval()
    x = torch.randn(5, 4, dtype=torch.float64)
    composite = lrphooks.Composite([(nn.Linear, Epsilon(0))])
    bias, f = model[0].bias[1].detach(), model(x)[:, 1].detach()
    close(ConservationError(batch_size=2)(model, x, 1, composite).values, (bias / f).abs())


def test_a_function_as_target_is_what_must_be_conserved(close):
    model, x = linear(4)
    relevance = contributions(model, x, 0) - contributions(model, x, 2)
    assert ConservationError()(model, x, lambda y: y[:, 0] - y[:, 2], relevance).values.max() < 1e-12
    close(ConservationError()(model, x, lambda y: 2 * y[:, 0] - 2 * y[:, 2], relevance).values, [0.5] * 3)


def test_wrong_options_are_refused():
    model, x = linear(4)
    with pytest.raises(
        TypeError, match="MaxSensitivity: explains changed inputs, so it needs a method, not its relevance"
    ):
        MaxSensitivity()(model, x, 0, x)
    with pytest.raises(ValueError, match="MaxSensitivity: radius must be above 0, got 0"):
        MaxSensitivity(radius=0)
    with pytest.raises(ValueError, match="MaxSensitivity: samples must be at least 1, got 0"):
        MaxSensitivity(samples=0)
