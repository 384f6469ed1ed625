"""Pooling, scale and paint, against numpy and colours computed by hand."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lrphooks.visualization.colours import MAPS, ColourMap
from lrphooks.visualization.scale import POOLINGS, Paint, Style, pool

#: One pixel of three channels each: sums 2, -6 and 0.
PIXELS = np.array([[[3.0, -4.0, 2.0]], [[-1.0, -2.0, -2.0]], [[0.0, 0.0, 0.0]]])
BY_HAND = {
    "sum": [2, -6, 0],
    "positive": [2, 0, 0],
    "negative": [0, 6, 0],
    "absolute": [4, 6, 4],
    "norm": [10**0.5, 20**0.5, 8**0.5],
    "max": [3, 4, 2],
}


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling(pooling):
    np.testing.assert_allclose(pool(PIXELS, pooling), [BY_HAND[pooling]], rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
@pytest.mark.parametrize("shape", [(1, 2), (1, 1, 2), (1, 1, 1, 2)])
def test_any_real_tensor_is_taken(dtype, shape):
    relevance = torch.tensor([1.0, -2.0]).to(dtype).reshape(shape)
    np.testing.assert_array_equal(pool(relevance), [[1.0, -2.0]])


def test_a_tensor_that_requires_gradients_is_taken():
    np.testing.assert_array_equal(pool(torch.ones(3, 1, 1, requires_grad=True)), [[3.0]])


@given(arrays(np.float64, (6, 5), elements=st.integers(-3, 3).map(float)), st.floats(1, 100))
def test_the_percentile_is_that_of_the_sizes_without_zeros(values, percentile):
    paint = Style(percentile=percentile).paint([values])
    sizes = np.abs(values)[values != 0]
    assert paint.limit == (np.percentile(sizes, percentile) if sizes.size else 0)
    assert paint.seen == (values.min(), values.max())


def test_a_shared_scale_is_that_of_all_values():
    first, second = np.array([[1.0, -2.0]]), np.array([[8.0], [0.0]])
    assert Style().paint([first, second]).limit == 8
    assert Style(percentile=50).paint([first, second]).limit == np.percentile([1, 2, 8], 50)


def test_a_limit_is_the_scale_whatever_the_values_are():
    paint = Style(limit=4.0).paint([np.array([1.0, -8.0])])
    np.testing.assert_array_equal(paint.shares([1.0, -8.0, 2.0]), [0.25, -1, 0.5])


def test_paint_is_linear_symmetric_and_ends_at_the_limit():
    paint = Paint(ColourMap("mine", ((0, 0, 200), (255, 255, 255), (200, 0, 0))), limit=2.0)
    np.testing.assert_array_equal(
        paint([-2, -9, 0, 1, -1, 2]),
        [(0, 0, 200), (0, 0, 200), (255, 255, 255), (228, 128, 128), (128, 128, 228), (200, 0, 0)],
    )


@pytest.mark.parametrize("colours", MAPS)
def test_no_relevance_at_all_has_the_colour_of_zero(colours):
    paint = Style(colours=colours).paint([np.zeros((2, 2))])
    assert paint.limit == 0
    np.testing.assert_array_equal(paint(np.zeros(1)), [MAPS[colours].zero])


@pytest.mark.parametrize(("pooling", "name"), [("sum", "red-blue"), ("negative", "blues"), ("max", "reds")])
def test_the_default_colours_of_a_pooling(pooling, name):
    assert Style(pooling).paint([np.ones(1)]).colours is MAPS[name]


def test_a_map_of_one_side_refuses_signs():
    with pytest.raises(
        ValueError, match=r"'fire' has one side, and there is relevance below zero \(least -6\)\. Draw one"
    ):
        Style(colours="fire").paint([pool(PIXELS)])
    assert Style("positive", colours="fire").paint([pool(PIXELS, "positive")]).limit == 2


@pytest.mark.parametrize("percentile", [0, -1, 100.5, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile):
    with pytest.raises(ValueError, match="percentile must be above 0 and at most 100"):
        Style(percentile=percentile)


@pytest.mark.parametrize("limit", [0, -1, float("nan"), float("inf")])
def test_a_limit_out_of_range_is_refused(limit):
    with pytest.raises(ValueError, match="limit must be a positive number"):
        Style(limit=limit)


def test_two_scales_are_refused():
    with pytest.raises(ValueError, match=r"limit=2\.0 and percentile=99 both set the scale"):
        Style(limit=2.0, percentile=99)


def test_a_pooling_that_is_none_is_refused():
    with pytest.raises(ValueError, match="no pooling 'mean': there are sum, positive, negative, absolute, norm, max"):
        pool(PIXELS, "mean")
