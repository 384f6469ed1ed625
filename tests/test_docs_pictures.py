"""The pictures of the documents are what their code draws, and relevance is where a person sees the reason."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import skimage.data
from PIL import Image

import torchvision_shim  # noqa: F401
from lrphooks import lrp
from lrphooks.composites import EpsilonGammaBox, EpsilonPlus
from lrphooks.models import efficientnet_lite0

ROOT = Path(__file__).parents[1]
_spec = importlib.util.spec_from_file_location("docs_pictures", ROOT / "docs" / "pictures.py")
pictures = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = pictures
_spec.loader.exec_module(pictures)


def check(path, drawn):
    with Image.open(path) as stored:
        assert stored.size == drawn.size, f"{path.name}: run python docs/pictures.py"
        difference = np.abs(np.asarray(stored.convert("RGB")).astype(int) - np.asarray(drawn).astype(int))
    # Rounding in the network moves a colour by a step here and there; another drawing moves whole areas.
    assert difference.mean() < 0.2, f"{path.name}: run python docs/pictures.py"
    assert path.stat().st_size < 200_000


def test_the_page_about_looking_shows_what_its_code_draws(capsys):
    seen = set()
    for path, drawn in pictures.pictures_of_the_page():
        check(path, drawn)
        seen.add(path.name)
    assert seen == {path.name for path in (ROOT / "docs" / "images").glob("looking-*.png")}
    assert "film" in capsys.readouterr().out


def test_the_picture_of_the_readme():
    check(*pictures.picture_of_the_readme())


@pytest.mark.parametrize("name", ["EpsilonPlus", "EpsilonGammaBox"])
def test_the_relevance_of_the_cat_is_on_its_eyes_and_nose(name):
    model = efficientnet_lite0()
    composite = EpsilonPlus() if name == "EpsilonPlus" else EpsilonGammaBox(model.low, model.high)
    x = model.prepare(Image.fromarray(skimage.data.chelsea()))
    relevance = lrp(model.network, x, 282, composite)[0].sum(0).clamp(min=0)
    # Marked by hand on the 224 x 224 pixels that the network sees: left, top, right, bottom.
    boxes = [(34, 54, 96, 110), (172, 79, 214, 125), (114, 178, 170, 216)]
    inside = sum(float(relevance[top:bottom, left:right].sum()) for left, top, right, bottom in boxes)
    area = sum((right - left) * (bottom - top) for left, top, right, bottom in boxes) / 224**2
    assert inside / float(relevance.sum()) > 2 * area
