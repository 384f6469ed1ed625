"""The colour bar: its numbers, its ends, and what lies beyond them."""

import numpy as np
import pytest

from lrphooks.visualization.bar import bar
from lrphooks.visualization.colours import MAPS
from lrphooks.visualization.scale import Paint, Style


def test_the_numbers_are_the_limit_on_both_sides_of_zero():
    assert Paint(MAPS["red-blue"], 2.07e-7).numbers == {1.0: "+2.07·10⁻⁷", 0.0: "0", -1.0: "−2.07·10⁻⁷"}
    assert Paint(MAPS["fire"], 0.5).numbers == {1.0: "0.500", 0.0: "0"}
    assert Paint(MAPS["red-blue"], 0.0).numbers == {0.0: "0"}


@pytest.mark.parametrize(
    ("values", "beyond"), [([1, -1], (False, False)), ([3, -1], (False, True)), ([1, -2.5], (True, False))]
)
def test_an_end_is_pointed_where_values_lie_beyond_it(values, beyond):
    paint = Style(limit=2.0).paint([np.array(values, dtype=float)])
    assert paint.beyond == beyond
    drawn = np.asarray(bar(paint, 101))[:, 14:28]
    ends = {1.0: drawn[0], -1.0: drawn[-1]}
    for share, pointed in zip((-1.0, 1.0), beyond, strict=True):
        coloured = (ends[share] == paint.colours(share)).all(axis=1).sum()
        assert coloured < 8 if pointed else coloured == 14


@pytest.mark.parametrize("name", MAPS)
def test_the_bar_is_the_map_from_its_top_to_its_bottom(name):
    colours = MAPS[name]
    drawn = np.asarray(bar(Paint(colours, 1.0), 101))
    lowest = -1 if colours.diverging else 0
    np.testing.assert_array_equal(drawn[:, 20], colours(np.linspace(1, lowest, 101)))
    # There is a gap before it, and numbers behind it that are whole.
    assert (drawn[:, :12] == 255).all()
    assert (drawn[:, 36:] < 100).any()


def test_the_numbers_stand_apart_however_low_the_bar_is():
    dark = (np.asarray(bar(Paint(MAPS["red-blue"], 1.0), 2))[:, 36:] < 100).any(axis=(1, 2))
    assert np.diff(dark.astype(int)).clip(min=0).sum() + dark[0] == 3
