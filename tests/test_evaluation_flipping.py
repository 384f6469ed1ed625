"""Perturbation curves, against sums that are known in closed form."""

import numpy as np
import pytest
import torch
from torch import nn

import lrphooks
from judged import contributions, linear, softmax
from lrphooks.evaluation import (
    Blur,
    Constant,
    Deletion,
    Inpainting,
    Insertion,
    Mean,
    PixelFlipping,
    SymmetricRelevanceGain,
)

TARGET = [2, 0, 1]


def closed_form(x, weight, target, order, fill=0.0):
    """Return the logits of a linear model while features are replaced by ``fill``, one by one, with numpy loops."""
    x, weight = x.detach().numpy().copy(), weight.detach().numpy()
    curves = []
    for row, k in zip(x, target, strict=True):
        relevance = row * weight[k]
        places = np.argsort(-relevance if order == "morf" else relevance)
        logits = [weight @ row]
        for place in places:
            row[place] = fill
            logits.append(weight @ row)
        curves.append(logits)
    return np.array(curves)  # rows, points, classes


@pytest.mark.parametrize("order", ["morf", "lerf"])
@pytest.mark.parametrize("output", ["logit", "probability"])
def test_the_curve_of_a_linear_model_is_that_of_its_contributions(order, output, close):
    model, x = linear(7)
    result = PixelFlipping(order=order, output=output, infill=Constant(0.5))(model, x, TARGET, contributions)
    logits = closed_form(x, model.weight, TARGET, order, fill=0.5)
    scores = logits if output == "logit" else softmax(logits)
    expected = np.stack([scores[row, :, k] for row, k in enumerate(TARGET)])
    close(result.curve, expected)
    close(result.at, np.arange(8) / 7)
    close(result.values, np.trapezoid(expected, np.arange(8) / 7))


def test_the_gain_is_the_area_between_the_curves(close):
    model, x = linear(7)
    options = {"output": "logit", "infill": Constant(0.0)}
    gain = SymmetricRelevanceGain(**options)(model, x, TARGET, contributions)
    curves = [closed_form(x, model.weight, TARGET, order) for order in ("lerf", "morf")]
    between = np.stack([(curves[0] - curves[1])[row, :, k] for row, k in enumerate(TARGET)])
    close(gain.curve, between, scale=1.0)
    close(gain.values, np.trapezoid(between, np.arange(8) / 7))
    assert (gain.values > 0).all()


def test_the_opposite_explanation_has_the_opposite_gain(close):
    model, x = linear(1, 6, 6)
    metric = SymmetricRelevanceGain(infill=Mean())
    right = metric(model, x, TARGET, contributions)
    wrong = metric(model, x, TARGET, lambda *args: -contributions(*args))
    close(wrong.values, -right.values, tol=1e-12)


def test_patches_are_removed_together_by_the_sum_of_their_relevance(close):
    model, x = linear(2, 5, 4)  # patches of 2: the last row of patches is cut to half
    result = PixelFlipping(patch=2, output="logit", infill=Constant(0.0))(model, x, 1, contributions)
    amounts = (model.weight.detach()[1] * x).numpy()
    for row, amount in enumerate(amounts):
        patches = sorted((amount[:, i : i + 2, j : j + 2].sum() for i in (0, 2, 4) for j in (0, 2)), reverse=True)
        close(result.curve[row], amount.sum() - np.concatenate([[0.0], np.cumsum(patches)]), tol=1e-12)


def test_the_positions_of_a_signal_are_removed(close):
    model, x = linear(2, 9)
    result = PixelFlipping(patch=3, output="logit", infill=Constant(0.0))(model, x, 0, contributions)
    amounts = (model.weight.detach()[0] * x).numpy().reshape(3, 2, 3, 3).sum((1, 3))
    steps = np.cumsum(-np.sort(-amounts, axis=1), axis=1)
    close(result.curve[:, 1:], amounts.sum(1, keepdims=True) - steps, tol=1e-12)


def test_steps_take_points_of_the_whole_curve(close):
    model, x = linear(10)
    options = {"output": "logit", "infill": Constant(0.0)}
    whole = PixelFlipping(**options)(model, x, 0, contributions)
    some = PixelFlipping(steps=3, **options)(model, x, 0, contributions)
    close(some.at, [0.0, 0.3, 0.7, 1.0])
    close(some.curve, whole.curve[:, [0, 3, 7, 10]])


def test_deletion_and_insertion_remove_and_bring_back_the_most_relevant_first(close):
    model, x = linear(3, 4)
    deleted = Deletion(output="logit")(model, x, 1, contributions)
    inserted = Insertion(output="logit", infill=Constant(0.0))(model, x, 1, contributions)
    amounts = -np.sort(-(model.weight.detach()[1] * x).numpy().sum(1), axis=1)
    present = np.concatenate([np.zeros((3, 1)), np.cumsum(amounts, axis=1)], axis=1)
    close(inserted.curve, present, tol=1e-12)
    close(deleted.curve, amounts.sum(1, keepdims=True) - present, tol=1e-12)
    close(inserted.at, np.arange(5) / 4)
    close(inserted.values, np.trapezoid(present, np.arange(5) / 4), tol=1e-12)


def test_the_target_of_none_is_the_largest_output_of_the_input_as_it_stands(close):
    model, x = linear(8)
    largest = model(x).argmax(1).tolist()
    metric = PixelFlipping(infill=Constant(0.0))
    explained = metric(model, x, None, lambda m, rows, _: contributions(m, rows, m(rows).argmax(1)))
    close(explained.curve, metric(model, x, largest, contributions).curve)


def test_a_function_as_target_is_measured_itself(close):
    model, x = linear(8)
    metric = PixelFlipping(infill=Constant(0.0), output="logit")
    relevance = contributions(model, x, 2)
    close(
        metric(model, x, lambda y: 2 * y[:, 2], relevance).curve,
        2 * metric(model, x, 2, relevance).curve,
    )


def test_chance_takes_no_notice_of_relevance_and_has_the_area_of_a_straight_line(close):
    model, x = linear(400)
    metric = PixelFlipping(order="random", output="logit", infill=Constant(0.0))
    result = metric(model, x, 0, contributions)
    close(result.curve, metric(model, x, 0, torch.zeros_like(x)).curve)
    # The expected curve is straight; a mean of 200 draws is within a few standard errors of it.
    drawn = np.stack(
        [
            PixelFlipping(order="random", output="logit", infill=Constant(0.0), seed=seed, steps=4)(
                model, x, 0, x
            ).values
            for seed in range(200)
        ]
    )
    straight = result.curve[:, 0] / 2
    assert (np.abs(drawn.mean(0) - straight) < 5 * drawn.std(0) / 200**0.5).all()


@pytest.mark.parametrize("infill", [Constant(1.0), Mean(), Blur(2.0), Inpainting()], ids=repr)
def test_every_infill_leaves_the_input_at_the_start(infill, close):
    model, x = linear(2, 6, 6)
    result = PixelFlipping(patch=2, infill=infill, output="logit")(model, x, 0, contributions)
    close(result.curve[:, 0], model(x)[:, 0])


@pytest.mark.parametrize("batch_size", [1, 4, 1000])
def test_the_batch_size_bounds_what_the_model_sees_and_nothing_else(batch_size, close):
    model, x = linear(1, 5, 5)
    metric = SymmetricRelevanceGain(infill=Mean(), batch_size=batch_size)
    result = metric(model, x, 0, contributions)
    # Two orders of 25 steps, whose first and last points are shared, and one pass that settles the target.
    assert sum(model.sizes) == 3 * (2 * 24 + 2) + 3
    assert max(model.sizes) <= batch_size
    close(result.curve, SymmetricRelevanceGain(infill=Mean())(model, x, 0, contributions).curve, tol=1e-12, scale=1.0)


def test_relevance_of_a_composite_and_relevance_computed_before_are_judged_alike(close):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3)).double().eval()
    x = torch.randn(4, 3, 8, 8, dtype=torch.float64)
    metric = SymmetricRelevanceGain(patch=2, infill=Mean(), batch_size=3)
    composite = lrphooks.composites.EpsilonPlus()
    first = metric(model, x, [0, 1, 2, 0], composite)
    close(metric(model, x, [0, 1, 2, 0], lrphooks.lrp(model, x, [0, 1, 2, 0], composite)).values, first.values)


def test_one_channel_of_relevance_serves_several_of_the_input(close):
    model, x = linear(3, 4, 4)
    metric = SymmetricRelevanceGain(infill=Mean())
    full = metric(model, x, 0, contributions)
    close(metric(model, x, 0, lambda *a: contributions(*a).sum(1, keepdim=True)).values, full.values)
    close(metric(model, x, 0, contributions(model, x, 0).sum(1)).values, full.values)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
def test_a_frozen_torchscript_module_is_scored_like_the_module_it_was_made_of(close):
    model, x = linear(1, 4, 4)
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double().eval()
    frozen = torch.jit.freeze(torch.jit.trace(plain, x))
    metric, relevance = SymmetricRelevanceGain(infill=Mean()), contributions(model, x, 0)
    close(metric(frozen, x, 0, relevance).values, metric(plain, x, 0, relevance).values)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="PixelFlipping: order must be one of morf, lerf, random, got 'most'"):
        PixelFlipping(order="most")
    with pytest.raises(ValueError, match="Deletion: patch must be at least 1, got 0"):
        Deletion(patch=0)
    with pytest.raises(TypeError, match=r"Insertion: steps must be a whole number, got 2\.5"):
        Insertion(steps=2.5)
    with pytest.raises(ValueError, match="SymmetricRelevanceGain: output must be one of probability, logit, got 'p'"):
        SymmetricRelevanceGain(output="p")
    with pytest.raises(TypeError, match=r"infill must be an infill such as Blur\(\), got .*Did you mean Mean\(\)\?"):
        PixelFlipping(infill=Mean)


def test_what_cannot_be_measured_is_refused():
    model, x = linear(1, 4, 4)
    with pytest.raises(ValueError, match=r"the target is a function, whose value is no probability.*output='logit'"):
        PixelFlipping()(model, x, lambda y: y[:, 0], contributions)
    one, _ = linear(1, 4, 4, classes=1)
    with pytest.raises(ValueError, match="the model has one output, whose softmax is 1"):
        PixelFlipping()(one, x, 0, contributions)
    with pytest.raises(ValueError, match="a patch of side 5 is larger than the input"):
        PixelFlipping(patch=5)(model, x, 0, contributions)
    flat, rows = linear(6)
    with pytest.raises(ValueError, match="features without neighbours, which are removed one by one: patch=1"):
        PixelFlipping(patch=2, infill=Constant())(flat, rows, 0, contributions)
    with pytest.raises(ValueError, match=r"Blur: x has shape \(3, 6\), features without neighbouring positions"):
        PixelFlipping()(flat, rows, 0, contributions)
