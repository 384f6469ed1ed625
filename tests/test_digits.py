"""The packaged digit network, its weights and pictures, and how any picture becomes its input."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageOps

from lrphooks.digits import DigitNetwork, from_picture, images, load_image, load_network
from lrphooks.digits.network import WEIGHTS, save_network


def digit(path):
    return int(path.stem.removeprefix("digit-"))


@pytest.mark.parametrize("path", images(), ids=lambda path: path.stem)
def test_every_packaged_digit_is_read_rightly(path):
    probabilities = load_network()(load_image(path)).softmax(1)[0]
    assert int(probabilities.argmax()) == digit(path)
    assert probabilities.max() > 0.9


def test_packaged_digits_are_five_classes_of_the_data_set_s_size():
    assert len({digit(path) for path in images()}) == 5
    for path in images():
        x = load_image(path)
        assert x.shape == (1, 1, 28, 28)
        assert x.dtype == torch.float32
        assert (float(x.min()), float(x.max())) == (0.0, 1.0)


def test_a_packaged_digit_is_taken_pixel_by_pixel():
    path = images()[0]
    with Image.open(path) as picture:
        pixels = torch.from_numpy(np.array(picture))
    torch.testing.assert_close(load_image(path)[0, 0], pixels.float() / 255)


def test_weights_are_small_plain_arrays():
    assert WEIGHTS.stat().st_size <= 1_000_000
    with np.load(WEIGHTS, allow_pickle=False) as stored:
        assert {stored[name].dtype.kind for name in stored.files} == {"f", "i"}


def test_network_is_in_evaluation_mode_and_each_load_is_its_own():
    first, second = load_network(), load_network()
    assert not any(module.training for module in first.modules())
    with torch.no_grad():
        first.head.weight.zero_()
    assert second.head.weight.abs().sum() > 0


def test_network_has_batch_norm_and_residual_sums():
    network = load_network()
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    # Trained statistics: a merge of convolution and BatchNorm that ignores them would not go unnoticed.
    assert all(norm.running_mean.abs().max() > 0.01 for norm in norms)
    x = load_image(images()[0])
    residual = network.block1(network.pool(torch.relu(network.bn(network.stem(x)))))
    network.block1.skip = torch.nn.Sequential(torch.nn.AvgPool2d(1), torch.nn.Flatten(0, 0))
    torch.testing.assert_close(network.block1(network.pool(torch.relu(network.bn(network.stem(x))))), residual)


def test_saved_weights_load_as_the_same_network(tmp_path):
    network = DigitNetwork()
    save_network(network, tmp_path / "weights.npz")
    loaded = load_network(tmp_path / "weights.npz").state_dict()
    assert loaded.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        assert torch.equal(loaded[name], value), name


def test_weights_of_another_network_are_refused(tmp_path):
    np.savez(tmp_path / "weights.npz", head=np.zeros(3, dtype=np.float32))
    with pytest.raises(RuntimeError, match="Missing key"):
        load_network(tmp_path / "weights.npz")


def on_paper(picture, *, ink=70, paper=215):
    """A photograph of the digit as it were: large, off the centre, grey, dark on light."""
    large = picture.resize((230, 230), Image.Resampling.BICUBIC)
    dark = large.point([round(paper + (ink - paper) * value / 255) for value in range(256)])
    page = Image.new("L", (500, 700), paper)
    page.paste(dark, (180, 300))
    return page


@pytest.mark.parametrize("path", images(), ids=lambda path: path.stem)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P"])
def test_a_digit_on_paper_is_read_rightly(path, mode):
    with Image.open(path) as picture:
        x = from_picture(on_paper(picture).convert(mode))
    probabilities = load_network()(x).softmax(1)[0]
    assert int(probabilities.argmax()) == digit(path)
    assert probabilities.max() > 0.7


def test_dark_on_light_becomes_light_on_dark():
    with Image.open(images()[0]) as picture:
        torch.testing.assert_close(from_picture(ImageOps.invert(picture)), from_picture(picture))


def test_dark_ink_on_a_dark_grey_ground_is_found():
    with Image.open(images()[-1]) as picture:
        x = from_picture(on_paper(picture, ink=0, paper=100))
    assert int(load_network()(x).argmax()) == digit(images()[-1])


def test_transparent_ground_is_white():
    with Image.open(images()[0]) as picture:
        ink = Image.new("RGBA", picture.size, "black")
        ink.putalpha(picture)
        torch.testing.assert_close(from_picture(ink), from_picture(picture), atol=1 / 255, rtol=0)


@pytest.mark.parametrize("size", [(28, 28), (300, 200)])
def test_a_blank_picture_is_refused(size):
    with pytest.raises(ValueError, match=r"shows no digit: its brightness spans 0 of 255\. Give a picture"):
        from_picture(Image.new("L", size, 180))


@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_any_picture_becomes_a_valid_input_or_is_refused(pixels):
    picture = Image.fromarray(pixels)
    if np.ptp(pixels) < 16:
        with pytest.raises(ValueError, match="shows no digit"):
            from_picture(picture)
        return
    x = from_picture(picture)
    assert x.shape == (1, 1, 28, 28)
    assert torch.isfinite(x).all()
    assert 0 <= float(x.min()) < float(x.max()) <= 1
