"""Colour maps: diverging ones around zero, and one-sided ones that start at zero."""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias, final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lrphooks.extras import install

Colour: TypeAlias = "tuple[int, int, int]"

#: matplotlib does not say of a map that it diverges; these do, and their mirror images.
_DIVERGING_OF_MATPLOTLIB = frozenset(
    (
        *("PiYG", "PRGn", "BrBG", "PuOr", "RdGy", "RdBu", "RdYlBu", "RdYlGn"),
        *("Spectral", "coolwarm", "bwr", "seismic", "berlin", "managua", "vanimo"),
    )
)
_SAMPLES = 257


@final
@dataclass(frozen=True)
class ColourMap:
    """Colours at equal steps, linear in sRGB in between.

    Parameters
    ----------
    name
        What the map is called.
    colours
        The control points, from the lowest to the highest value, as (red, green, blue) of 0 to 255 each.
    diverging
        Whether the map spans -1 to 1, with zero in the middle; else it spans 0 to 1.

    Raises
    ------
    ValueError
        If there are fewer than two colours, an even number in a diverging map (zero would have none), or one is no
        colour.

    """

    name: str
    colours: tuple[Colour, ...]
    diverging: bool = True

    def __post_init__(self) -> None:
        """Check the control points."""
        count = len(self.colours)
        if count < 2 or (self.diverging and count % 2 == 0):
            raise ValueError(
                f"colour map {self.name!r}: {count} colours do not make a map. One with two sides needs an odd number, "
                "at least 3, so that zero has the colour in the middle; one with a single side, "
                "ColourMap(name, colours, diverging=False), at least 2."
            )
        object.__setattr__(self, "colours", tuple(_checked(colour, self.name) for colour in self.colours))

    def __call__(self, shares: ArrayLike) -> NDArray[np.uint8]:
        """Return the colours of shares, any shape (...): (..., 3). What lies beyond the ends gets their colour."""
        stops = np.linspace(-1.0 if self.diverging else 0.0, 1.0, len(self.colours))
        points = np.asarray(self.colours, dtype=np.float64)
        values = np.asarray(shares, dtype=np.float64)
        channels = [np.interp(values, stops, points[:, channel]) for channel in range(3)]
        painted: NDArray[np.uint8] = np.stack(channels, axis=-1).round().astype(np.uint8)
        return painted

    @property
    def zero(self) -> Colour:
        """The colour of no relevance."""
        return self.colours[len(self.colours) // 2] if self.diverging else self.colours[0]


def _checked(colour: Any, name: str) -> Colour:
    if isinstance(colour, str) and re.fullmatch("#[0-9a-fA-F]{6}", colour):
        return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)
    try:
        values = np.asarray(colour, dtype=np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (3,) or not ((values >= 0) & (values <= 255) & (values == values.round())).all():
        raise ValueError(
            f"colour map {name!r}: {colour!r} is no colour: give red, green and blue as whole numbers from 0 to 255, "
            "or '#rrggbb'."
        )
    red, green, blue = (int(value) for value in values)
    return red, green, blue


# Lightness (in OKLab) is linear in the value and the same on both sides: a step of relevance looks equally large
# everywhere, and so do equal amounts for and against. tests/test_visualization_colours.py measures it.
_BLUE = ((17, 63, 154), (31, 96, 185), (45, 130, 219), (79, 164, 241), (137, 197, 245), (195, 227, 250))
_RED = ((253, 212, 194), (252, 164, 135), (251, 107, 72), (226, 55, 35), (184, 21, 29), (135, 12, 30))
_PURPLE = ((94, 35, 140), (126, 64, 172), (159, 93, 203), (193, 123, 234), (217, 167, 242), (237, 211, 249))
_GREEN = ((191, 235, 199), (134, 211, 152), (90, 181, 116), (55, 150, 87), (28, 118, 63), (18, 86, 45))
_ICE = (
    *((182, 250, 253), (64, 218, 247), (50, 175, 216), (36, 134, 183)),
    *((23, 95, 147), (11, 59, 110), (3, 26, 71), (0, 1, 32)),
)
_GLOW = (
    *((18, 0, 1), (63, 3, 5), (111, 18, 5), (153, 54, 12)),
    *((190, 94, 20), (222, 138, 29), (247, 186, 39), (254, 240, 91)),
)
_FIRE = (
    *((16, 0, 1), (58, 2, 6), (105, 7, 8), (148, 40, 10)),
    *((185, 78, 18), (218, 119, 26), (246, 162, 35), (253, 214, 115)),
)
_GREY = tuple((level, level, level) for level in (218, 182, 148, 115, 84, 54, 27, 5))
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)

#: The colour maps by name. The first is the default; "reds" is its upper half.
MAPS: Mapping[str, ColourMap] = MappingProxyType(
    {
        colours.name: colours
        for colours in (
            ColourMap("red-blue", (*_BLUE, _WHITE, *_RED)),
            ColourMap("green-purple", (*_PURPLE, _WHITE, *_GREEN)),
            ColourMap("fire-ice", (*_ICE, _BLACK, *_GLOW)),
            ColourMap("reds", (_WHITE, *_RED), diverging=False),
            ColourMap("blues", (_WHITE, *reversed(_BLUE)), diverging=False),
            ColourMap("fire", (_BLACK, *_FIRE, _WHITE), diverging=False),
            ColourMap("greys", (_WHITE, *_GREY, _BLACK), diverging=False),
        )
    }
)


def colour_map(colours: Any, default: str = "red-blue") -> ColourMap:
    """Return a colour map.

    Parameters
    ----------
    colours
        A ColourMap; a name in MAPS; the control points of a diverging map, as (red, green, blue) or "#rrggbb"; with
        matplotlib, one of its colour maps or the name of one; None for the default.
    default
        The name of the default.

    Raises
    ------
    ValueError, TypeError, ImportError
        If there is no such map, the points make none, or a name would need matplotlib.

    """
    if colours is None:
        return MAPS[default]
    if isinstance(colours, ColourMap):
        return colours
    if isinstance(colours, str):
        return MAPS[colours] if colours in MAPS else _of_matplotlib(_named_by_matplotlib(colours))
    if callable(colours) and hasattr(colours, "N"):
        return _of_matplotlib(colours)
    if isinstance(colours, (Sequence, np.ndarray)):
        return ColourMap("custom", tuple(colours))
    raise TypeError(
        f"colours: {colours!r} is no colour map. Give a name ({', '.join(MAPS)}), a list of (red, green, blue), a "
        "ColourMap, or a colour map of matplotlib."
    )


def _named_by_matplotlib(name: str) -> Any:
    try:
        known = importlib.import_module("matplotlib").colormaps
    except ImportError as error:
        raise ImportError(
            f"there is no colour map {name!r} here: there are {', '.join(MAPS)}. matplotlib has more, but could not "
            f"be imported ({error}): {install('plot')}."
        ) from error
    if name not in known:
        raise ValueError(f"there is no colour map {name!r}, neither here ({', '.join(MAPS)}) nor in matplotlib.")
    return known[name]


def _of_matplotlib(colours: Any) -> ColourMap:
    """Sample a colour map of matplotlib."""
    points = np.asarray(colours(np.linspace(0.0, 1.0, _SAMPLES)))[:, :3]
    name = str(getattr(colours, "name", "custom"))
    rounded = tuple(tuple(int(value) for value in point) for point in (points * 255).round())
    return ColourMap(name, rounded, diverging=name.removesuffix("_r") in _DIVERGING_OF_MATPLOTLIB)  # type: ignore[arg-type]
