"""A small residual network trained on handwritten digits, and a few digits for it to read.

The network and the pictures travel with the package, so that the main job runs on real input without
any download. ``benchmarks/train_digits.py`` in the source repository trains the network again;
``README.md`` beside this file says where the data comes from and what accuracy was measured.
"""

from lrphooks.digits.data import from_picture, images, load_image
from lrphooks.digits.network import DigitNetwork, load_network

__all__ = ["DigitNetwork", "from_picture", "images", "load_image", "load_network"]
