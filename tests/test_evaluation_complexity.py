"""Sparseness and complexity, against values that can be written down."""

import math

import numpy as np
import pytest
import torch

from judged import linear
from lrphooks.evaluation import Complexity, Sparseness


def judged(metric, relevance):
    model, _ = linear(*relevance.shape[1:])
    return metric(model, torch.ones_like(relevance), 0, relevance).values


def rows(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_extremes(close):
    even, one, none = torch.ones(1, 8).double(), torch.eye(8)[:1].double(), torch.zeros(1, 8).double()
    assert judged(Sparseness(), even).tolist() == [0.0]
    close(judged(Sparseness(), one), [1 - 1 / 8])
    assert judged(Sparseness(), none).tolist() == [0.0]
    close(judged(Complexity(), even), [math.log(8)])
    assert judged(Complexity(), one).tolist() == [0.0]
    close(judged(Complexity(), none), [math.log(8)])


def test_sparseness_is_the_mean_difference_over_twice_the_mean(close):
    relevance = torch.randn(3, 50, dtype=torch.float64)
    sizes = relevance.abs().numpy()
    apart = np.abs(sizes[:, :, None] - sizes[:, None, :]).mean((1, 2))
    close(judged(Sparseness(), relevance), apart / (2 * sizes.mean(1)))


def test_complexity_of_shares(close):
    close(judged(Complexity(), rows([2.0, -1.0, 1.0, 0.0])), [0.5 * math.log(2) + 0.5 * math.log(4)])


@pytest.mark.parametrize("metric", [Sparseness(), Complexity()], ids=repr)
def test_channels_are_summed(metric, close):
    relevance = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    close(judged(metric, relevance), judged(metric, relevance.sum(1).flatten(1)))
