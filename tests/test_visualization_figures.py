"""What is drawn by matplotlib: only when it is drawn, without anything global, in any thread; and without it."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import matplotlib as mpl
import numpy as np
import pytest
import torch
from PIL import Image

from lrphooks import explain
from lrphooks.composites import AttnLRP
from lrphooks.visualization import Overlay, curves, grid, heatmap, highlight, overlay, picture_of, side_by_side

RELEVANCE = np.linspace(-1.0, 1.0, 64).reshape(8, 8)
PICTURE = Image.new("RGB", (8, 8))


def program(text):
    return subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True).stdout


def test_matplotlib_is_imported_by_what_needs_it_alone_and_pyplot_never():
    found = program(
        "import sys, numpy as np, lrphooks, lrphooks.cli\n"
        "from lrphooks.visualization import *\n"
        "r = np.eye(8); side_by_side(heatmap(r, side=8), r, title='γ'); highlight(['a'], [1.0]).image()\n"
        "print('matplotlib' in sys.modules)\n"
        "grid([r]); curves(r, r)\n"
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    )
    assert found.split() == ["False", "True", "False"]


def test_without_matplotlib_pictures_are_drawn_and_figures_name_the_extra(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    images = torch.rand(2, 3, 8, 8)
    for drawn in (
        heatmap(RELEVANCE),
        overlay(PICTURE, RELEVANCE),
        side_by_side(PICTURE, RELEVANCE, title="explained"),
        picture_of(images, images),
        highlight(["a", "b"], [1.0, -1.0]).image(),
    ):
        assert drawn.size > (20, 20)
    for draw in (lambda: grid([RELEVANCE]), lambda: curves(RELEVANCE, RELEVANCE)):
        with pytest.raises(ImportError, match=r"drawn by matplotlib, .*: pip install 'matplotlib>=3.9' \(about"):
            draw()
    # A notebook shows the table, and why there is no picture.
    model = torch.nn.Sequential(torch.nn.Conv1d(2, 1, 3), torch.nn.Flatten())
    page = explain(model, torch.rand(1, 2, 9), composite=AttnLRP())._repr_html_()
    assert "lrphooks[plot]" in page
    assert "<img" not in page


@pytest.mark.parametrize(
    "command", [["explain"], ["explain", "--target", "7,2"], ["compare", "--composite", "AttnLRP"]]
)
def test_the_command_draws_without_matplotlib(command, tmp_path):
    place = tmp_path / "drawn.png"
    program(
        "import sys; sys.modules['matplotlib'] = None\n"
        f"from lrphooks.cli import main; sys.exit(main({[*command, '--output', str(place)]}))"
    )
    with Image.open(place) as drawn:
        assert min(drawn.size) > 240


def test_nothing_global_is_changed():
    # `mpl.rcParams["backend"]` would choose one.
    before, backend = dict(mpl.rcParams), mpl.rcParams._get("backend")
    grid([RELEVANCE], title="a title")
    curves(RELEVANCE, RELEVANCE, unit="s")
    assert dict(mpl.rcParams) == before
    assert mpl.rcParams._get("backend") == backend


@pytest.mark.parametrize(
    "settings",
    [
        {"text.color": "white", "axes.facecolor": "black", "figure.facecolor": "black", "axes.edgecolor": "white"},
        {"image.origin": "lower", "image.aspect": "auto", "image.interpolation": "bilinear", "figure.dpi": 200},
        {"text.usetex": True, "axes.grid": True, "figure.autolayout": True},
    ],
)
def test_the_settings_of_a_user_change_no_grid(settings):
    panels = [RELEVANCE * 1e-9, PICTURE, RELEVANCE[:4]]
    draw = partial(grid, panels, titles=["a", "b_c", ""], title="title", shared_scale=False, percentile=90)
    drawn = draw()
    with mpl.rc_context(settings):
        assert draw() == drawn


def test_the_settings_of_a_dark_style_leave_curves_readable():
    drawn = curves(RELEVANCE, RELEVANCE, title="title", unit="s")
    with mpl.rc_context({"text.color": "white", "axes.facecolor": "black", "lines.linestyle": "--"}):
        assert curves(RELEVANCE, RELEVANCE, title="title", unit="s") == drawn


def test_threads_draw_the_same():
    def draw(index):
        return grid([RELEVANCE * index, PICTURE], titles=[f"panel {index}", "picture"], title="threads")

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(draw, range(1, 9))) == [draw(index) for index in range(1, 9)]


@pytest.mark.parametrize("text", ["$x_1$", r"\frac{a", "a_b^c", "100 %", "$", "жук γ Größe", "猫", "a\x1bb", "\ue123"])
def test_texts_are_drawn_as_they_are(text):
    """Formulas are not set, and letters that no font has are no warning, which would be an error here."""
    plain = grid([RELEVANCE])
    drawn = grid([RELEVANCE], titles=[text], title=text)
    assert drawn.height > plain.height
    assert curves(RELEVANCE[:1], RELEVANCE[:1], names=[text], unit=text, title=text).height > drawn.height / 4


def test_odd_panels():
    flat, zero, huge = np.ones((1, 100)), np.zeros((5, 5)), Image.new("L", (3000, 200))
    for panels in ([zero], [[flat, None], [None, flat.T]], [huge, zero], [Overlay(huge, np.zeros((2, 30)))] * 12):
        for shared in (True, False):
            drawn = grid(panels, shared_scale=shared, side=60, titles=None, title="long " * 40)
            assert 100 < drawn.width < 2000
            # The margin is free: nothing is cut at the edge.
            edge = np.asarray(drawn).copy()
            edge[8:-8, 8:-8] = 255
            assert (edge == 255).all()
