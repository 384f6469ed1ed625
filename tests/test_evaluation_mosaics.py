"""Mosaics for the grid pointing game."""

import pytest
import torch

from lrphooks.evaluation import mosaics


def numbered(labels, size=(2, 3)):
    """Pictures that hold their own number everywhere."""
    return torch.arange(len(labels)).reshape(-1, 1, 1, 1).expand(-1, 2, *size).float()


@pytest.mark.parametrize("grid", [2, 3])
def test_the_cell_of_a_row_shows_the_class_that_is_explained(grid):
    labels = torch.arange(20) % 11
    made = mosaics(numbered(labels), labels, grid=grid)
    cells = grid * grid
    assert made.x.shape[1:] == (2, 2 * grid, 3 * grid)
    for x, target, truth in zip(made.x, made.target, made.truth, strict=True):
        inside = x[:, truth].unique()
        assert len(inside) == 1
        assert truth.sum() == 6
        assert labels[int(inside)] == target
    for first in range(0, len(made), cells):
        rows = slice(first, first + cells)
        assert (made.x[rows] == made.x[first]).all()
        assert made.truth[rows].sum(0).eq(1).all()  # each cell once
        assert len(made.target[rows].unique()) == cells


def test_no_picture_is_used_twice_and_few_are_left_out():
    labels = torch.tensor([0] * 6 + [1] * 5 + [2] * 5 + [3] * 4 + [4] * 4)
    made = mosaics(numbered(labels), labels)
    used = torch.cat([x.unique() for x in made.x[::4]])
    assert len(used.unique()) == len(used) == 24


def test_the_same_seed_makes_the_same_mosaics_and_another_seed_others():
    labels = torch.arange(16)
    pictures = numbered(labels)
    assert torch.equal(mosaics(pictures, labels).x, mosaics(pictures, labels).x)
    assert not torch.equal(mosaics(pictures, labels).x, mosaics(pictures, labels, seed=1).x)


def test_what_makes_no_mosaic_is_refused():
    with pytest.raises(ValueError, match="a mosaic of 2 by 2 needs pictures of 4 classes, got 3"):
        mosaics(torch.zeros(9, 1, 2, 2), torch.arange(9) % 3)
    with pytest.raises(ValueError, match=r"9 pictures and labels of shape \(8,\); give one label each"):
        mosaics(torch.zeros(9, 1, 2, 2), torch.arange(8))
    with pytest.raises(
        ValueError, match=r"images must be a tensor \(pictures, channels, height, width\), got \(9, 2\)"
    ):
        mosaics(torch.zeros(9, 2), torch.arange(9))
    with pytest.raises(ValueError, match="mosaics: grid must be at least 2, got 1"):
        mosaics(torch.zeros(9, 1, 2, 2), torch.arange(9), grid=1)
