"""What a notebook shows: which shapes are drawn, and how."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from lrphooks.visualization import html_of, picture_of, png_of, side_by_side

RED = (135, 12, 30)


def colours(picture):
    return set(map(tuple, np.asarray(picture).reshape(-1, 3)))


def test_images_are_drawn_beside_their_relevance():
    x = torch.rand(1, 3, 20, 30)
    relevance = torch.randn(1, 3, 20, 30)
    expected = side_by_side(np.asarray((x[0] * 255).round().byte()), relevance, title="a title", percentile=99.5)
    assert np.array_equal(np.asarray(picture_of(x, relevance, title="a title")), np.asarray(expected))
    assert np.array_equal(np.asarray(picture_of((x,), [relevance], title="a title")), np.asarray(expected))


def test_inputs_of_any_range_are_stretched():
    x = torch.tensor([[[[-3.0, 1.0], [-1.0, 0.0]]]])
    drawn = picture_of(x, torch.zeros_like(x))
    # -3 is black, 1 white, -1 and 0 lie at a half and three quarters.
    assert {(0, 0, 0), (128, 128, 128), (191, 191, 191), (255, 255, 255)} <= colours(drawn)


def test_signals_are_drawn_as_curves():
    x = torch.randn(2, 3, 50)
    one, two = picture_of(x[:1], x[:1]), picture_of(x, x)
    assert one.height * 2 == two.height
    assert RED in colours(one)


def test_relevance_of_many_channels_is_drawn_alone():
    x = torch.randn(1, 8, 20, 20)
    assert picture_of(x, x).width < picture_of(x[:, :3], x[:, :3]).width


def test_a_large_batch_is_drawn_in_part_and_says_so():
    x = torch.rand(9, 1, 8, 8)
    assert picture_of(x, x).height == picture_of(x[:4], x[:4], title="the first 4 of 9").height
    assert np.array_equal(np.asarray(picture_of(x, x)), np.asarray(picture_of(x[:4], x[:4], title="the first 4 of 9")))


@pytest.mark.parametrize(
    ("inputs", "relevance"),
    [
        (torch.rand(2, 10), torch.rand(2, 10)),
        (torch.rand(1, 17, 40), torch.rand(1, 17, 40)),
        (torch.rand(0, 3, 8, 8), torch.rand(0, 3, 8, 8)),
        (torch.rand(1, 3, 8, 8), torch.rand(1, 8, 8)),
        ((torch.rand(1, 3, 8, 8), torch.rand(1, 2)), (torch.rand(1, 3, 8, 8), torch.rand(1, 2))),
        ({"x": torch.rand(1, 3, 8, 8)}, {"x": torch.rand(1, 3, 8, 8)}),
        (torch.rand(1, 3, 8, 8), None),
    ],
)
def test_of_other_shapes_there_is_no_picture(inputs, relevance):
    assert picture_of(inputs, relevance) is None


def test_a_picture_as_png():
    picture = Image.new("RGB", (3, 2), (1, 2, 3))
    with Image.open(io.BytesIO(png_of(picture))) as read:
        assert read.format == "PNG"
        assert np.array_equal(np.asarray(read), np.asarray(picture))
    assert png_of(None) is None


def test_html_has_the_table_and_the_picture():
    page = html_of({"composite": "Composite([<a & b>])", "f(x)": "1.5"}, Image.new("RGB", (3, 2), (1, 2, 3)))
    assert "<td" in page
    assert "Composite([&lt;a &amp; b&gt;])" in page
    data = re.search(r'src="data:image/png;base64,([^"]+)"', page)[1]
    with Image.open(io.BytesIO(base64.b64decode(data))) as read:
        assert read.size == (3, 2)
    assert "<img" not in html_of({"f(x)": "1.5"})
