"""Keras 3 on torch: models loaded from files, against closed forms and the same network in torch."""

import logging
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import torchvision_shim  # noqa: F401  before keras, which imports torchvision
from lrphooks import audit, explain, lrp
from lrphooks.baselines import GradCAM
from lrphooks.composites import EpsilonGammaBox, EpsilonPlus
from lrphooks.rules import Epsilon
from small_networks import every_layer

os.environ.setdefault("KERAS_BACKEND", "torch")
import keras

# Of Keras itself: of a file that Keras 2 wrote, and with numpy 2.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Do not pass an `input_shape`", "ignore:__array__ implementation doesn't accept a copy"
)
LRP_0 = every_layer(Epsilon(0))


def folder(package):
    return Path(find_spec(package).submodule_search_locations[0])


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_dense_network(suffix, tmp_path, close):
    """LRP-0 layer by layer, from the weights as Keras gives them out."""
    logging.getLogger("absl").setLevel(logging.ERROR)  # it calls .h5 a thing of the past
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8, "relu", bias_initializer="random_normal") for _ in range(2)]
    built = keras.Sequential([keras.layers.Input((6,)), *layers, keras.layers.Dense(3)])
    built.save(tmp_path / f"model{suffix}")
    model = keras.saving.load_model(tmp_path / f"model{suffix}", compile=False)

    x = np.random.default_rng(0).normal(size=(4, 6)).astype(np.float32)
    weights = [w.astype(np.float64) for w in built.get_weights()]
    values, inputs = x.astype(np.float64), []
    for step in range(3):
        inputs.append(values)
        values = values @ weights[2 * step] + weights[2 * step + 1]
        values = values if step == 2 else np.maximum(values, 0)
    outputs = [*inputs[1:], values]
    relevance = np.where(np.arange(3) == 1, values, 0)
    for step in (2, 1, 0):
        share = np.divide(relevance, outputs[step], out=np.zeros_like(relevance), where=outputs[step] != 0)
        relevance = inputs[step] * (share @ weights[2 * step].T)

    explanation = explain(model, torch.tensor(x), 1, LRP_0)
    close(explanation.explained, values[:, 1], tol=1e-6)
    close(explanation.relevance, relevance, tol=1e-5)


@pytest.fixture(scope="module")
def cifar():
    """The network of the package cifar-10-model, and the CIFAR-10 test pictures that foolbox brings."""
    model = keras.saving.load_model(folder("cifar_10_model") / "trained_models" / "cnn_model.h5", compile=False)
    files = sorted((folder("foolbox") / "data").glob("cifar10_*.png"))
    images = torch.tensor(np.stack([Image.open(file).convert("RGB") for file in files]), dtype=torch.float32)
    return model, images, [int(file.stem.split("_")[-1]) for file in files]


class Shift(nn.Module):
    """A bias that is added by an operation of its own, as Keras does."""

    def __init__(self, bias):
        super().__init__()
        self.bias = nn.Parameter(bias)

    def forward(self, x):
        return x + self.bias.reshape(-1, *(1,) * (x.dim() - 2))


def in_torch(model):
    """The same network of torch's layers, in double precision."""
    layers = []
    for layer in model.layers:
        weights = [torch.tensor(w) for w in layer.get_weights()]
        kind = type(layer).__name__
        if kind == "Conv2D":
            conv = nn.Conv2d(*weights[0].shape[2:], 3, bias=False)
            conv.weight.data = weights[0].permute(3, 2, 0, 1)
            layers += [conv, Shift(weights[1]), nn.ReLU()]
        elif kind == "BatchNormalization":
            norm = nn.BatchNorm2d(len(weights[0]), eps=layer.epsilon)
            norm.weight.data, norm.bias.data, norm.running_mean, norm.running_var = weights
            layers.append(norm)
        elif kind == "MaxPooling2D":
            layers.append(nn.MaxPool2d(layer.pool_size, layer.strides))
        elif kind == "Flatten":
            layers.append(nn.Flatten())
        elif kind == "Dense":
            dense = nn.Linear(*weights[0].shape, bias=False)
            dense.weight.data = weights[0].T
            layers += [dense, Shift(weights[1]), nn.ReLU()]
        else:
            assert kind == "Dropout"
    return nn.Sequential(*layers).double().eval()


def test_the_class_is_right(cifar):
    """The network was measured at 80 % of the test set."""
    model, images, classes = cifar
    assert sum(model(images).argmax(1) == torch.tensor(classes)) >= 16


@pytest.mark.parametrize("composite", [LRP_0, EpsilonPlus(), EpsilonGammaBox(0.0, 255.0)], ids=repr)
def test_relevance_is_that_of_the_same_network_in_torch(cifar, composite, close):
    model, images, classes = cifar
    explanation = explain(model, images[:6], classes[:6], composite)
    expected = explain(in_torch(model), images[:6].permute(0, 3, 1, 2).double(), classes[:6], composite)
    close(explanation.explained, expected.explained, tol=1e-5)
    close(explanation.relevance.permute(0, 3, 1, 2), expected.relevance, tol=1e-5)


@pytest.mark.parametrize("composite", [LRP_0, EpsilonPlus(), EpsilonGammaBox(0.0, 255.0)], ids=repr)
def test_the_books_balance(cifar, composite):
    model, images, classes = cifar
    report = audit(model, images[:2], classes[:2], composite)
    assert report.unexplained < 1e-5
    with torch.no_grad():
        output = float(model(images[:2])[[0, 1], classes[:2]].sum())
    relevance = float(lrp(model, images[:2], classes[:2], composite).double().sum())
    # What is missing from f(x) is what the audit says was absorbed.
    assert abs(output - relevance - sum(report.sinks.values())) < 1e-4 * output


def test_rules_match_what_keras_runs(cifar):
    model, images, classes = cifar
    report = audit(model, images[:1], classes[:1], EpsilonPlus())
    rules = {row.name: (row.rule, row.count) for row in report.operations if row.name in ("conv2d", "matmul")}
    assert rules["conv2d"] == ("ZPlus(stabilizer=1e-06)", 6)
    assert rules["matmul"] == ("Epsilon(epsilon=1e-06)", 3)


def test_grad_cam(cifar, close):
    """Feature maps are found without the name of a layer, channels last."""
    model, images, classes = cifar
    x, twin = images[:2], in_torch(model)
    first = images[:2].permute(0, 3, 1, 2).double()
    close(GradCAM(channel=-1)(model, x, classes[:2]).permute(0, 3, 1, 2), GradCAM()(twin, first, classes[:2]), tol=1e-5)
