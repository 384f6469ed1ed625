"""Arrays of numpy go in, and arrays come out."""

import numpy as np
import pytest
import torch
from torch import nn

import lrphooks
from lrphooks.baselines import InputXGradient

MODEL = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
X = np.random.default_rng(0).normal(size=(2, 4))


class TwoInputs(nn.Module):
    def forward(self, a, b=None):
        return a + b["values"]


def expected(target=None, composite=None):
    return lrphooks.lrp(MODEL, torch.tensor(X, dtype=torch.float32), target, composite).numpy()


@pytest.mark.parametrize("dtype", ["f8", "f4", ">f8"])
def test_relevance_of_an_array_is_an_array_of_its_type(dtype):
    found = lrphooks.lrp(MODEL, X.astype(dtype))
    assert isinstance(found, np.ndarray)
    assert found.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_allclose(found, expected(), rtol=1e-5)


def test_an_array_may_be_reversed_or_read_only():
    turned = X[::-1]
    turned.flags.writeable = False
    np.testing.assert_allclose(lrphooks.lrp(MODEL, turned)[::-1], expected(), rtol=1e-5)


def test_other_ways_to_explain():
    np.testing.assert_allclose(lrphooks.lrp(MODEL, X, 1, InputXGradient()), expected(1, InputXGradient()), rtol=1e-5)
    first, second = lrphooks.lrp_targets(MODEL, X, [0, 2])
    np.testing.assert_allclose(first, expected(0), rtol=1e-5)
    np.testing.assert_allclose(second, expected(2), rtol=1e-5)
    np.testing.assert_allclose(lrphooks.explain(MODEL, X).relevance, expected(), rtol=1e-5)


def test_arrays_within_containers():
    relevance, keywords = lrphooks.lrp(TwoInputs(), (X,), 0, kwargs={"b": {"values": 2 * X}})
    np.testing.assert_allclose(relevance[0][:, 0], X[:, 0])
    np.testing.assert_allclose(keywords["b"]["values"][:, 0], 2 * X[:, 0])


def test_tensors_stay_tensors():
    assert isinstance(lrphooks.lrp(MODEL, torch.ones(1, 4)), torch.Tensor)
