"""Relevance to look at: pictures, texts and signals.

Everything takes tensors (of any device and precision) and arrays, and returns PIL pictures or
:class:`lrphooks.visualization.text.Text`; nothing is written to files.
"""

from lrphooks.visualization.arrays import to_picture
from lrphooks.visualization.colours import MAPS, ColourMap
from lrphooks.visualization.grids import Overlay, grid
from lrphooks.visualization.image import heatmap, heatmaps, overlay
from lrphooks.visualization.notebook import html_of, picture_of, png_of
from lrphooks.visualization.panels import side_by_side
from lrphooks.visualization.scale import POOLINGS, pool
from lrphooks.visualization.signal import curves
from lrphooks.visualization.text import Text, highlight

__all__ = [
    "MAPS",
    "POOLINGS",
    "ColourMap",
    "Overlay",
    "Text",
    "curves",
    "grid",
    "heatmap",
    "heatmaps",
    "highlight",
    "html_of",
    "overlay",
    "picture_of",
    "png_of",
    "pool",
    "side_by_side",
    "to_picture",
]
