"""SmoothGrad: its noise, its seed, and every method that it averages."""

import pytest
import torch
from torch import nn

from lrphooks import lrp
from lrphooks.baselines import GradCAM, Gradient, InputXGradient, IntegratedGradients, Occlusion, SmoothGrad
from lrphooks.composites import EpsilonPlus
from small_networks import network

METHODS = [Gradient(), InputXGradient(), IntegratedGradients(4, tolerance=10.0), Occlusion(4), GradCAM(), EpsilonPlus()]


def of(method, model, x, target):
    return lrp(model, x, target, method) if method == EpsilonPlus() else method(model, x, target)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_without_noise_it_is_the_method(method, close):
    model, x = network("vgg")
    close(SmoothGrad(method, samples=3, noise=0.0)(model, x, [1, 2]), of(method, model, x, [1, 2]))


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_the_mean_over_noisy_inputs(method, close):
    """The inputs that the model saw, explained one by one."""
    model, x = network("vgg")
    seen = []
    hook = model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    SmoothGrad(samples=3, seed=5)(model, x, [1, 2])
    hook.remove()
    assert len(seen) == 3
    expected = sum(of(method, model, noisy, [1, 2]) for noisy in seen) / 3
    close(SmoothGrad(method, samples=3, seed=5)(model, x, [1, 2]), expected)


def test_the_class_is_that_of_the_clean_input(close):
    """However the noisy inputs are classified."""
    model, x = network("vgg")
    clean = model(x).argmax(1)
    close(SmoothGrad(samples=4, noise=2.0)(model, x), SmoothGrad(samples=4, noise=2.0)(model, x, clean))
    close(SmoothGrad(EpsilonPlus(), 4, 2.0)(model, x), SmoothGrad(EpsilonPlus(), 4, 2.0)(model, x, clean))


class Square(nn.Module):
    def forward(self, x):
        return x.square()


def test_the_noise_has_the_size_that_is_asked_for():
    """The gradient of x^2 / 2 is x itself, so one sample shows the noise; its size follows the range of each row."""
    x = torch.stack([torch.linspace(-1, 1, 4000), torch.linspace(0, 10, 4000)]).double()
    noise = SmoothGrad(samples=1, noise=0.2)(Square(), x, lambda y: y.sum() / 2) - x
    for row, spread in enumerate((2.0, 10.0)):
        # Standard error of a mean of 4000: 0.016; of a standard deviation: 0.011.
        assert abs(float(noise[row].mean())) < 0.08 * 0.2 * spread
        assert abs(float(noise[row].std()) / (0.2 * spread) - 1) < 0.06
    assert abs(float(torch.corrcoef(noise)[0, 1])) < 0.08


def test_the_seed_decides_and_no_other_generator_moves():
    model, x = network("vgg")
    before = torch.get_rng_state()
    one, two, other = (SmoothGrad(samples=2, seed=seed)(model, x, 1) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    torch.manual_seed(99)
    assert torch.equal(SmoothGrad(samples=2, seed=3)(model, x, 1), one)


def test_over_lrp_it_conserves(close):
    """The relevance sums to the mean of f over the noisy inputs, where nothing absorbs any."""
    model = nn.Sequential(nn.Linear(6, 8, bias=False), nn.ReLU(), nn.Linear(8, 3, bias=False)).double()
    x, outputs = torch.randn(4, 6).double(), []
    hook = model.register_forward_hook(lambda module, args, output: outputs.append(output[:, 1].detach()))
    found = SmoothGrad(EpsilonPlus(epsilon=0), samples=5)(model, x, 1)
    hook.remove()
    close(found.sum(1), sum(outputs) / 5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"method": Gradient},
            TypeError,
            r"must be one of lrphooks.baselines or a composite.*Did you mean Gradient\(\)",
        ),
        ({"method": torch.sin}, TypeError, "must be one of lrphooks.baselines or a composite"),
        ({"samples": 0}, ValueError, "samples must be at least 1"),
        ({"noise": -0.1}, ValueError, "noise must be at least 0"),
        ({"noise": "much"}, TypeError, "noise must be a number"),
        ({"seed": None}, TypeError, "seed must be an integer, got None"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=f"SmoothGrad: .*{message}"):
        SmoothGrad(**arguments)
