"""Regions and the order of their removal."""

import numpy as np
import torch

from lrphooks.evaluation.regions import Regions, ranks


def test_sums_and_masks_are_those_of_loops_over_the_patches(close):
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    regions = Regions.of(x, 3, "test")
    assert regions.grid == (3, 2)
    corners = [(i, j) for i in (0, 3, 6) for j in (0, 3)]
    close(
        regions.sums(x),
        np.array([[row[:, i : i + 3, j : j + 3].sum().item() for i, j in corners] for row in x]),
    )
    for number, (i, j) in enumerate(corners):
        expected = torch.zeros(1, 1, 7, 5, dtype=torch.bool)
        expected[:, :, i : i + 3, j : j + 3] = True
        assert torch.equal(regions.mask(torch.arange(6)[None] == number, 4), expected)


def test_features_are_regions_of_their_own():
    x = torch.randn(2, 4)
    regions = Regions.of(x, 1, "test")
    assert torch.equal(regions.sums(x), x.double())
    chosen = torch.tensor([[True, False, False, True]])
    assert torch.equal(regions.mask(chosen, 2), chosen)


def test_places_are_those_of_a_sort():
    relevance = torch.tensor([[0.1, 3.0, -2.0, 0.5]])
    assert ranks(relevance, "morf").tolist() == [[2, 0, 3, 1]]
    assert ranks(relevance, "lerf").tolist() == [[1, 3, 0, 2]]


def test_equal_relevance_is_ordered_by_chance_and_both_ways_alike():
    equal = torch.zeros(1, 1000)
    place = ranks(equal, "morf")
    assert sorted(place.flatten().tolist()) == list(range(1000))
    assert torch.equal(place, ranks(equal, "morf"))
    assert not torch.equal(place, ranks(equal, "morf", seed=1))
    assert torch.equal(ranks(equal, "lerf"), 999 - place)
    # By position, the places would correlate with the numbers of the regions; by chance they do not.
    assert abs(np.corrcoef(place.flatten(), np.arange(1000))[0, 1]) < 0.15


def test_no_row_depends_on_those_beside_it():
    relevance = torch.randint(0, 3, (4, 30)).double()
    place = ranks(relevance, "morf")
    for row in range(4):
        assert torch.equal(ranks(relevance[row : row + 1], "morf"), place[row : row + 1])


def test_rows_have_orders_of_their_own():
    place = ranks(torch.zeros(2, 50), "random")
    assert not torch.equal(place[0], place[1])
