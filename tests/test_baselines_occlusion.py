"""Occlusion: closed forms, a loop over windows, and captum."""

import pytest
import torch
from captum.attr import Occlusion as CaptumOcclusion
from torch import nn

from lrphooks.baselines import Occlusion
from small_networks import NETWORKS, network


def test_single_values_of_a_linear_function(close):
    model, x = nn.Linear(5, 3).double(), torch.randn(4, 5).double()
    close(Occlusion(1)(model, x, 2), x * model.weight[2])
    close(Occlusion(1, reference=0.5)(model, x, 2), (x - 0.5) * model.weight[2])


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (2, 1), (3, 2), (5, 5), (4, 3)])
def test_windows_of_a_linear_function(window, stride, close):
    """Each value has the mean over the windows that hold it of what they hold in all."""
    model, x = nn.Linear(5, 1).double(), torch.randn(3, 5).double()
    amount = x * model.weight[0]
    starts = [start for start in range(0, 5, stride) if start < stride or start - stride + window < 5]
    expected = torch.stack(
        [
            torch.stack([amount[:, s : s + window].sum(1) for s in starts if s <= i < s + window]).mean(0)
            for i in range(5)
        ],
        1,
    )
    close(Occlusion(window, stride)(model, x), expected)


@pytest.mark.parametrize("batch", [1, 5, 1000])
@pytest.mark.parametrize(
    ("window", "stride"), [((3, 3, 3), (3, 2, 2)), ((1, 2, 3), (1, 1, 2)), ((3, 4, 4), (3, 4, 4))], ids=str
)
def test_captum(window, stride, batch, close):
    model, x = network("vgg")
    target = torch.tensor([1, 3])
    reference = torch.rand(1, 3, 1, 1, dtype=torch.float64)
    expected = CaptumOcclusion(model).attribute(x, window, stride, reference.expand(1, *x.shape[1:]), target)
    # captum sums in single precision
    close(Occlusion(window, stride, reference, batch)(model, x, target), expected, tol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
def test_an_integer_covers_all_channels(name, close):
    model, x = network(name)
    close(Occlusion(2, 1)(model, x, 1), Occlusion((3, 2, 2), (3, 1, 1))(model, x, 1))
    close(Occlusion((2, 2), 1)(model, x, 1), Occlusion(2, 1)(model, x, 1))


def test_inputs_are_covered_one_after_the_other(close):
    class Product(nn.Module):
        def forward(self, a, b):
            return a * b

    a, b = torch.randn(2, 3).double(), torch.randn(2, 3).double()
    first, second = Occlusion(1, reference=(0.0, 1.0))(Product(), (a, b), 1)
    zero = torch.zeros(2, dtype=torch.float64)
    close(first, torch.stack([zero, (a * b)[:, 1], zero], 1))
    close(second, torch.stack([zero, (a * (b - 1))[:, 1], zero], 1))


def test_rows_run_together_up_to_the_batch():
    sizes = []

    class Counting(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return x

    Occlusion(1, batch=6)(Counting().eval(), torch.randn(2, 7), 0)
    assert sizes == [2, 6, 6, 2]
    sizes.clear()
    Occlusion(1, batch=6)(Counting().train(), torch.randn(2, 3), 0)
    assert sizes == [2, 2, 2, 2]


def test_a_function_that_sums_over_a_region(close):
    """Any values of the row count together; a sum over rows cannot be told apart, but for one row it can."""
    model, x = nn.Conv2d(1, 1, 3, padding=1).double(), torch.randn(2, 1, 4, 4).double()
    whole = Occlusion(2)(model, x, lambda y: y[:, 0])
    close(whole, Occlusion(2)(model, x, lambda y: y.sum((1, 2, 3))))
    with pytest.raises(ValueError, match=r"the target function returned shape \(\) for 2 rows.*one row at a time"):
        Occlusion(2)(model, x, lambda y: y.sum())
    close(Occlusion(2)(model, x[:1], lambda y: y.sum()), whole[:1])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"window": 0}, ValueError, "window must be at least 1, got 0"),
        ({"window": (2, 1.5)}, TypeError, "window must be an integer, got 1.5"),
        ({"window": ()}, TypeError, r"window must be an integer, got \(\)"),
        ({"window": 2, "stride": 3}, ValueError, "stride 3 is larger than window 2, so some values"),
        ({"window": (3, 2), "stride": 3}, ValueError, r"stride \(3, 3\) is larger than window \(3, 2\)"),
        ({"window": (3, 2), "stride": (1, 1, 1)}, ValueError, ".*count different dimensions"),
        ({"window": 3, "stride": (1, 1)}, ValueError, ".*count different dimensions"),
        ({"window": 2, "reference": None}, TypeError, "reference must be a number, got None"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=f"Occlusion: {message}"):
        Occlusion(**arguments)


@pytest.mark.parametrize("window", [9, (9, 1), (1, 1, 1, 1)])
def test_windows_that_do_not_fit(window):
    model, x = network("vgg")
    with pytest.raises(ValueError, match=r"Occlusion: a window of \(.*\) does not fit into rows of shape \(3, 8, 8\)"):
        Occlusion(window)(model, x, 0)


def test_an_input_that_rows_share():
    class Shared(nn.Module):
        def forward(self, x, table):
            return x @ table

    with pytest.raises(ValueError, match=r"Occlusion: input 1 has shape \(3, 4\).*which of the 2 rows cannot be told"):
        Occlusion(1)(Shared(), (torch.randn(2, 3), torch.randn(3, 4)), 0)
