"""Labelled pictures, with values from 0 to 1."""

from __future__ import annotations

import json

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.faithfulness import assets


def photographs(side: int, margin: int = 32) -> tuple[Tensor, Tensor]:
    """Return 70 labelled ImageNet photographs, (70, 3, side, side), and their classes.

    The shorter side is brought to ``side + margin`` and the centre is cut out.
    """
    files = sorted(assets.FOOLBOX.folder.glob("foolbox/data/imagenet_*.jpg"))
    files += sorted(assets.ROBUST.folder.glob("*/data/imagenet/*.png"))
    pictures = []
    for file in files:
        with Image.open(file) as picture:
            pictures.append(_cut(picture.convert("RGB"), side, margin))
    return torch.stack(pictures), torch.tensor([int(file.stem.rpartition("_")[2]) for file in files])


def _cut(picture: Image.Image, side: int, margin: int) -> Tensor:
    scale = (side + margin) / min(picture.size)
    width, height = (max(side + margin, round(size * scale)) for size in picture.size)
    picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - side) // 2, (height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def mnist(count: int) -> tuple[Tensor, Tensor]:
    """Return the first test digits of MNIST, (count, 1, 28, 28), and their classes."""
    data = assets.MNIST.folder / "package" / "data"
    pixels = np.frombuffer((data / "t10k-images-idx3-ubyte").read_bytes(), np.uint8, count * 784, 16)
    labels = np.frombuffer((data / "t10k-labels-idx1-ubyte").read_bytes(), np.uint8, count, 8)
    return torch.from_numpy(pixels.reshape(count, 1, 28, 28) / np.float32(255)), torch.from_numpy(
        labels.astype(np.int64)
    )


def cifar(count: int) -> tuple[Tensor, Tensor]:
    """Return the first test pictures of CIFAR-10, (count, 3, 32, 32), and their classes."""
    folder = assets.CIFAR.folder / "package"
    with Image.open(folder / "test_batch.png") as sheet:
        # Each row of the sheet is a picture, position by position.
        rows = np.array(sheet.convert("RGB").crop((0, 0, 1024, count)))
    labels = json.loads((folder / "test_lables.json").read_text())[:count]
    pictures = torch.from_numpy(rows.reshape(count, 32, 32, 3)).permute(0, 3, 1, 2).float() / 255
    return pictures, torch.tensor(labels)
