"""The shapes of captum and Quantus: both libraries' own tools run on lrphooks as it is."""

import subprocess
import sys
import threading

import captum.attr
import captum.metrics
import numpy as np
import pytest
import torch
from torch import nn

import torchvision_shim  # noqa: F401
from lrphooks import lrp
from lrphooks.adapters import CaptumAttribution, quantus_explain
from lrphooks.baselines import Gradient, InputXGradient, IntegratedGradients, Occlusion, SmoothGrad
from lrphooks.composites import EpsilonPlus, GuidedBackprop
from lrphooks.rules import Epsilon, ZPlus
from small_networks import every_layer, network

LRP_0 = every_layer(Epsilon(0))
#: Captum's LRP, which is LRP-0 by default, adds 1e-9 to every output; they are about 0.01 here.
STABILIZED = 1e-6


class Plain(nn.Module):
    """Layers that captum's LRP serves, which do not include nn.Flatten."""

    def __init__(self):
        super().__init__()
        self.conv1, self.relu1, self.pool = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2)
        self.conv2, self.relu2, self.head = nn.Conv2d(4, 4, 2), nn.ReLU(), nn.Linear(16, 4)
        self.double()

    def forward(self, x):
        return self.head(self.relu2(self.conv2(self.pool(self.relu1(self.conv1(x))))).flatten(1))


X = torch.linspace(-1, 1.5, 2 * 3 * 8 * 8, dtype=torch.float64).reshape(2, 3, 8, 8).sin()


pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")


# --- captum -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", [2, torch.tensor(2), torch.tensor([2]), [1, 3], torch.tensor([1, 3]), (2,)], ids=repr
)
def test_captums_lrp(target, close):
    model = Plain()
    expected, expected_delta = captum.attr.LRP(model).attribute(X, target, return_convergence_delta=True)
    found, delta = CaptumAttribution(model, LRP_0).attribute(X, target, return_convergence_delta=True)
    close(found, expected, STABILIZED)
    close(delta, expected_delta, STABILIZED)
    close(CaptumAttribution(model, LRP_0).attribute(X, target), found)


def test_captums_lrp_with_its_alpha_beta_rule(close):
    model = Plain()
    layers = [model.conv1, model.conv2, model.head]
    for layer in layers:
        layer.rule = captum.attr._utils.lrp_rules.Alpha1_Beta0_Rule()
    with torch.no_grad():
        for layer in layers:
            layer.bias.clamp_(min=0)  # captum's rule takes all of the bias, z-plus its positive part
    expected = captum.attr.LRP(model).attribute(X.abs(), 1)
    close(CaptumAttribution(model, every_layer(ZPlus(0.0))).attribute(X.abs(), 1), expected, STABILIZED)


@pytest.mark.parametrize(
    ("target", "pick"),
    [
        ((1, 2, 0), lambda y: y[:, 1, 2, 0]),
        ([(1, 2, 0), (0, 1, 1)], lambda y: torch.stack([y[0, 1, 2, 0], y[1, 0, 1, 1]])),
    ],
    ids=["one for all rows", "one a row"],
)
def test_targets_in_outputs_of_more_dimensions(target, pick, close):
    model = nn.Conv2d(3, 2, 3).double()
    expected = captum.attr.InputXGradient(model).attribute(X.clone().requires_grad_(), target)
    close(CaptumAttribution(model, InputXGradient()).attribute(X, target), expected)
    close(CaptumAttribution(model, LRP_0).attribute(X, target), lrp(model, X, pick, LRP_0))


class Joined(nn.Module):
    """Linear in a and in b, and a factor that is not to be explained."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 3).double(), nn.Linear(4, 3).double()
        nn.init.ones_(self.a.bias)

    def forward(self, a, b, factor=1.0, shift=None):
        out = (self.a(a).relu() + self.b(b)) * factor
        return out if shift is None else out + shift


def test_several_inputs_and_further_arguments(close):
    model, a, b = Joined(), torch.randn(2, 5).double(), torch.randn(2, 4).double()
    factor, shift = torch.randn(2, 1).double(), torch.randn(3).double()
    attribution = CaptumAttribution(model, LRP_0)
    found = attribution.attribute((a, b), 1, (factor, shift))
    assert isinstance(found, tuple)
    close(found[0], factor * a * ((model.a(a)[:, 1] > 0).double()[:, None] * model.a.weight[1]))
    close(found[1], factor * b * model.b.weight[1])
    peer = captum.attr.InputXGradient(model)
    expected = peer.attribute((a.clone().requires_grad_(), b.clone().requires_grad_()), 1, (factor, shift))
    for one, two in zip(found, expected, strict=True):
        close(one, two)
    (single,) = CaptumAttribution(model.a, LRP_0).attribute((a,), 1)
    close(single, a * model.a.weight[1])
    close(attribution.attribute((a, b), 1, 2.0)[1], 2 * b * model.b.weight[1])


@pytest.mark.parametrize(
    "method", [Occlusion(1), IntegratedGradients(30, tolerance=1.0), SmoothGrad(samples=1, noise=0.0)], ids=repr
)
def test_further_arguments_follow_the_rows_of_a_baseline(method, close):
    """Which runs many copies of them together."""
    model, a, b = Joined().eval(), torch.randn(2, 5).double(), torch.randn(2, 4).double()
    factor, shift = torch.tensor([[1.0], [2.0]]).double(), torch.randn(3).double()
    together = CaptumAttribution(model, method).attribute((a, b), 1, (factor, shift))
    for row in range(2):
        part = slice(row, row + 1)
        alone = CaptumAttribution(model, method).attribute((a[part], b[part]), 1, (factor[part], shift))
        for one, two in zip(together, alone, strict=True):
            close(one[part], two)


def test_the_model_is_left_as_it_was():
    model = Joined()
    a, b = torch.randn(2, 5).double(), torch.randn(2, 4).double()
    with pytest.raises(ValueError, match="out of range"):
        CaptumAttribution(model).attribute((a, b), 7, 2.0)
    assert not model._forward_pre_hooks
    CaptumAttribution(model).attribute((a, b), 1, 2.0)
    assert not model._forward_pre_hooks


def test_further_arguments_belong_to_the_thread_that_gives_them():
    seen = []

    class Meanwhile(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(5, 3)

        def forward(self, x, factor=1.0):
            seen.append(factor)
            if threading.current_thread() is threading.main_thread():
                thread = threading.Thread(target=self, args=(x.detach(),))
                thread.start()
                thread.join()
            return self.inner(x) * factor

    CaptumAttribution(Meanwhile()).attribute(torch.randn(2, 5), 1, 3.0)
    assert seen == [3.0, 1.0]


def test_without_a_target_the_model_returns_one_value_a_row(close):
    one = nn.Linear(5, 1).double()
    x = torch.randn(2, 5).double()
    for model in (one, nn.Sequential(one, nn.Flatten(0))):
        close(CaptumAttribution(model, LRP_0).attribute(x), x * one.weight)
    with pytest.raises(
        ValueError, match=r"returns an output of shape \(2, 3\), not one value a row, so target must say"
    ):
        CaptumAttribution(nn.Linear(5, 3).double(), LRP_0).attribute(x)


def test_what_is_not_supported():
    attribution = CaptumAttribution(Plain())
    with pytest.raises(TypeError, match=r"unsupported arguments 'baselines'.*belongs to the method itself"):
        attribution.attribute(X, 1, baselines=0)
    with pytest.raises(
        TypeError, match=r"input 1 must be a floating-point tensor, got torch.int64.*additional_forward"
    ):
        attribution.attribute((X, torch.tensor([1, 2])), 1)
    with pytest.raises(TypeError, match="input 0 must be a floating-point tensor, got list"):
        attribution.attribute([X], 1)
    with pytest.raises(ValueError, match=r"target \(1,\) leads to values of shape \(6, 6\), not"):
        CaptumAttribution(nn.Conv2d(3, 2, 3).double(), LRP_0).attribute(X, (1,))
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module"):
        CaptumAttribution(torch.sin)
    with pytest.raises(TypeError, match=r"must be a Composite, such as EpsilonPlus\(\), got 'LRP'"):
        CaptumAttribution(Plain(), "LRP")
    with pytest.raises(NotImplementedError, match="no asynchronous form"):
        attribution.attribute_future()


def test_units():
    model = Plain()
    assert CaptumAttribution(model).multiplies_by_inputs
    assert CaptumAttribution(model, InputXGradient()).multiplies_by_inputs
    assert not CaptumAttribution(model, Gradient()).multiplies_by_inputs
    assert not CaptumAttribution(model, GuidedBackprop()).multiplies_by_inputs


@pytest.mark.parametrize("method", [LRP_0, InputXGradient(), SmoothGrad(LRP_0, 2)], ids=repr)
def test_the_noise_tunnel(method, close):
    """Its mean is that of the attributions of the inputs that it tried; vargrad the variance."""
    model = Plain()
    seen = []
    original = CaptumAttribution(model, method)

    tunnel = captum.attr.NoiseTunnel(original)
    hook = model.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach().clone()))
    torch.manual_seed(3)
    found, delta = tunnel.attribute(
        X, nt_samples=3, stdevs=0.2, target=[1, 3], return_convergence_delta=True, nt_samples_batch_size=1
    )
    hook.remove()
    tried = seen[:: len(seen) // 3]
    expected = torch.stack([original.attribute(x, [1, 3]) for x in tried])
    if not isinstance(method, SmoothGrad):
        close(found, expected.mean(0))
        torch.manual_seed(3)
        spread = tunnel.attribute(X, "vargrad", nt_samples=3, stdevs=0.2, target=[1, 3], nt_samples_batch_size=1)
        close(spread, expected.var(0, correction=0), tol=1e-8)
    assert found.shape == X.shape
    assert delta.shape == (6,)


def test_sensitivity(close):
    """Captum's metric of captum's LRP, and of ours with the same rule."""
    model = Plain()
    scores = []
    for attribution in (captum.attr.LRP(model), CaptumAttribution(model, LRP_0)):
        torch.manual_seed(1)
        with torch.enable_grad():
            scores.append(captum.metrics.sensitivity_max(attribution.attribute, X, target=torch.tensor([1, 3])))
    close(scores[1], scores[0], STABILIZED)


def test_infidelity(close):
    """0 for the exact attributions of a linear model; for another model as captum's LRP."""

    def perturb(inputs):
        noise = 0.1 * torch.randn_like(inputs)
        return noise, inputs - noise

    linear = nn.Linear(5, 3).double()
    x = torch.randn(2, 5).double()
    gradient = CaptumAttribution(linear, Gradient()).attribute(x, 1)
    found = captum.metrics.infidelity(linear, perturb, x, gradient, target=1, n_perturb_samples=4)
    assert float(found.abs().max()) < 1e-25
    model, scores = Plain(), []
    for attribution in (captum.attr.LRP(model), CaptumAttribution(model, LRP_0)):
        torch.manual_seed(1)
        given = attribution.attribute(X, target=1)
        scores.append(captum.metrics.infidelity(model, perturb, X, given, target=1, n_perturb_samples=4).detach())
    close(scores[1], scores[0], STABILIZED)


def test_captums_tool_for_pictures():
    """Which takes the arrays of one picture, channels last."""
    found = CaptumAttribution(Plain(), LRP_0).attribute(X, 2)[1].permute(1, 2, 0).numpy()
    figure, _ = captum.attr.visualization.visualize_image_attr(found, use_pyplot=False)
    assert figure is not None


def test_the_adapters_import_neither_library():
    code = "import sys, lrphooks.adapters; assert not {'captum', 'quantus'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- Quantus ----------------------------------------------------------------------------------------------------


def test_arrays_in_and_out(close):
    model, x = network("vgg")
    found = quantus_explain(model, x.numpy().astype(np.float32), np.array([1, 3]), composite=EpsilonPlus())
    assert isinstance(found, np.ndarray)
    close(found, lrp(model, x.float().double(), [1, 3], EpsilonPlus()))
    summed = quantus_explain(model, x.numpy(), np.array([1, 3]), reduce_axes=(1,))
    close(summed, lrp(model, x, [1, 3]).sum(1, keepdim=True))
    model, x = network("vgg", dtype=torch.float32)
    assert quantus_explain(model, x.numpy().astype(np.float64), np.array([1, 3])).dtype == np.float32


@pytest.mark.filterwarnings("ignore")  # of Quantus and what it imports
class TestQuantus:
    """Its metrics on lrphooks as explain_func, and on the same relevance given as arrays."""

    @pytest.fixture(scope="class")
    def quantus(self):
        import warnings

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import quantus
        return quantus

    @pytest.mark.parametrize("reduce_axes", [(), (1,)], ids=["all values", "channels summed"])
    @pytest.mark.parametrize("method", [EpsilonPlus(), InputXGradient()], ids=repr)
    def test_pixel_flipping(self, quantus, method, reduce_axes, close):
        model, x = network("vgg", dtype=torch.float32)
        x, y = x.numpy(), np.array([1, 3])
        given = lrp(model, torch.as_tensor(x), torch.as_tensor(y), method)
        given = given.sum(reduce_axes, keepdim=True) if reduce_axes else given
        arguments = {"composite": method, "reduce_axes": reduce_axes}
        scores = [
            quantus.PixelFlipping(features_in_step=8, disable_warnings=True, return_auc_per_sample=False)(
                model=model, x_batch=x, y_batch=y, device="cpu", softmax=False, **explained
            )
            for explained in (
                {"explain_func": quantus_explain, "explain_func_kwargs": arguments},
                {"a_batch": given.numpy()},
            )
        ]
        close(scores[0], scores[1])

    def test_a_metric_that_explains_again(self, quantus):
        """Perturbed inputs, or the model with other weights."""
        model, x = network("vgg", dtype=torch.float32)
        arguments = {"composite": EpsilonPlus()}
        metric = quantus.MaxSensitivity(nr_samples=2, disable_warnings=True)
        (first, second) = metric(
            model=model, x_batch=x.numpy(), y_batch=np.array([1, 3]), device="cpu",
            explain_func=quantus_explain, explain_func_kwargs=arguments,
        )  # fmt: skip
        assert 0 < first < 10
        assert 0 < second < 10
