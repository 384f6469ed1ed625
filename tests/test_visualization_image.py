"""Relevance as a picture: colours, scale, layout and refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from lrphooks.visualization import MAPS, heatmap, pool, side_by_side

AGAINST, NOTHING, FOR = (MAPS["red-blue"].colours[index] for index in (0, 6, 12))


def pixels(picture):
    return np.asarray(picture).astype(int)


def test_sign_gives_the_colour_and_zero_is_white():
    drawn = pixels(heatmap(np.array([[-2.0, 0.0], [2.0, 1.0]]), side=1))
    assert tuple(drawn[0, 0]) == AGAINST
    assert tuple(drawn[0, 1]) == NOTHING == (255, 255, 255)
    assert tuple(drawn[1, 0]) == FOR
    red, _, blue = drawn[1, 1]
    assert red > blue


def test_both_signs_share_one_scale():
    drawn = pixels(heatmap(np.array([[-1.0, 4.0]]), side=1))
    # A quarter of the scale is far from the full colour: the negative side is not stretched on its own.
    assert np.abs(drawn[0, 0] - AGAINST).sum() > np.abs(drawn[0, 0] - NOTHING).sum()
    assert tuple(drawn[0, 1]) == FOR


# No subnormal numbers: the product itself rounds them, so the test's own factor would change the relevance.
@given(arrays(np.float64, (5, 7), elements=st.floats(-1e3, 1e3, allow_subnormal=False)), st.floats(1e-3, 1e3))
def test_a_factor_changes_nothing_but_the_scale(relevance, factor):
    difference = pixels(heatmap(relevance, side=1)) - pixels(heatmap(relevance * factor, side=1))
    assert np.abs(difference).max() <= 1


def test_the_sign_can_be_read_from_the_colour_at_every_strength():
    strengths = np.linspace(0.05, 1.0, 60)
    red = pixels(heatmap(np.stack([strengths, -strengths]), side=1))
    assert (red[0, :, 0] > red[0, :, 2]).all()
    assert (red[1, :, 2] > red[1, :, 0]).all()
    # Darker is more: brightness falls from white to the full colour on both sides.
    assert (np.diff(red.sum(axis=2), axis=1) <= 0).all()


def test_channels_are_summed():
    relevance = torch.tensor([[[1.0, -3.0]], [[-1.0, 1.0]], [[0.0, 1.0]]])
    np.testing.assert_array_equal(pool(relevance), [[0.0, -1.0]])
    np.testing.assert_array_equal(pool(relevance.numpy()), [[0.0, -1.0]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64])
def test_any_real_tensor_is_taken(dtype):
    relevance = torch.tensor([[1.0, -2.0]]).to(dtype)
    np.testing.assert_array_equal(pool(relevance), [[1.0, -2.0]])


def test_a_tensor_that_requires_gradients_is_taken():
    assert heatmap(torch.ones(1, 2, 2, requires_grad=True)).size == (240, 240)


def test_small_pictures_are_enlarged_without_smoothing():
    drawn = heatmap(np.array([[1.0, -1.0], [-1.0, 1.0]]))
    assert drawn.size == (240, 240)
    assert set(map(tuple, pixels(drawn).reshape(-1, 3))) == {FOR, AGAINST}
    assert heatmap(np.ones((300, 500))).size == (500, 300)


def test_percentile_ignores_an_outlier_and_the_empty_ground():
    relevance = np.zeros((40, 40))
    relevance[0, :19] = 1.0
    relevance[0, 19] = 1e6
    faint = pixels(heatmap(relevance, side=1))[0, 0]
    strong = pixels(heatmap(relevance, percentile=90, side=1))[0, 0]
    assert tuple(strong) == FOR
    assert np.abs(faint - 255).max() <= 1


def test_no_relevance_at_all_is_white():
    assert set(map(tuple, pixels(heatmap(np.zeros((3, 4)))).reshape(-1, 3))) == {NOTHING}


@pytest.mark.parametrize("percentile", [0, -1, 100.5, float("nan")])
def test_a_percentile_out_of_range_is_refused(percentile):
    with pytest.raises(ValueError, match="percentile must be above 0 and at most 100"):
        heatmap(np.ones((2, 2)), percentile=percentile)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_relevance_that_is_not_finite_is_refused(value):
    relevance = torch.zeros(3, 4, 4)
    relevance[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"1 of 48 relevance values are NaN or infinite\. The usual cause"):
        heatmap(relevance)


@pytest.mark.parametrize("shape", [(), (5,), (2, 0), (0, 4, 4), (1, 1, 1, 4, 4)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"is no image: a heatmap needs \(C, H, W\) or \(H, W\)"):
        heatmap(np.ones(shape))


def test_a_batch_is_refused_with_a_hint():
    with pytest.raises(ValueError, match=r"Draw a batch with grid\(relevance\), or one image of it: relevance\[0\]"):
        heatmap(torch.ones(2, 3, 4, 4))


def test_side_by_side_shows_picture_heatmap_and_colour_bar():
    picture = Image.new("RGB", (30, 20), (0, 160, 0))
    relevance = np.zeros((20, 30))
    relevance[:, :15], relevance[:, 15:] = -1.0, 1.0
    drawn = pixels(side_by_side(picture, relevance))
    colours = list(map(tuple, drawn.reshape(-1, 3)))
    assert colours.count((0, 160, 0)) == 160 * 240
    # Half the heatmap, and an end of the colour bar.
    assert 160 * 120 <= colours.count(FOR) <= 160 * 120 + 500
    assert 160 * 120 <= colours.count(AGAINST) <= 160 * 120 + 500
    # The numbers and captions are drawn in dark ink.
    assert (drawn.max(axis=2) < 110).sum() > 200


def test_side_by_side_makes_room_for_a_title():
    picture, relevance = Image.new("L", (28, 28)), np.ones((28, 28))
    plain = side_by_side(picture, relevance)
    titled = side_by_side(picture, relevance, title="what is explained " * 6)
    assert titled.height > plain.height
    assert titled.width >= plain.width


def test_side_by_side_needs_the_picture_that_the_model_saw():
    with pytest.raises(ValueError, match=r"the picture is 30 x 20 pixels and the relevance 28 x 28"):
        side_by_side(Image.new("RGB", (30, 20)), np.ones((28, 28)))
