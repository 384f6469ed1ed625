"""How explain draws, what it saves, and a class against others."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import lrphooks
from lrphooks.cli import main
from lrphooks.composites import EpsilonPlus
from lrphooks.digits import images, load_image, load_network

SEVEN = next(path for path in images() if path.stem == "digit-7")


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def drawn(*arguments):
    assert main(["explain", "--output", "drawn.png", *arguments]) == 0
    with Image.open("drawn.png") as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_styles():
    side, overlay, heatmap = (drawn("--style", style) for style in ("side", "overlay", "heatmap"))
    assert side.shape[1] > 2 * heatmap.shape[1]
    assert overlay.shape == heatmap.shape
    assert (overlay != heatmap).any()


def test_colours_and_scale():
    usual = drawn("--style", "heatmap")
    assert (drawn("--style", "heatmap", "--colours", "green-purple") != usual).any()
    pale = drawn("--style", "heatmap", "--scale", "1000")
    assert pale.min() > 240
    assert (drawn("--style", "heatmap", "--percentile", "50") != usual).any()


def test_relevance_is_saved_as_arrays():
    drawn("--target", "7,2", "--save", "npz")
    with np.load("drawn.npz") as saved:
        network, x = load_network(), load_image(SEVEN)
        assert saved["targets"].tolist() == [7, 2]
        np.testing.assert_allclose(saved["input"], x[0])
        for target, relevance in zip((7, 2), saved["relevance"], strict=True):
            np.testing.assert_allclose(relevance, lrphooks.lrp(network, x, target, EpsilonPlus())[0], atol=1e-5)


def test_a_class_against_the_strongest_others(capsys):
    assert main(["explain", "--target", "7", "--against", "2", "--json"]) == 0
    (explained,) = json.loads(capsys.readouterr().out)["explained"]
    outputs = load_network()(load_image(SEVEN))[0]
    others = torch.cat([outputs[:7], outputs[8:]]).topk(2).values
    assert explained["output"] == pytest.approx((outputs[7] - others.mean()).item(), rel=1e-5)
    assert explained["name"] == "7 against the 2 strongest others"


@pytest.mark.parametrize(
    "wrong",
    [["--percentile", "0"], ["--scale", "-1"], ["--style", "tall"], ["--against", "0"], ["--save", "csv"]],
)
def test_wrong_values_are_usage_errors(wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["explain", *wrong])
    assert ended.value.code == 2
    assert not list(Path().iterdir())


def test_a_colour_map_that_is_not_there_is_a_usage_error(capsys):
    assert main(["explain", "--colours", "nothing"]) == 2
    assert "--colours nothing: there is no colour map 'nothing'" in capsys.readouterr().err
