"""Infills, against scipy and against what can be said of them exactly."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from lrphooks.evaluation import Blur, Constant, Inpainting, Mean, Noise

SHAPES = [(2, 3, 20), (2, 3, 12, 9), (2, 2, 5, 6, 7)]


def image(shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("sigma", [1.0, 3.5])
def test_blur_is_a_gaussian_over_what_is_inside(shape, sigma, close):
    x = image(shape)
    radius = int(np.ceil(3 * sigma))
    inside = gaussian_filter(np.ones(shape[2:]), sigma, mode="constant", radius=radius)
    blurred = Blur(sigma).prepare(x)
    for row in range(shape[0]):
        for channel in range(shape[1]):
            expected = gaussian_filter(x[row, channel].numpy(), sigma, mode="constant", radius=radius) / inside
            close(blurred[row, channel], expected)


def test_a_constant_image_stays_constant_under_blur_and_inpainting(close):
    x = torch.full((1, 2, 11, 6), 3.0, dtype=torch.float64)
    close(Blur(4.0).prepare(x), x)
    removed = torch.rand(1, 1, 11, 6) < 0.7
    inpainting = Inpainting()
    close(inpainting.fill(x, inpainting.prepare(x), removed), x)


def test_constants_are_given_for_all_or_for_each_channel():
    x = image((2, 3, 4, 4))
    assert (Constant(2.0).prepare(x) == 2.0).all()
    prepared = Constant((1.0, 2.0, 3.0)).prepare(x)
    assert prepared.shape == x.shape
    assert prepared[1, :, 2, 3].tolist() == [1.0, 2.0, 3.0]
    assert Constant((5.0, 6.0)).prepare(torch.zeros(3, 2))[2].tolist() == [5.0, 6.0]


def test_mean_is_that_of_each_row_and_channel(close):
    x = image((2, 3, 4, 5))
    close(Mean().prepare(x)[1, 2], np.full((4, 5), x[1, 2].numpy().mean()))


def test_noise_has_the_moments_of_its_channel_and_is_always_the_same(close):
    x = 3.0 + 2.0 * image((1, 2, 200, 200))
    noise = Noise(scale=0.5)
    prepared = noise.prepare(x)
    close(prepared.mean((2, 3)), x.mean((2, 3)), tol=0.02)
    close(prepared.std((2, 3)), 0.5 * x.std((2, 3)), tol=0.02)
    assert torch.equal(prepared, noise.prepare(x))
    assert not torch.equal(prepared, Noise(scale=0.5, seed=1).prepare(x))
    # Values are drawn apart from each other, and from those of the input.
    assert abs(np.corrcoef(prepared[0, 0].flatten(), x[0, 0].flatten())[0, 1]) < 0.05


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_inpainting_keeps_what_is_known_and_stays_within_it(shape):
    x = image(shape)
    removed = torch.rand(shape[0], 1, *shape[2:], generator=torch.Generator().manual_seed(2)) < 0.6
    inpainting = Inpainting()
    filled = inpainting.fill(x, inpainting.prepare(x), removed)
    keep = ~removed.expand_as(x)
    assert torch.equal(filled[keep], x[keep])
    for row, known in zip(filled, keep, strict=True):
        for channel, mask in zip(row, known, strict=True):
            assert channel.min() >= channel[mask].min() - 1e-12
            assert channel.max() <= channel[mask].max() + 1e-12


def test_inpainting_from_one_position_is_that_position_and_from_none_the_mean(close):
    x = image((1, 2, 9, 9))
    removed = torch.ones(1, 1, 9, 9, dtype=torch.bool)
    inpainting = Inpainting()
    close(inpainting.fill(x, inpainting.prepare(x), removed), Mean().prepare(x))
    removed[0, 0, 4, 7] = False
    close(inpainting.fill(x, inpainting.prepare(x), removed), x[:, :, 4:5, 7:8].expand_as(x))


def test_inpainting_continues_a_slope():
    x = torch.linspace(0, 1, 64, dtype=torch.float64).repeat(1, 1, 64, 1)
    removed = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    removed[..., 24:40, 24:40] = True
    inpainting = Inpainting()
    filled = inpainting.fill(x, inpainting.prepare(x), removed)
    worst = (filled - x).abs().max()
    # The mean of the picture would miss by up to 0.13 there.
    assert worst < 0.06


def test_every_infill_changes_what_is_removed_and_nothing_else():
    x = image((2, 3, 8, 8))
    removed = torch.zeros(2, 1, 8, 8, dtype=torch.bool)
    removed[0, 0, 2:5, 3:6] = True
    for infill in (Blur(2.0), Constant(9.0), Mean(), Noise(), Inpainting()):
        filled = infill.fill(x, infill.prepare(x), removed)
        assert torch.equal(filled == x, ~removed.expand_as(x)), infill


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="Blur: sigma must be above 0, got 0"):
        Blur(0)
    with pytest.raises(TypeError, match="Constant: value must be a number, got 'black'"):
        Constant("black")
    with pytest.raises(ValueError, match="Constant: 2 values were given for 3 channels"):
        Constant((0.0, 1.0)).prepare(image((1, 3, 4)))
    with pytest.raises(ValueError, match="Noise: scale must be at least 0, got -1"):
        Noise(scale=-1)
    for infill in (Blur(), Mean(), Noise(), Inpainting()):
        with pytest.raises(
            ValueError, match=f"{type(infill).__name__}|Mean: .*features without neighbouring positions"
        ):
            infill.prepare(torch.zeros(2, 5))
