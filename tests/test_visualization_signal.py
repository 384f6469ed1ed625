"""Signals: the colours of relevance behind the curve, axes, many samples and few."""

import numpy as np
import pytest
import torch

from lrphooks import lrp
from lrphooks.composites import AttnLRP
from lrphooks.visualization import curves

RED, BLUE, FRAME = (135, 12, 30), (17, 63, 154), (196, 196, 196)


def pixels(picture):
    return np.asarray(picture).astype(int)


def plots(drawn, size):
    """The insides of the frames of that size, from top to bottom."""
    edge = (drawn == FRAME).all(axis=2)
    width, height = size
    found = [
        drawn[top + 1 : top + 1 + height, left + 1 : left + 1 + width]
        for top, left in np.argwhere(edge[: -height - 1, : -width - 1])
        if edge[top, left : left + width + 2].all() and edge[top : top + height + 2, left].all()
    ]
    assert found
    return found


def share_of(plot, colour):
    return (plot == colour).all(axis=2).mean()


def test_each_sample_stands_on_the_colour_of_its_relevance():
    drawn = pixels(curves([0.0, 0, 0, 0], [1.0, 0, -1, 0.5], size=(200, 60)))
    (plot,) = plots(drawn, (200, 60))
    # A flat curve lies in the middle; the rows above it are the colours.
    for start, colour in ((0, RED), (50, (255, 255, 255)), (100, BLUE), (150, (251, 107, 72))):
        assert (plot[2:20, start : start + 50] == colour).all()
    ink = (plot.max(axis=2) < 60).any(axis=1)
    assert set(np.nonzero(ink)[0]) <= {28, 29, 30, 31}


def test_channels_share_one_scale_of_colour():
    drawn = pixels(curves(np.zeros((2, 4)), [[1.0] * 4, [2.0] * 4], size=(100, 60)))
    first, second = plots(drawn, (100, 60))
    assert (first[2:20] == (251, 107, 72)).all()
    assert (second[2:20] == RED).all()


def test_the_curve_has_the_shape_of_the_signal():
    t = np.arange(200)
    drawn = pixels(curves(np.sin(t / 200 * 2 * np.pi), np.zeros(200), size=(400, 100)))
    (plot,) = plots(drawn, (400, 100))
    dark = plot.max(axis=2) < 128
    middle = [np.nonzero(column)[0].mean() for column in dark.T[2:-2]]
    # The range of the axis is that of the signal with 8 % of room on each side.
    expected = 50 - np.sin((np.arange(2, 398) + 0.5) / 400 * 2 * np.pi) * 50 / 1.16
    assert np.abs(np.array(middle) - expected).max() < 1.6


def test_of_many_samples_none_that_stands_out_is_hidden():
    signal, relevance = np.zeros(50_000), np.zeros(50_000)
    signal[20_000], relevance[30_000], relevance[40_000] = 5.0, 1.0, -1.0
    (plot,) = plots(pixels(curves(signal, relevance, size=(500, 100))), (500, 100))
    red, blue = ((plot == colour).all(axis=2).sum(axis=0) > 50 for colour in (RED, BLUE))
    assert np.nonzero(red)[0].tolist() == [300]
    assert np.nonzero(blue)[0].tolist() == [400]
    # The peak of the curve is one column and the width of its line; 300 and 400 are the coloured columns.
    tall = np.nonzero((plot[20:40].max(axis=2) < 240).all(axis=0))[0].tolist()
    assert tall == [199, 200, 201, 300, 400]


def test_a_detector_finds_its_pattern():
    """A convolution that is the pattern, and the largest answer: relevance must be where the pattern was put."""
    pattern = torch.tensor([1.0, -2.0, 3.0, -2.0, 1.0])
    layer = torch.nn.Conv1d(2, 1, 5, bias=False)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 1] = pattern
    model = torch.nn.Sequential(layer, torch.nn.ReLU(), torch.nn.AdaptiveMaxPool1d(1), torch.nn.Flatten())
    x = 0.1 * torch.randn(1, 2, 60)
    x[0, 1, 40:45] += pattern
    first, second = plots(pixels(curves(x, lrp(model, x, 0, AttnLRP()), size=(600, 80))), (600, 80))
    red = [(plot[:, :, 0] - plot[:, :, 2] > 20).any(axis=0) for plot in (first, second)]
    assert not red[0].any()
    assert np.nonzero(red[1])[0].min() >= 400
    assert np.nonzero(red[1])[0].max() < 450
    assert red[1][420:430].all()


def test_names_unit_and_title_have_room():
    signal = np.zeros((2, 5))
    plain = curves(signal, signal)
    named = curves(signal, signal, names=["heart", "breath"], rate=10, unit="time in s", title="two signals")
    assert named.height > plain.height + 60
    assert named.width == plain.width


@pytest.mark.parametrize("size", [(720, 120), (40, 40)])
@pytest.mark.parametrize("count", [1, 2, 719, 721, 100_000])
def test_any_number_of_samples_is_drawn(count, size):
    signal = torch.full((1, 1, count), 3.0, dtype=torch.float16)
    assert share_of(plots(pixels(curves(signal, signal, size=size)), size)[0], RED) > 0.3


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"a signal of shape \(1, 4\) and relevance of shape \(1, 3\) do not match"):
        curves(np.ones(4), np.ones(3))
    with pytest.raises(
        ValueError, match=r"signal of shape \(2, 3, 4\) is no signal.* one signal of the batch: signal\[0\]"
    ):
        curves(np.ones((2, 3, 4)), np.ones((3, 4)))
    with pytest.raises(ValueError, match=r"relevance of shape \(0,\) is no signal"):
        curves(np.ones(0), np.ones(0))
    with pytest.raises(ValueError, match="1 of 2 signal values are NaN"):
        curves([1.0, float("nan")], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"names \['a'\] for 2 channels"):
        curves(np.ones((2, 3)), np.ones((2, 3)), names=["a"])
    for wrong in ({"rate": 0}, {"size": (720, 10)}):
        with pytest.raises(ValueError, match="the rate must be above 0, and width and height at least 36 pixels"):
            curves(np.ones(3), np.ones(3), **wrong)


def test_a_small_drawing_has_few_numbers_and_room_for_its_bar():
    small, large = (pixels(curves(np.ones(3), np.ones(3), size=size)) for size in ((200, 40), (200, 200)))
    bar = small[:, -100:]
    rows = [np.nonzero((np.abs(bar - colour) <= 8).all(axis=2).any(axis=1))[0] for colour in (RED, BLUE)]
    assert rows[1].max() - rows[0].min() >= 3 * 15
    assert large.shape[0] > small.shape[0]
