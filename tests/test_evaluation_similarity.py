"""Similarity of maps, against scipy and scikit-image."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from skimage.metrics import structural_similarity

from lrphooks.evaluation.similarity import spearman, ssim


def pair(*shape):
    a = torch.randn(*shape, dtype=torch.float64)
    return a, 0.5 * a + torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("rounded", [False, True], ids=["all apart", "ties"])
def test_spearman_is_that_of_scipy(rounded, close):
    a, b = pair(3, 8, 9)
    a, b = (a.round(), b.round()) if rounded else (a, b)
    expected = [spearmanr(x.flatten(), y.flatten()).statistic for x, y in zip(a, b, strict=True)]
    close(spearman(a, b), expected)


def test_spearman_of_a_constant_is_0():
    a, b = pair(2, 20)
    assert spearman(torch.ones_like(a), b).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("shape", [(25,), (13, 16), (8, 9, 10)], ids=str)
def test_ssim_is_that_of_scikit_image(shape, close):
    a, b = pair(2, *shape)
    expected = []
    for x, y in zip(a.numpy(), b.numpy(), strict=True):
        x, y = x / np.abs(x).max(), y / np.abs(y).max()
        # Its own mean leaves the border out, where windows hang over: the same windows.
        expected.append(structural_similarity(x, y, win_size=7, data_range=2.0))
    close(ssim(a, b), expected)


def test_a_map_is_like_itself_whatever_its_scale(close):
    a, _ = pair(2, 12, 12)
    close(ssim(a, 3 * a), [1.0, 1.0])
    close(spearman(a, a**3), [1.0, 1.0])
    close(spearman(a, -a), [-1.0, -1.0])
    assert torch.isfinite(ssim(torch.zeros_like(a), a)).all()
