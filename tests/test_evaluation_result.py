"""Results, and the paired difference of two, against scipy."""

import numpy as np
import pytest
import torch
from scipy import stats

from judged import linear
from lrphooks.evaluation import Complexity, Constant, PixelFlipping, Sparseness, difference
from lrphooks.evaluation.result import Result, student_quantile


def result(values, metric=None):
    return Result(metric or Sparseness(), np.array(values, dtype=float))


@pytest.mark.parametrize("degrees", [1, 2, 3, 5, 10, 49, 1000, 1_000_000])
@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.9995])
def test_the_quantile_of_student_is_that_of_scipy(probability, degrees):
    assert student_quantile(probability, degrees) == pytest.approx(stats.t.ppf(probability, degrees), rel=1e-8)


@pytest.mark.parametrize("level", [0.9, 0.95])
def test_the_difference_is_a_paired_t_test(level):
    rng = np.random.default_rng(0)
    first = rng.normal(size=12)
    second = first + rng.normal(0.3, 0.2, size=12)
    found = difference(result(second), result(first), level=level)
    test = stats.ttest_rel(second, first)
    interval = test.confidence_interval(level)
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high))
    assert found.mean == pytest.approx(np.mean(second - first))
    assert found.standard_error == pytest.approx(found.mean / test.statistic)


def test_mean_and_standard_error():
    found = result([1.0, 2.0, 6.0])
    assert found.mean == 3.0
    assert found.standard_error == pytest.approx(stats.sem([1.0, 2.0, 6.0]))
    assert np.isnan(result([1.0]).standard_error)


def test_results_read_as_a_line():
    assert repr(result([0.25, 0.75])) == "Sparseness(): 0.5 ± 0.25 (2 rows, higher is better)"
    assert repr(result([0.25], Complexity())) == "Complexity(): 0.25 (1 row, lower is better)"
    chance = PixelFlipping(order="random", patch=4, infill=Constant(1.0))
    assert repr(result([0.5, 0.5], chance)) == (
        "PixelFlipping(patch=4, infill=Constant(value=1.0), order='random'): 0.5 ± 0 (2 rows)"
    )
    found = difference(result([0.5, 0.75]), result([0.25, 0.25]))
    assert repr(found) == "Sparseness(): difference +0.375 ± 0.12 (95% interval -1.213 to +1.963, 2 rows)"


def test_the_numbers_cannot_be_changed():
    found = result([1.0, 2.0])
    with pytest.raises(ValueError, match="read-only"):
        found.values[0] = 3.0


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"two metrics cannot be compared: Sparseness\(\) and Complexity\(\)"):
        difference(result([1.0, 2.0]), result([1.0, 2.0], Complexity()))
    with pytest.raises(ValueError, match="the first result has 2 rows and the second 3"):
        difference(result([1.0, 2.0]), result([1.0, 2.0, 3.0]))
    with pytest.raises(ValueError, match="one row has no spread, so there is no interval"):
        difference(result([1.0]), result([2.0]))
    with pytest.raises(ValueError, match="level is a probability between 0 and 1, got 95"):
        difference(result([1.0, 2.0]), result([1.0, 2.0]), level=95)


def test_the_batch_size_makes_no_other_metric():
    model, x = linear(4)
    first = Sparseness(batch_size=1)(model, x, 0, torch.ones_like(x))
    second = Sparseness(batch_size=2)(model, x, 0, torch.ones_like(x))
    assert difference(first, second).mean == 0.0
