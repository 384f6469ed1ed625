"""The colour bar: its numbers, its ends, and what lies beyond them."""

import numpy as np
import pytest
from PIL import Image

from lrphooks.visualization.bar import Bar
from lrphooks.visualization.colours import MAPS
from lrphooks.visualization.scale import Paint, Style


def test_the_numbers_are_the_limit_on_both_sides_of_zero():
    assert Bar(Paint(MAPS["red-blue"], 2.07e-7)).numbers == {1.0: "+2.07·10⁻⁷", 0.0: "0", -1.0: "−2.07·10⁻⁷"}
    assert Bar(Paint(MAPS["fire"], 0.5)).numbers == {1.0: "0.500", 0.0: "0"}
    assert Bar(Paint(MAPS["red-blue"], 0.0)).numbers == {0.0: "0"}


@pytest.mark.parametrize(
    ("values", "beyond"), [([1, -1], (False, False)), ([3, -1], (True, False)), ([1, -2.5], (False, True))]
)
def test_values_beyond_an_end_are_told_at_that_end(values, beyond):
    bar = Bar(Style(limit=2.0).paint([np.array(values, dtype=float)]))
    assert (bar.beyond[1.0], bar.beyond[-1.0]) == beyond


@pytest.mark.parametrize("name", MAPS)
def test_the_bar_is_the_map_from_its_top_to_its_bottom(name):
    bar = Bar(Paint(MAPS[name], 1.0))
    canvas = Image.new("RGB", (bar.width + 10, 101), "white")
    bar.draw(canvas, (0, 0), 101)
    drawn = np.asarray(canvas)
    colours = MAPS[name]
    (columns,) = np.nonzero((drawn[[0, 100]] == [[colours.colours[-1]], [colours.colours[0]]]).all(axis=(0, 2)))
    assert len(columns) >= 10
    lowest = -1 if colours.diverging else 0
    np.testing.assert_array_equal(drawn[:, columns[0]], colours(np.linspace(1, lowest, 101)))
    # The numbers are inside of the canvas that the bar asked for.
    assert (drawn[:, bar.width :] == 255).all()
    assert (drawn[:, columns[-1] + 8 :] < 100).any()
