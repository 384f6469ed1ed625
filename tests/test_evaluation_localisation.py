"""Localisation, against cases that can be counted by hand."""

import pytest
import torch

from judged import linear
from lrphooks.evaluation import GridPointingGame, PointingGame, RelevanceMass, RelevanceRank

# Relevance of one channel, 3 by 4, and a region of its left two columns.
RELEVANCE = torch.tensor([[5.0, 1.0, 2.0, -9.0], [0.0, -3.0, 4.0, 0.0], [1.0, 1.0, 0.0, 6.0]]).double()[None, None]
LEFT = torch.tensor([[1, 1, 0, 0]] * 3)[None]
BOX = torch.tensor([[0, 0, 2, 3]])


def judged(metric, relevance, truth, channels=1):
    model, _ = linear(channels, *relevance.shape[2:])
    x = torch.ones(len(relevance), channels, *relevance.shape[2:], dtype=torch.float64)
    return metric(model, x, 0, relevance, truth=truth).values.tolist()


@pytest.mark.parametrize("truth", [LEFT, LEFT.bool(), LEFT.unsqueeze(1), BOX], ids=["mask", "bool", "channel", "box"])
@pytest.mark.parametrize("metric", [RelevanceMass, GridPointingGame])
def test_mass_is_the_part_inside(metric, truth):
    assert judged(metric(), RELEVANCE, truth) == [8 / 20]


def test_mass_by_other_ways_to_count():
    assert judged(RelevanceMass(pool="absolute"), RELEVANCE, LEFT) == [11 / 32]
    assert judged(RelevanceMass(pool="square"), RELEVANCE, LEFT) == [37 / 174]


def test_channels_are_summed_before_they_are_counted():
    channels = torch.cat([2 * RELEVANCE, -RELEVANCE], 1)
    assert judged(RelevanceMass(), channels, LEFT, channels=2) == [8 / 20]
    assert judged(RelevanceMass(pool="square"), channels, LEFT, channels=2) == [37 / 174]


def test_mass_of_nothing_is_nothing():
    assert judged(RelevanceMass(), -RELEVANCE.abs(), LEFT) == [0.0]


def test_rank_is_the_part_of_the_most_relevant():
    # The six largest are 6, 5, 4, 2 and two of the three ones, all three of which lie inside: 5, 1, 1 of 6.
    assert judged(RelevanceRank(), RELEVANCE, LEFT) == [3 / 6]
    # Four places: 6, 5, 4, 2.
    assert judged(RelevanceRank(), RELEVANCE, torch.tensor([[0, 0, 2, 2]])) == [1 / 4]


def test_rank_takes_equals_by_chance():
    assert judged(RelevanceRank(), torch.zeros(1, 1, 3, 4).double(), LEFT) == [0.5]
    one = torch.zeros(1, 1, 3, 4).double()
    one[0, 0, 0, 0] = 1.0
    # One of six is sure; five of eleven equals inside share the other five places.
    assert judged(RelevanceRank(), one, LEFT) == pytest.approx([(1 + 5 * 5 / 11) / 6])


def test_the_pointing_game_looks_at_the_most_relevant_position():
    assert judged(PointingGame(), RELEVANCE, LEFT) == [0.0]
    assert judged(PointingGame(), RELEVANCE, 1 - LEFT) == [1.0]
    # The largest is at (2, 3); the nearest position of the region is (2, 1).
    assert judged(PointingGame(tolerance=1), RELEVANCE, LEFT) == [0.0]
    assert judged(PointingGame(tolerance=2), RELEVANCE, LEFT) == [1.0]


def test_the_tolerance_is_a_euclidean_distance():
    relevance = torch.zeros(1, 1, 9, 9).double()
    relevance[0, 0, 7, 8] = 1.0
    truth = torch.tensor([[4, 4, 5, 5]])  # the position (4, 4), 5 away
    assert judged(PointingGame(tolerance=4), relevance, truth) == [0.0]
    assert judged(PointingGame(tolerance=5), relevance, truth) == [1.0]


def test_the_pointing_game_counts_the_part_of_equals_that_hit():
    equal = torch.tensor([[1.0, 0.0, 1.0, 1.0]] * 3).double()[None, None]
    assert judged(PointingGame(), equal, LEFT) == pytest.approx([1 / 3])


def test_a_signal_has_regions_too():
    relevance = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]]).double()
    model, x = linear(1, 4)
    assert RelevanceMass()(model, x[:1], 0, relevance, truth=torch.tensor([[0, 0, 1, 1]])).values.tolist() == [0.7]
    assert PointingGame(tolerance=2)(model, x[:1], 0, relevance, truth=torch.tensor([[1, 0, 0, 0]])).mean == 0.0


def test_what_is_no_region_is_refused():
    with pytest.raises(
        ValueError, match="RelevanceMass: relevance is compared with a region, so truth=mask or truth=box"
    ):
        judged(RelevanceMass(), RELEVANCE, None)
    with pytest.raises(
        ValueError, match=r"truth has shape \(1, 4, 3\) and dtype torch.int64; .*boxes of integers \(1, 4\)"
    ):
        judged(RelevanceMass(), RELEVANCE, LEFT.transpose(1, 2))
    with pytest.raises(ValueError, match=r"truth has shape .* and dtype torch.float32"):
        judged(RelevanceMass(), RELEVANCE, BOX.float())
    with pytest.raises(ValueError, match="PointingGame: the region of row 0 is empty"):
        judged(PointingGame(), RELEVANCE, torch.tensor([[2, 0, 2, 3]]))
    with pytest.raises(TypeError, match="truth must be a tensor of masks or boxes, got list"):
        judged(PointingGame(), RELEVANCE, [0, 0, 1, 1])
    model, x = linear(6)
    with pytest.raises(ValueError, match="features without positions, so it has no regions"):
        RelevanceRank()(model, x, 0, x, truth=torch.ones(3, 6))
    with pytest.raises(ValueError, match="RelevanceRank: pool must be one of positive, absolute, square, got 'max'"):
        RelevanceRank(pool="max")
