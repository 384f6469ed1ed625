"""Heatmaps and overlays: colours, scale, enlargement and refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from lrphooks.visualization import heatmap, heatmaps, overlay

BLUE, WHITE, RED = (17, 63, 154), (255, 255, 255), (135, 12, 30)
#: The control points of a map that can be computed with by hand.
MINE = ((0, 0, 200), (255, 255, 255), (200, 0, 0))


def pixels(picture):
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def test_sign_gives_the_colour_and_zero_is_white():
    drawn = pixels(heatmap(np.array([[-2.0, 0.0], [2.0, 1.0]]), side=1))
    assert tuple(drawn[0, 0]) == BLUE
    assert tuple(drawn[0, 1]) == WHITE
    assert tuple(drawn[1, 0]) == RED
    # The third control point of six on the way from white to the full colour.
    assert tuple(drawn[1, 1]) == (251, 107, 72)


def test_both_signs_share_one_scale():
    drawn = pixels(heatmap(np.array([[-1.0, 4.0]]), side=1, colours=MINE))
    # A quarter of the way from white to (0, 0, 200).
    assert tuple(drawn[0, 0]) == (191, 191, 241)
    assert tuple(drawn[0, 1]) == (200, 0, 0)


# No subnormal numbers: the product itself rounds them, so the test's own factor would change the relevance.
@given(arrays(np.float64, (5, 7), elements=st.floats(-1e3, 1e3, allow_subnormal=False)), st.floats(1e-3, 1e3))
def test_a_factor_changes_nothing_but_the_scale(relevance, factor):
    difference = pixels(heatmap(relevance, side=1)) - pixels(heatmap(relevance * factor, side=1))
    assert np.abs(difference).max() <= 1


def test_channels_are_pooled():
    relevance = torch.tensor([[[3.0, 0.0]], [[-4.0, 0.0]]])
    assert tuple(pixels(heatmap(relevance, side=1))[0, 0]) == BLUE
    assert tuple(pixels(heatmap(relevance, side=1, pooling="norm"))[0, 0]) == RED
    # The norm is 5 of 10.
    assert tuple(pixels(heatmap(relevance, side=1, pooling="norm", limit=10.0))[0, 0]) == (251, 107, 72)


def test_small_pictures_are_enlarged_without_smoothing():
    drawn = pixels(heatmap(np.array([[1.0, -1.0], [-1.0, 1.0]])))
    assert drawn.shape == (240, 240, 3)
    assert (drawn[:120, :120] == RED).all()
    assert (drawn[:120, 120:] == BLUE).all()
    assert (drawn[120:, :120] == BLUE).all()
    assert heatmap(np.ones((20, 30))).size == (240, 160)
    assert heatmap(np.ones((300, 500))).size == (500, 300)
    with pytest.raises(ValueError, match="side must be at least 1 pixel, not 0"):
        heatmap(np.ones((2, 2)), side=0)


def test_percentile_ignores_an_outlier_and_the_empty_ground():
    relevance = np.zeros((40, 40))
    relevance[0, :19] = 1.0
    relevance[0, 19] = 1e6
    faint = pixels(heatmap(relevance, side=1))[0, 0]
    strong = pixels(heatmap(relevance, percentile=90, side=1))[0, 0]
    assert tuple(strong) == RED
    assert np.abs(faint - 255).max() <= 1


def test_no_relevance_at_all_is_white():
    assert set(map(tuple, pixels(heatmap(np.zeros((3, 4)))).reshape(-1, 3))) == {WHITE}


def test_a_batch_has_a_scale_each_or_one_for_all():
    batch = torch.tensor([[[[1.0, 0.0]]], [[[4.0, -2.0]]]], dtype=torch.bfloat16)
    own = [pixels(picture) for picture in heatmaps(batch, side=1, colours=MINE)]
    assert [tuple(own[0][0, 0]), tuple(own[1][0, 0])] == [(200, 0, 0)] * 2
    shared = [pixels(picture) for picture in heatmaps(batch, side=1, colours=MINE, shared_scale=True)]
    assert tuple(shared[0][0, 0]) == (241, 191, 191)
    assert tuple(shared[1][0, 1]) == (128, 128, 228)


@pytest.mark.parametrize("level", [0, 255])
def test_an_overlay_is_the_picture_where_there_is_no_relevance_and_colour_where_there_is_much(level):
    picture = Image.new("RGB", (3, 1), (level, level, level))
    # Black is lifted to 72, so that dark colours can be seen on it.
    ground = 255 if level else 72
    drawn = pixels(overlay(picture, np.array([[0.0, -1.0, 0.5]]), side=1, colours=MINE))[0]
    assert tuple(drawn[0]) == (ground,) * 3
    assert tuple(drawn[1]) == (0, 0, 200)
    # Half of the ground and half of the colour for 3/4: (214, 64, 64).
    assert tuple(drawn[2]) == tuple(round((ground + colour) / 2) for colour in (214, 64, 64))


def test_an_overlay_keeps_as_much_colour_as_is_asked_for():
    picture, nothing = Image.new("RGB", (1, 1), (255, 0, 0)), np.zeros((1, 1))
    grey = 72 + 183 * 0.299
    assert tuple(pixels(overlay(picture, nothing, side=1))[0, 0]) == (round(grey),) * 3
    assert tuple(pixels(overlay(picture, nothing, side=1, saturation=1.0))[0, 0]) == (255, 72, 72)
    half = tuple(pixels(overlay(picture, nothing, side=1, saturation=0.5))[0, 0])
    assert half == (round((255 + grey) / 2), round((72 + grey) / 2), round((72 + grey) / 2))
    with pytest.raises(ValueError, match="saturation must be from 0"):
        overlay(picture, nothing, saturation=2.0)


def test_relevance_is_spread_smoothly_over_a_larger_original():
    relevance = np.zeros((4, 4))
    relevance[1, 2] = 1.0
    drawn = pixels(overlay(np.full((80, 80), 255, dtype=np.uint8), relevance, side=1, colours=MINE))
    strength = 255 - drawn[:, :, 1]
    # Its peak is the middle of the relevant pixel, which covers rows 20 to 39 and columns 40 to 59.
    rows, columns = np.nonzero(strength == strength.max())
    assert 28 <= rows.min() <= rows.max() <= 31
    assert 48 <= columns.min() <= columns.max() <= 51
    assert np.abs(np.diff(strength[30])).max() < 25
    assert strength[:, :29].max() == 0


def test_the_box_is_where_the_model_looked():
    relevance = np.ones((2, 2))
    drawn = pixels(overlay(Image.new("RGB", (9, 6), "white"), relevance, box=(3, 1, 7, 5), side=1))
    inside = np.zeros((6, 9), dtype=bool)
    inside[1:5, 3:7] = True
    assert (drawn[inside] == RED).all()
    assert (drawn[~inside] == 255).all()
    for box in ((3, 1, 10, 5), (3, 3, 3, 5), (-1, 0, 4, 4)):
        with pytest.raises(ValueError, match=r"is no part of the picture of 9 x 6 pixels"):
            overlay(Image.new("RGB", (9, 6)), relevance, box=box)


@pytest.mark.parametrize("size", [(20, 28), (30, 20), (56, 60)])
def test_an_overlay_needs_a_picture_of_the_shape_of_the_relevance(size):
    with pytest.raises(
        ValueError, match=rf"the picture is {size[0]} x {size[1]} pixels and the relevance 28 x 28\. Give"
    ):
        overlay(Image.new("RGB", size), np.ones((28, 28)))


def test_a_shape_bent_by_rounding_is_no_other_shape():
    # 451 x 300 pixels, resized to a shorter side of 224: 336.7 pixels wide.
    assert overlay(Image.new("RGB", (451, 300)), np.ones((224, 337))).size == (451, 300)
