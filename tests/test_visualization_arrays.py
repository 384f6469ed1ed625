"""What may be drawn: relevance of images, and pictures of every form."""

import numpy as np
import pytest
import torch
from PIL import Image

from lrphooks.visualization.arrays import batch_floats, image_floats, resized, to_picture

RGB = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_relevance_that_is_not_finite_is_refused(value):
    relevance = torch.zeros(3, 4, 4)
    relevance[1, 2, 3] = value
    with pytest.raises(ValueError, match=r"1 of 48 relevance values are NaN or infinite\. The usual cause"):
        image_floats(relevance)


@pytest.mark.parametrize("shape", [(), (5,), (2, 0), (0, 4, 4), (1, 1, 1, 4, 4)])
def test_what_is_no_image_is_refused(shape):
    with pytest.raises(ValueError, match=r"is no image: a heatmap needs \(C, H, W\) or \(H, W\)"):
        image_floats(np.ones(shape))


def test_a_batch_is_refused_with_a_hint():
    with pytest.raises(ValueError, match=r"Draw a batch with grid\(relevance\), or one image of it: relevance\[0\]"):
        image_floats(torch.ones(2, 3, 4, 4))


def test_channels_that_come_last_are_refused():
    with pytest.raises(ValueError, match=r"\(32, 40, 3\) seems to have its channels last.*movedim\(-1, -3\)"):
        image_floats(np.ones((32, 40, 3)))
    assert image_floats(np.ones((3, 32, 4))).shape == (3, 32, 4)


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4, 4, 4), (0, 1, 2, 2)])
def test_what_is_no_batch_is_refused(shape):
    with pytest.raises(ValueError, match=r"is no batch of images: it needs \(N, C, H, W\)"):
        batch_floats(np.ones(shape))


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(RGB),
        RGB,
        torch.from_numpy(RGB).permute(2, 0, 1),
        torch.from_numpy(RGB).permute(2, 0, 1)[None] / 255,
        (torch.from_numpy(RGB).permute(2, 0, 1) / 255).double().requires_grad_(),
        RGB / 255,
        np.moveaxis(RGB, 2, 0) / np.float32(255),
    ],
)
def test_every_form_of_a_picture(picture):
    np.testing.assert_array_equal(np.asarray(to_picture(picture)), RGB)


def test_half_precision_is_right_to_its_own_step():
    picture = to_picture((torch.from_numpy(RGB).permute(2, 0, 1) / 255).half())
    assert np.abs(np.asarray(picture).astype(int) - RGB).max() <= 1


@pytest.mark.parametrize("grey", [RGB[..., 0], RGB[None, :, :, 0], RGB[..., :1], Image.fromarray(RGB[..., 0])])
def test_one_channel_is_grey(grey):
    np.testing.assert_array_equal(np.asarray(to_picture(grey)), np.repeat(RGB[..., :1], 3, axis=2))


def test_a_normalised_input_is_put_back():
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    x = torch.from_numpy(np.moveaxis((RGB / 255 - mean) / std, 2, 0)).float()
    np.testing.assert_array_equal(np.asarray(to_picture(x, mean=mean, std=std)), RGB)
    with pytest.raises(ValueError, match=r"values span -2\.1.* The usual cause is an input that is normalised"):
        to_picture(x)


def test_transparency_becomes_white():
    picture = Image.new("RGBA", (1, 1), (200, 0, 0, 0))
    assert to_picture(picture).getpixel((0, 0)) == (255, 255, 255)
    assert to_picture(np.full((5, 6, 4), (0, 0, 0, 51), dtype=np.uint8)).getpixel((0, 0)) == (204, 204, 204)


def test_a_palette_is_resolved():
    picture = Image.new("P", (1, 1), 1)
    picture.putpalette([7, 7, 7, 0, 160, 0])
    assert to_picture(picture).getpixel((0, 0)) == (0, 160, 0)


@pytest.mark.parametrize("mode", ["I", "F", "I;16"])
def test_deep_pixels_are_refused(mode):
    with pytest.raises(ValueError, match=rf"more than 8 bits per pixel \(mode {mode}\)"):
        to_picture(Image.new(mode, (2, 2)))


@pytest.mark.parametrize("shape", [(5,), (2, 6, 6), (2, 3, 4, 4), (0, 3), (5, 5, 2)])
def test_what_is_no_picture_is_refused(shape):
    with pytest.raises(ValueError, match="is no shape of a picture"):
        to_picture(np.zeros(shape))


def test_a_picture_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match="values span nan to nan"):
        to_picture(np.full((2, 2), np.nan))


def test_values_of_any_unit_are_resampled():
    values = np.array([[1.0, 3.0], [5.0, -1.0]]) * 1e-200
    np.testing.assert_allclose(resized(values, (1, 1), Image.Resampling.BOX), [[2e-200]], rtol=1e-6)
    np.testing.assert_allclose(resized(values, (4, 2), Image.Resampling.NEAREST), np.repeat(values, 2, 1), rtol=1e-6)
    np.testing.assert_array_equal(resized(np.zeros((2, 2)), (3, 3), Image.Resampling.BILINEAR), np.zeros((3, 3)))
