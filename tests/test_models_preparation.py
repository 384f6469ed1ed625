"""Pictures become what the models' own libraries make of them."""

import importlib

import numpy as np
import pytest
import torch
from PIL import Image

import torchvision_shim  # noqa: F401
from lrphooks.models import Ink, ModelError, Pixels
from lrphooks.models.zoos import _of_timm, _of_torchvision

timm, torchvision = importlib.import_module("timm"), importlib.import_module("torchvision")

SIZES = [(451, 300), (300, 451), (224, 224), (97, 640), (1001, 333)]


def photograph(size):
    noise = np.random.default_rng(0).integers(0, 256, (12, 17, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v2", "efficientnet_b4", "swin_v2_b", "inception_v3"])
def test_as_torchvision(name, size):
    picture = photograph(size)
    for weights in torchvision.models.get_model_weights(name):
        transform = weights.transforms()
        torch.testing.assert_close(_of_torchvision(transform).prepare(picture)[0], transform(picture))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "name",
    ["resnet50.a1_in1k", "vit_base_patch16_siglip_224.webli", "mobilenetv3_small_050", "tf_efficientnet_b0.in1k"],
)
def test_as_timm(name, size):
    picture = photograph(size)
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    transform = timm.data.create_transform(**config)
    torch.testing.assert_close(_of_timm(config, name).prepare(picture)[0], transform(picture))


def test_a_crop_that_is_not_known_is_refused():
    config = {"input_size": (3, 224, 224), "crop_pct": 1.0, "crop_mode": "border"}
    with pytest.raises(ModelError, match="crops its pictures by 'border'"):
        _of_timm(config, "timm:any")


PREPARATION = Pixels((224, 224), 256, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def test_the_bounds_are_black_and_white():
    for colour, bound in (("black", PREPARATION.low), ("white", PREPARATION.high)):
        x = PREPARATION.prepare(Image.new("RGB", (300, 300), colour))
        assert torch.equal(x, bound[None, :, None, None].expand_as(x))


def test_what_is_shown_is_what_was_prepared():
    picture = photograph((224, 224))
    preparation = Pixels((224, 224), 224, PREPARATION.mean, PREPARATION.std)
    assert np.array_equal(np.asarray(preparation.show(preparation.prepare(picture))), np.asarray(picture))


def test_another_size_keeps_the_margin():
    changed = PREPARATION.changed((112, 112), None, None)
    assert (changed.size, changed.resize) == ((112, 112), 128)
    assert changed.prepare(photograph((451, 300))).shape == (1, 3, 112, 112)


def test_a_size_with_two_sides_and_one_channel():
    grey = Pixels((32, 48), (32, 48), (0.0,), (1.0,))
    x = grey.prepare(photograph((96, 64)))
    assert x.shape == (1, 1, 32, 48)
    assert grey.show(x).mode == "L"
    assert (grey.low, grey.high) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("preparation", "told"),
    [
        (PREPARATION, "shorter side to 256, centre 224 x 224, bilinear, mean 0.485 0.456 0.406, std 0.229 0.224 0.225"),
        (Pixels((32, 48), (32, 48), (0.0,), (1.0,)), "grey, 48 x 32 squeezed, bilinear, pixels from 0 to 1"),
        (Pixels((9, 9), (10, 10)), "squeezed to 10 x 10, centre 9 x 9, bilinear, pixels from 0 to 1"),
        (
            PREPARATION.changed(None, (0.5,), (0.25,)),
            "shorter side to 256, centre 224 x 224, bilinear, mean 0.5, std 0.25",
        ),
        (Ink(), "light ink on dark, centred, 28 x 28 pixels from 0 to 1"),
    ],
)
def test_a_preparation_says_what_it_does(preparation, told):
    assert str(preparation) == told


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Pixels((0, 3), 3), "both sides must be at least 1"),
        (lambda: Pixels((9, 9), 8), "a crop of 9 x 9 pixels does not fit into a side of 8"),
        (lambda: PREPARATION.changed(None, (0.5, 0.5), None), "the mean has 2 channels and the standard deviation 3"),
        (lambda: PREPARATION.changed(None, None, (0.0,)), "a divisor above 0, not 0"),
        (lambda: Pixels((3, 3), 3, interpolation="cubic"), "the interpolation is one of .*, not 'cubic'"),
        (lambda: Ink().changed((3, 3), None, None), "takes no --size, --mean or --std"),
    ],
)
def test_what_cannot_be(make, message):
    with pytest.raises(ModelError, match=message):
        make()
