"""Small models whose curves are known in closed form, and methods that return what they are told."""

import numpy as np
import torch
from torch import nn


class Linear(nn.Module):
    """f(x)_k = sum of w_k x over all values of a row, for inputs of any shape."""

    def __init__(self, weight):
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.sizes = []  # how many rows each call had

    def forward(self, x):
        self.sizes.append(len(x))
        return x.flatten(1) @ self.weight.flatten(1).T


def linear(*shape, classes=3, seed=0):
    """Return a linear model in double precision and an input of three rows."""
    g = torch.Generator().manual_seed(seed)
    model = Linear(torch.randn(classes, *shape, generator=g, dtype=torch.float64)).eval()
    return model, torch.randn(3, *shape, generator=g, dtype=torch.float64)


def contributions(model, x, target):
    """The exact explanation of a linear model: w x."""
    return model.weight.detach()[torch.as_tensor(target)].expand(len(x), *x.shape[1:]) * x


def softmax(logits):
    shifted = np.exp(logits - logits.max(-1, keepdims=True))
    return shifted / shifted.sum(-1, keepdims=True)


def small_cnn():
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 6 * 6, 5)
    ).eval()
