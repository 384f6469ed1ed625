"""What a measuring process has loaded: torch on one thread, and the libraries that are installed."""

from __future__ import annotations

import contextlib
import os
import warnings

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch

torch.set_num_threads(1)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    for _name in ("benchmarks.zoo.subjects.shim", "timm", "transformers.modeling_utils", "keras", "torch_geometric"):
        with contextlib.suppress(Exception):
            __import__(_name)
