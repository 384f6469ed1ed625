"""Relevance to look at: pictures, texts and signals.

Everything takes tensors (of any device and precision) and arrays, and returns PIL pictures or
:class:`lrphooks.visualization.text.Text`; nothing is written to files.
"""

from lrphooks.visualization.arrays import to_picture
from lrphooks.visualization.colours import MAPS, ColourMap
from lrphooks.visualization.image import heatmap, heatmaps, overlay
from lrphooks.visualization.panels import Overlay, grid, side_by_side
from lrphooks.visualization.scale import POOLINGS, pool

__all__ = [
    "MAPS",
    "POOLINGS",
    "ColourMap",
    "Overlay",
    "grid",
    "heatmap",
    "heatmaps",
    "overlay",
    "pool",
    "side_by_side",
    "to_picture",
]
