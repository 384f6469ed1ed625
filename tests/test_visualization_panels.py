"""Grids: places, sizes, scales, titles and refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from lrphooks.visualization import Overlay, grid, heatmap, side_by_side

BLUE, WHITE, RED = (17, 63, 154), (255, 255, 255), (135, 12, 30)
GREEN = (0, 160, 0)
FRAME = (196, 196, 196)


def pixels(picture):
    assert picture.mode == "RGB"
    return np.asarray(picture).astype(int)


def where(drawn, colour):
    """The box of a colour, or of what is nearly that: left, top, right, bottom."""
    rows, columns = np.nonzero((np.abs(drawn - colour) <= 25).all(axis=2))
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


def panels_of(drawn):
    """The insides of the frames, by the frames' own colour: (left, top, right, bottom), in reading order."""
    edge = (drawn == FRAME).all(axis=2)
    found = []
    for top, left in np.argwhere(edge[:-1, :-1] & edge[1:, :-1] & edge[:-1, 1:]):
        right = left + np.argmin(np.append(edge[top, left:], False))
        bottom = top + np.argmin(np.append(edge[top:, left], False))
        if right - left > 30 and bottom - top > 30 and edge[bottom - 1, left:right].all():
            found.append((int(left) + 1, int(top) + 1, int(right) - 1, int(bottom) - 1))
    return sorted(found, key=lambda box: (box[1], box[0]))


def inside(drawn, box):
    left, top, right, bottom = box
    return drawn[top:bottom, left:right]


def test_side_by_side_shows_picture_heatmap_and_colour_bar():
    relevance = np.zeros((20, 30))
    relevance[:, :15], relevance[:, 15:] = -1.0, 1.0
    drawn = pixels(side_by_side(Image.new("RGB", (30, 20), GREEN), relevance))
    first, second = panels_of(drawn)
    assert (inside(drawn, first) == GREEN).all()
    assert inside(drawn, second).shape == (160, 240, 3)
    np.testing.assert_array_equal(inside(drawn, second), pixels(heatmap(relevance)))
    # They stand on one line, and the bar is right of them, from red down to blue.
    assert first[1] == second[1]
    assert first[2] < second[0]
    beside = drawn[:, second[2] + 2 :]
    assert where(beside, RED)[1] == second[1]
    assert where(beside, BLUE)[3] == second[3]
    # Numbers and captions are drawn in dark ink.
    assert (drawn.max(axis=2) < 110).sum() > 200


def test_side_by_side_needs_the_picture_that_the_model_saw():
    with pytest.raises(ValueError, match=r"the picture is 30 x 20 pixels and the relevance 28 x 28"):
        side_by_side(Image.new("RGB", (30, 20)), np.ones((28, 28)))


def test_a_title_has_room_and_is_broken_where_it_is_long():
    picture, relevance = Image.new("L", (28, 28)), np.ones((28, 28))
    plain, short, long = (
        side_by_side(picture, relevance, title=title) for title in ("", "a title", "what is explained " * 6)
    )
    assert plain.height < short.height < long.height
    assert long.width == short.width


def test_panels_stand_in_rows_as_they_are_given():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (200, 200, 0), (0, 200, 200)]
    pictures = [Image.new("RGB", (40, 40), colour) for colour in colours]
    for given, columns in ((pictures, {"columns": 3}), (pictures, {}), ([pictures[:3], pictures[3:]], {})):
        drawn = pixels(grid(given, side=40, **columns))
        boxes = panels_of(drawn)
        assert [tuple(drawn[box[1] + 5, box[0] + 5]) for box in boxes] == colours
        tops, lefts = [box[1] for box in boxes], [box[0] for box in boxes]
        assert tops[0] == tops[1] == tops[2] < tops[3] == tops[4]
        assert (lefts[3], lefts[4]) == (lefts[0], lefts[1])


def test_an_empty_place_is_left_empty():
    one, two = (Image.new("RGB", (40, 40), colour) for colour in ("red", "blue"))
    drawn = pixels(grid([[one, None], [None, two]], side=40))
    first, second = panels_of(drawn)
    assert second[0] > first[2]
    assert second[1] > first[3]
    # A title may stand there all the same, as that of a row.
    titled = pixels(grid([[one, None], [None, two]], titles=[["", ""], ["row", ""]], side=40))
    first, second = panels_of(titled)
    assert (titled[first[3] + 2 : second[1], : first[2]].min(axis=2) < 150).any()


def test_shared_scale_is_equal_over_panels_and_own_scale_fills_each():
    batch = torch.zeros(2, 3, 40, 40)
    batch[0, 0], batch[1, 0] = 1.0, 2.0
    first, second = panels_of(shared := pixels(grid(batch, side=40)))
    assert (inside(shared, first) == (251, 107, 72)).all()
    assert (inside(shared, second) == RED).all()
    boxes = panels_of(own := pixels(grid(batch, side=40, shared_scale=False)))
    assert (inside(own, boxes[0]) == RED).all()
    assert (inside(own, boxes[1]) == RED).all()
    # Each has a bar of its own, and a bar ends in full blue.
    blue = [(np.abs(drawn - BLUE) <= 8).all(axis=2) for drawn in (shared, own)]
    count = [len(np.unique(np.nonzero(drawn)[1])) for drawn in blue]
    assert count[1] == 2 * count[0] > 0


def test_a_limit_holds_for_every_panel_and_drawing():
    relevance = np.full((40, 40), 0.5)
    drawn = pixels(grid([relevance], side=40, limit=1.0))
    assert (inside(drawn, panels_of(drawn)[0]) == (251, 107, 72)).all()


def test_pictures_are_no_relevance_and_have_no_bar():
    picture = np.full((40, 40, 3), GREEN, dtype=np.uint8)
    drawn = pixels(grid([picture, torch.from_numpy(picture).permute(2, 0, 1)], side=40))
    for box in panels_of(drawn):
        assert (inside(drawn, box) == GREEN).all()
    assert set(map(tuple, drawn.reshape(-1, 3))) == {GREEN, WHITE, FRAME}


def test_an_overlay_in_a_grid_has_the_scale_of_the_grid():
    picture = Image.new("RGB", (40, 40), "white")
    half, full = np.full((40, 40), 0.5), np.full((40, 40), -1.0)
    drawn = pixels(grid([Overlay(picture, half), full], side=40))
    first, second = panels_of(drawn)
    # Half white and half the colour of three quarters, between (226, 55, 35) and (184, 21, 29).
    expected = np.round((255 + np.array([205, 38, 32])) / 2)
    assert np.abs(inside(drawn, first) - expected).max() <= 1
    assert (inside(drawn, second) == BLUE).all()
    with pytest.raises(ValueError, match="the picture is 41 x 40 pixels and the relevance 10 x 40"):
        grid([Overlay(Image.new("RGB", (41, 40)), np.ones((40, 10)))])


def test_panels_of_many_sizes_are_drawn_equally_long():
    sizes = [(7, 7), (56, 56), (200, 200), (56, 28)]
    panels = [np.ones((7, 7)), np.ones((56, 56)), Image.new("RGB", (200, 200)), Image.new("RGB", (56, 28))]
    boxes = panels_of(pixels(grid(panels, side=100, columns=4)))
    assert len(boxes) == len(sizes)
    for (left, top, right, bottom), size in zip(boxes, sizes, strict=True):
        assert right - left == 112
        assert bottom - top == 112 * size[1] // size[0]


def test_small_panels_keep_their_edges_and_large_ones_are_averaged():
    checks = np.indices((8, 8)).sum(axis=0) % 2 * 2.0 - 1.0
    drawn = pixels(grid([checks], side=64))
    assert set(map(tuple, inside(drawn, panels_of(drawn)[0]).reshape(-1, 3))) == {RED, BLUE}
    checks = np.indices((512, 512)).sum(axis=0) % 2 * 2.0 - 1.0
    (box,) = panels_of(drawn := pixels(grid([checks], side=64)))
    assert box[2] - box[0] == 128
    # Each pixel stands for eight red and eight blue ones: nothing.
    assert (inside(drawn, box) == WHITE).all()


def test_titles_stand_above_their_panels():
    picture = Image.new("RGB", (60, 60), GREEN)
    drawn = pixels(grid([[picture, picture], [picture, picture]], titles=[["", "I"], ["", ""]], side=60))
    plain = pixels(grid([[picture, picture], [picture, picture]], side=60))
    first, second, third, _ = panels_of(drawn)
    ink = drawn[: second[1] - 2].min(axis=2) < 150
    assert ink[:, second[0] - 1 : second[2]].any()
    assert not ink[:, : first[2]].any()
    assert first[1] == second[1] < third[1]
    assert drawn.shape[0] > plain.shape[0]


@pytest.mark.parametrize("titles", [["one"], ["one", "two", "three"], [["one"], ["two", "three"]]])
def test_titles_that_do_not_match_are_refused(titles):
    with pytest.raises(
        ValueError, match=rf"{1 if titles == ['one'] else 3} titles for 2 panels: give one for each panel"
    ):
        grid([np.ones((4, 4)), np.ones((4, 4))], titles=titles)


def test_titles_of_rows_must_be_in_rows():
    one = np.ones((4, 4))
    with pytest.raises(
        ValueError, match="4 titles for 4 panels: give one for each panel, in rows if the panels are in"
    ):
        grid([[one, one], [one, one]], titles=["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="4 titles for 4 panels: give one for each panel, in rows"):
        grid([[one, one], [one, one]], titles=[["a"], ["b", "c", "d"]])


@pytest.mark.parametrize("panels", [[], (), "cat", None])
def test_a_grid_without_panels_is_refused(panels):
    with pytest.raises(
        ValueError, match="a grid needs panels: a batch of relevance, a list of panels or a list of rows"
    ):
        grid(panels)


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one panel that is not None"):
        grid([None, None])


def test_other_misuse_is_refused():
    one = np.ones((4, 4))
    with pytest.raises(ValueError, match=r"an array of shape \(4, 4\) is no batch of relevance"):
        grid(one)
    with pytest.raises(ValueError, match="columns=2, but the panels come in rows"):
        grid([[one, one]], columns=2)
    with pytest.raises(ValueError, match="columns must be at least 1, not 0"):
        grid([one], columns=0)
    with pytest.raises(TypeError, match="panels: number 1 is no row, but others are"):
        grid([[one, one], one])
    with pytest.raises(ValueError, match=r"relevance of shape \(2, 3, 4, 4\) is no image"):
        grid([one, np.ones((2, 3, 4, 4))])
    with pytest.raises(ValueError, match="side must be at least 1 pixel, not 0"):
        grid([one], side=0)


@pytest.mark.parametrize("shared_scale", [True, False])
def test_a_bar_has_room_for_its_numbers_beside_a_flat_panel(shared_scale):
    relevance = np.zeros((2, 200))
    relevance[0, 0], relevance[0, 1] = 1.0, -1.0
    drawn = pixels(grid([relevance], shared_scale=shared_scale, side=200))
    bar = drawn[:, 20 + 200 + 10 :]
    # Three lines of 13 pixels and more, one for each number, and all of them on the canvas.
    assert where(bar, BLUE)[3] - where(bar, RED)[1] >= 3 * 15
    assert where(bar, BLUE)[3] < drawn.shape[0] - 10
