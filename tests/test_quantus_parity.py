"""The metrics that quantus 0.6 defines too, on the same relevance: the same numbers."""

import warnings

import numpy as np
import pytest
import torch

import torchvision_shim  # noqa: F401  before quantus, which imports torchvision
from judged import small_cnn
from lrphooks import lrp
from lrphooks.composites import EpsilonPlus
from lrphooks.evaluation import (
    Complexity,
    Constant,
    MaxSensitivity,
    ParameterRandomisation,
    PixelFlipping,
    PointingGame,
    RelevanceMass,
    RelevanceRank,
    Sparseness,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import quantus

TARGET = [0, 3, 1, 4]
PLAIN = {"abs": False, "normalise": False, "disable_warnings": True}


@pytest.fixture(scope="module")
def case():
    torch.manual_seed(1)
    model, x = small_cnn(), torch.randn(4, 1, 12, 12)
    return model, x, lrp(model, x, TARGET, EpsilonPlus())


@pytest.fixture
def masks():
    masks = torch.zeros(4, 12, 12, dtype=torch.bool)
    for row, (top, left) in enumerate([(0, 0), (2, 5), (6, 3), (4, 4)]):
        masks[row, top : top + 5, left : left + 4] = True
    return masks


def apart(relevance):
    """Relevance without equal values, whose order quantus and lrphooks break in ways of their own."""
    return relevance + 1e-5 * torch.rand(relevance.shape)


def theirs(metric, case, relevance, **more):
    model, x, _ = case
    return metric(
        model=model, x_batch=x.numpy(), y_batch=np.array(TARGET), a_batch=relevance.numpy().copy(), device="cpu", **more
    )


def test_pixel_flipping(case, close):
    model, x, relevance = case
    relevance = apart(relevance)
    curve = theirs(quantus.PixelFlipping(features_in_step=1, perturb_baseline=0.0, **PLAIN), case, relevance)
    ours = PixelFlipping(infill=Constant(0.0))(model, x, TARGET, relevance)
    close(ours.curve[:, 1:], np.array(curve), tol=1e-5)


@pytest.mark.parametrize("order", ["morf", "lerf"])
def test_region_perturbation(order, case, close):
    model, x, relevance = case
    metric = quantus.RegionPerturbation(patch_size=4, regions_evaluation=9, order=order, perturb_baseline=0.5, **PLAIN)
    drops = theirs(metric, case, relevance)
    ours = PixelFlipping(patch=4, order=order, infill=Constant(0.5))(model, x, TARGET, relevance)
    close(ours.curve[:, :1] - ours.curve[:, 1:], np.array(drops), tol=1e-5)


@pytest.mark.parametrize(
    ("ours", "metric"),
    [
        (PointingGame(), quantus.PointingGame),
        (RelevanceMass(), quantus.RelevanceMassAccuracy),
        (RelevanceRank(), quantus.RelevanceRankAccuracy),
    ],
    ids=repr,
)
def test_localisation(ours, metric, case, masks, close):
    model, x, relevance = case
    positive = apart(relevance.clamp(min=0))
    expected = theirs(metric(**PLAIN), case, positive, s_batch=masks.unsqueeze(1).numpy())
    close(ours(model, x, TARGET, positive, truth=masks).values, np.array(expected, dtype=float), tol=1e-5)


@pytest.mark.parametrize(("ours", "metric"), [(Sparseness(), quantus.Sparseness), (Complexity(), quantus.Complexity)])
def test_complexity(ours, metric, case, close):
    model, x, relevance = case
    expected = theirs(metric(**PLAIN), case, relevance.abs())
    close(ours(model, x, TARGET, relevance).values, np.array(expected), tol=1e-4)


def test_max_sensitivity(case, close):
    model, x, relevance = case
    drawing = torch.Generator().manual_seed(7)

    def moved(arr, indices, **_):
        steps = 2 * torch.rand(x.shape, generator=drawing, dtype=torch.float64) - 1
        return (torch.from_numpy(arr).reshape(x.shape) + (0.1 * steps).float()).reshape(arr.shape).numpy()

    def explained(model, inputs, targets, **_):
        return lrp(model, torch.as_tensor(inputs), targets.tolist(), EpsilonPlus()).numpy()

    metric = quantus.MaxSensitivity(nr_samples=5, perturb_func=moved, **PLAIN)
    expected = theirs(metric, case, relevance, explain_func=explained)
    ours = MaxSensitivity(radius=0.1, samples=5, seed=7)(model, x, TARGET, EpsilonPlus())
    close(ours.values, np.array(expected), tol=1e-4)


def test_parameter_randomisation(case, close):
    model, x, relevance = case

    def explained(model, inputs, targets, **_):
        return lrp(model, torch.as_tensor(inputs), targets.tolist(), EpsilonPlus()).numpy()

    metric = quantus.MPRT(
        similarity_func=quantus.similarity_func.correlation_spearman, layer_order="top_down", seed=2, **PLAIN
    )
    expected = theirs(metric, case, relevance, explain_func=explained)
    ours = ParameterRandomisation(seed=3)(model, x, TARGET, EpsilonPlus())
    # From the first layer on, quantus draws every layer from one seed and we each from its own.
    close(ours.curve[:, 0], np.array(expected[ours.at[0]]), tol=1e-5)
