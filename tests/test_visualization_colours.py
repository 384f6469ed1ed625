"""Colour maps: control points, linear in between, even steps to the eye, and what is no map."""

import sys

import matplotlib as mpl
import numpy as np
import pytest

from lrphooks.visualization.colours import MAPS, ColourMap, colour_map


def lab(colours):
    """OKLab of sRGB colours (Ottosson 2020)."""
    shares = np.asarray(colours, dtype=float) / 255
    linear = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
    cones = linear @ np.array(
        [
            [0.4122214708, 0.2119034982, 0.0883024619],
            [0.5363325363, 0.6806995451, 0.2817188376],
            [0.0514459929, 0.1073969566, 0.6299787005],
        ]
    )
    return np.cbrt(cones) @ np.array(
        [
            [0.2104542553, 1.9779984951, 0.0259040371],
            [0.7936177850, -2.4285922050, 0.7827717662],
            [-0.0040720468, 0.4505937099, -0.8086757660],
        ]
    )


def test_the_reference_of_lightness():
    np.testing.assert_allclose(lab([(255, 255, 255), (0, 0, 0)]), [[1, 0, 0], [0, 0, 0]], atol=1e-6)


def test_control_points_are_met_and_the_way_between_is_straight():
    diverging = ColourMap("mine", ((0, 0, 200), (255, 255, 255), (101, 0, 0)))
    np.testing.assert_array_equal(
        diverging([-1, 0, 1, 0.5, -0.25]),
        [(0, 0, 200), (255, 255, 255), (101, 0, 0), (178, 128, 128), (191, 191, 241)],
    )
    one_sided = ColourMap("mine", ((0, 0, 0), (100, 200, 50)), diverging=False)
    np.testing.assert_array_equal(
        one_sided([0, 1, 0.5, -3, 7]), [(0, 0, 0), (100, 200, 50), (50, 100, 25), (0, 0, 0), (100, 200, 50)]
    )
    assert (diverging.zero, one_sided.zero) == ((255, 255, 255), (0, 0, 0))


def test_the_shape_is_kept():
    assert MAPS["fire"](np.zeros((2, 3, 4))).shape == (2, 3, 4, 3)


@pytest.mark.parametrize("name", MAPS)
def test_lightness_is_linear_in_the_value(name):
    colours = MAPS[name]
    shares = np.linspace(-1 if colours.diverging else 0, 1, 201)
    lightness = lab(colours(shares))[:, 0]
    zero, end = lightness[shares == 0][0], lightness[-1]
    expected = zero + (end - zero) * np.abs(shares)
    # Next to black, 8 bits are too coarse: the first step alone is 0.067.
    seen = expected > 0.15
    np.testing.assert_allclose(lightness[seen], expected[seen], atol=0.02)


@pytest.mark.parametrize("name", [name for name in MAPS if MAPS[name].diverging])
def test_both_sides_differ_in_hue_and_not_in_lightness(name):
    shares = np.linspace(0.05, 1, 96)
    above, below = lab(MAPS[name](shares)), lab(MAPS[name](-shares))
    np.testing.assert_allclose(above[:, 0], below[:, 0], atol=0.04)
    apart = np.linalg.norm((above - below)[:, 1:], axis=1)
    # 0.02 is a just noticeable difference; colours at a tenth of the scale are well above it.
    assert apart[shares >= 0.1].min() > 0.025
    assert apart[shares >= 0.5].min() > 0.15


def test_the_default_is_red_for_and_blue_against_and_its_halves_have_names():
    shares = np.linspace(0.05, 1, 20)
    red, blue = colour_map(None)(shares).astype(int), colour_map(None)(-shares).astype(int)
    assert (red[:, 0] > red[:, 2]).all()
    assert (blue[:, 2] > blue[:, 0]).all()
    np.testing.assert_array_equal(MAPS["reds"](shares), MAPS["red-blue"](shares))
    np.testing.assert_array_equal(MAPS["blues"](shares), MAPS["red-blue"](-shares))


@pytest.mark.parametrize(
    "points", [["#0000ff", "#FFFFFF", "#ff0000"], [(0, 0, 255), (255, 255, 255), (255, 0, 0)], np.diag([255] * 3)[::-1]]
)
def test_control_points_of_ones_own(points):
    colours = colour_map(points)
    assert colours.diverging
    assert colours.colours[0] == (0, 0, 255)
    assert colours.colours[2] == (255, 0, 0)


@pytest.mark.parametrize("name", ["magma", "RdBu", "coolwarm_r"])
@pytest.mark.parametrize("as_object", [False, True])
def test_colour_maps_of_matplotlib(name, as_object):
    theirs = mpl.colormaps[name]
    ours = colour_map(theirs if as_object else name)
    assert ours.name == name
    assert ours.diverging == (name != "magma")
    shares = np.linspace(0, 1, 301)
    drawn = ours(2 * shares - 1 if ours.diverging else shares)
    # Theirs has 256 steps, ours is straight between them.
    steps = np.stack([np.asarray(theirs(shares + shift))[:, :3] * 255 for shift in (-1 / 256, 0, 1 / 256)])
    assert (drawn >= steps.min(0) - 0.5).all()
    assert (drawn <= steps.max(0) + 0.5).all()


def test_matplotlib_is_asked_for_only_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert colour_map("fire").name == "fire"
    with pytest.raises(ImportError, match=r"no colour map 'magma' here: there are red-blue, .*lrphooks\[plot\]"):
        colour_map("magma")


def test_what_is_no_colour_map():
    with pytest.raises(ValueError, match=r"no colour map 'rainbowl', neither here \(red-blue, .*\) nor in matplotlib"):
        colour_map("rainbowl")
    with pytest.raises(TypeError, match=r"7 is no colour map\. Give a name \(red-blue"):
        colour_map(7)
    with pytest.raises(ValueError, match=r"2 colours do not make a map\. One with two sides needs an odd number"):
        colour_map(["#000000", "#ffffff"])
    with pytest.raises(ValueError, match="1 colours do not make a map"):
        ColourMap("dot", ((0, 0, 0),), diverging=False)


@pytest.mark.parametrize(
    "colour", [(0, 0), (0, 0, 256), (-1, 0, 0), (0.5, 0, 0), "#12345", "red", None, (0, 0, float("nan"))]
)
def test_what_is_no_colour(colour):
    with pytest.raises(ValueError, match="is no colour: give red, green and blue as whole numbers from 0 to 255"):
        ColourMap("mine", (colour, (0, 0, 0), (1, 1, 1)))
