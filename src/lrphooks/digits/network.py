"""The digit network: residual, with BatchNorm, and its trained weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_name("weights.npz")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection, summed with a plain ``+``."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        """Build a block; the skip is a 1x1 convolution where the shape changes."""
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.skip = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block. Activations and the sum are functional on purpose, as in real networks."""
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return torch.relu(y + self.skip(x))


class DigitNetwork(nn.Module):
    """Ten logits for a digit of shape (N, 1, 28, 28), light ink (1) on a dark ground (0).

    The input is not shifted by a mean: the empty ground is exactly 0, so it carries no relevance
    under the rules that multiply by the input.
    """

    def __init__(self) -> None:
        """Build the network with random weights; `load_network` gives the trained one."""
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.pool = nn.MaxPool2d(2)
        self.block1 = ResidualBlock(16, 16)
        self.block2 = ResidualBlock(16, 32, stride=2)
        self.block3 = ResidualBlock(32, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, shape (N, 10)."""
        x = self.pool(torch.relu(self.bn(self.stem(x))))
        x = self.block3(self.block2(self.block1(x)))
        logits: Tensor = self.head(x.mean(dim=(2, 3)))
        return logits


def load_network(weights: Path = WEIGHTS) -> DigitNetwork:
    """Return the trained digit network in evaluation mode.

    The weights are plain arrays in an ``.npz`` file, read with pickle switched off.
    """
    network = DigitNetwork()
    with np.load(weights, allow_pickle=False) as arrays:
        network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    return network.eval()


def save_network(network: DigitNetwork, weights: Path) -> None:
    """Write the network's weights as the plain arrays that `load_network` reads."""
    arrays = {name: value.detach().numpy() for name, value in network.state_dict().items()}
    np.savez_compressed(weights, allow_pickle=False, **arrays)
