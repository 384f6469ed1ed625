"""Import this before anything that imports torchvision.

A torchvision wheel whose compiled operators do not load beside the installed torch fails on import with "operator
torchvision::nms does not exist". No test needs those operators, so they are declared here without an implementation.
"""

import importlib
import sys

import torch

_library = None  # a Library undefines its operators when it is collected


def _declare():
    global _library
    _library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


try:
    importlib.import_module("torchvision")
except RuntimeError as error:
    if "torchvision::nms" not in str(error):
        raise
    for _name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[_name]
    _declare()
    importlib.import_module("torchvision")
