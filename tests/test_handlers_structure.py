"""What moves, joins, adds, selects or writes values hands on all relevance, by its gradient."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrphooks
from lrphooks import Composite, UnmatchedError
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, Flat, Gamma, Gradient
from references.operations import agrees
from references.operations import values as v

A, B = v(2, 4), v(2, 4, seed=1, domain="nonzero")
IMAGE, LINE, CUBE = v(2, 2, 4, 4), v(2, 2, 6), v(1, 2, 4, 4, 4)
ROWS = torch.tensor([1, 0])
INDEX = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]])
MASK = torch.tensor([[True, False, True, True], [False, True, True, False]])


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


def written(write):
    """The first operand after something was written to it."""

    def function(a, b):
        out = write(a, b)
        return a if out is None else out

    return function


def assign(target, key, value):
    target[key] = value


JOINED = {
    **{
        name: lambda a, b, n=name: getattr(torch, n)((a, b))
        for name in (
            "cat", "concat", "concatenate", "stack", "hstack", "vstack", "row_stack", "dstack", "column_stack",
        )
    },
    "block_diag": torch.block_diag,
    "cartesian_prod": lambda a, b: torch.cartesian_prod(a[0], b[0]),
    "combinations": lambda a, b: torch.combinations(a[0] + b[0]),
    "meshgrid": lambda a, b: torch.meshgrid(a[0], b[1], indexing="ij"),
    "broadcast_tensors": lambda a, b: torch.broadcast_tensors(a, b[:1]),
    "pad_sequence": lambda a, b: torch.nn.utils.rnn.pad_sequence([a[0], b[0, :2]]),
    "aten.cat": lambda a, b: torch.ops.aten.cat.default([a, b], 1),
    "where": lambda a, b: torch.where(MASK, a, b),
    "Tensor.where": lambda a, b: a.where(MASK, b),
    "where by value": lambda a, b: torch.where(a > b, a, b),
    "complex": lambda a, b: torch.view_as_real(torch.complex(a, b)),
    "fft": lambda a, b: torch.fft.irfft(torch.fft.rfft(a + b, n=4) * 2.0, n=4),
    "real and imag": lambda a, b: torch.fft.fft(a).real + torch.fft.fft(b).imag,
    "fft2": lambda a, b: torch.view_as_real(torch.fft.fftshift(torch.fft.fft2(a - b))),
    "hfft": lambda a, b: torch.fft.hfft(torch.complex(a, b)),
    "conj": lambda a, b: torch.view_as_real(torch.complex(a, b).conj().resolve_conj()),
    "sum of a list": lambda a, b: sum([a, b]),
    "iteration": lambda a, b: [row + column for row, column in zip(a, b, strict=True)],
    "reversed": lambda a, b: reversed(a) + b,
    "unpacking": lambda a, b: torch.sub(*(a + b)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")  # some of these are deprecated
@pytest.mark.parametrize("name", JOINED)
def test_joined(name):
    agrees(JOINED[name], JOINED[name], (A, B))


WRITTEN = {
    "slice": lambda a, b: assign(a, (slice(None), slice(1, 3)), b[:, :2]),
    "mask": lambda a, b: assign(a, MASK, b[MASK]),
    "index": lambda a, b: assign(a, (ROWS, ROWS), b[0, :2]),
    "number": lambda a, b: assign(a, (0, 2), 0.0),
    "view": lambda a, b: a[:, 1:3].copy_(b[:, 2:]) * 0 + a[:, 1:3],
    "add to a view": lambda a, b: a[0].add_(b[0]) + a[0],
    "setitem": lambda a, b: a.__setitem__((0, slice(None)), b[1]),
    "copy_": lambda a, b: a.copy_(b),
    "fill_": lambda a, b: a[:, :1].fill_(0.0).sum() + a,
    "zero_": lambda a, b: a[:, 2:].zero_().sum() + a,
    "index_add_": lambda a, b: a.index_add_(0, ROWS, b, alpha=0.5),
    "index_add": lambda a, b: torch.index_add(a, 0, ROWS, b),
    "index_copy_": lambda a, b: a.index_copy_(0, ROWS, b),
    "index_put_": lambda a, b: a.index_put_((ROWS, ROWS), b[0, :2], accumulate=True),
    "index_fill_": lambda a, b: a.index_fill_(1, ROWS, 0.0) + b,
    "scatter_": lambda a, b: a.scatter_(0, INDEX, b),
    "scatter_add_": lambda a, b: a.scatter_add_(0, INDEX, b),
    "scatter_reduce": lambda a, b: torch.scatter_reduce(a, 0, INDEX, b, "sum"),
    "scatter_reduce mean": lambda a, b: torch.scatter_reduce(a, 0, INDEX, b, reduce="mean"),
    "scatter_reduce amax": lambda a, b: torch.scatter_reduce(a, 0, INDEX, b, reduce="amax"),
    "index_reduce": lambda a, b: a.index_reduce(0, ROWS, b, "amin"),
    "masked_scatter_": lambda a, b: a.masked_scatter_(MASK, b),
    "masked_fill_": lambda a, b: a.masked_fill_(MASK, 0.0) + b,
    "slice_scatter": lambda a, b: torch.slice_scatter(a, b[:, :2], 1, 2),
    "select_scatter": lambda a, b: torch.select_scatter(a, b[0], 0, 1),
    "diagonal_scatter": lambda a, b: torch.diagonal_scatter(a, b[0, :2]),
    "put": lambda a, b: torch.put(a, torch.tensor([0, 5]), b[0, :2]),
    "as_strided": lambda a, b: a.as_strided((2, 2), (1, 2)) + b[:, :2],
    "t_": lambda a, b: a.t_() @ torch.ones(2, dtype=torch.float64) + b[0],
    "squeeze_": lambda a, b: a.unsqueeze_(1).squeeze_(1).transpose_(0, 1) + b.mT,
    "add_": lambda a, b: a.add_(b, alpha=2.0).sub_(1.5).neg_(),
    "a residual": lambda a, b: a.__iadd__(b).__isub__(2.0),
    "buffer": lambda a, b: torch.cat([torch.zeros_like(a).index_copy_(0, ROWS, a), b.new_zeros(2, 4).copy_(b)]),
}


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", WRITTEN)
def test_written(name):
    function = written(WRITTEN[name])
    agrees(function, function, (A, B))


def unpooled(a, b):
    out, where = F.max_pool2d(a, 2, return_indices=True)
    return F.max_unpool2d(out, where, 2) + b


PICKED = {
    "max_unpool2d": (unpooled, (IMAGE, v(2, 2, 4, 4, seed=1))),
    "max_pool with indices": (lambda a, b: F.max_pool1d(a, 2, return_indices=True)[0] + b, (LINE, v(2, 2, 3, seed=1))),
    "adaptive with indices": (
        lambda a, b: F.adaptive_max_pool2d(a, 2, return_indices=True)[0] + b,
        (IMAGE, v(2, 2, 2, 2, seed=1)),
    ),
    "clamp by tensors": (lambda a, b: torch.clamp(a, b, b + 1), (A, B)),
    "sort, descending": (lambda a, b: a.sort(1, descending=True).values + b, (B, A)),
    "topk and gather": (lambda a, b: b.gather(1, a.topk(2, 1).indices), (A, B)),
    "argmax": (lambda a, b: b[torch.arange(2), a.argmax(1)], (A, B)),
    "interpolate": (lambda a, b: F.interpolate(a, scale_factor=2, mode="bilinear") + b, (IMAGE, v(2, 2, 8, 8, seed=1))),
    "avg_pool without padding": (
        lambda a, b: F.avg_pool2d(a, 3, 1, 1, count_include_pad=False) + b,
        (IMAGE, v(2, 2, 4, 4, seed=1)),
    ),
    "embedding": (lambda a, b: F.embedding(INDEX, a) + b[0], (A, B)),
    "embedding_bag": (lambda a, b: F.embedding_bag(INDEX, a, mode="sum") + b, (A, B)),
    "embedding_bag, weighted": (
        lambda a, b: F.embedding_bag(INDEX, a, mode="sum", per_sample_weights=torch.ones_like(B)) + b,
        (A, B),
    ),
    "sum over several": (lambda a, b: a.sum((0, 1)) + b.mean(dim=(0, 1)), (A, B)),
    "cumsum_": (lambda a, b: a.cumsum_(1) - b, (A, B)),
    "unfold": (lambda a, b: a.unfold(1, 2, 1).sum(-1) + b[:, 1:], (A, B)),
    "pad": (lambda a, b: F.pad(a, (1, 1), value=0.0) + F.pad(b, (2, 0), mode="circular"), (LINE, LINE + 0.1)),
}


@pytest.mark.parametrize("name", PICKED)
def test_picked(name):
    function, operands = PICKED[name]
    agrees(function, function, operands)


MULTIPLIED = {
    "scatter_reduce": lambda a, b: torch.scatter_reduce(a, 0, INDEX, b, "prod"),
    "index_reduce": lambda a, b: a.index_reduce(0, ROWS, b, "prod"),
    "segment_reduce": lambda a, b: torch.segment_reduce(a, "prod", lengths=torch.tensor([1, 1])),
    "embedding_bag": lambda a, b: F.embedding_bag(INDEX, a, mode="sum", per_sample_weights=b),
}


@pytest.mark.filterwarnings("ignore:index_reduce")
@pytest.mark.parametrize("name", MULTIPLIED)
def test_a_form_that_multiplies_is_reported(name):
    with pytest.raises(UnmatchedError, match=name):
        agrees(MULTIPLIED[name], MULTIPLIED[name], (B, A + 0.3))
    if name != "segment_reduce":
        reported = Composite([(getattr(torch, name), Gradient()), (AnyLinear, Epsilon(0))])
        agrees(MULTIPLIED[name], MULTIPLIED[name], (B, A + 0.3), reported)


def test_dropout_in_training_drops_relevance():
    """The mask is drawn once; what is kept is scaled."""

    def function(a, b):
        torch.manual_seed(3)
        return F.dropout(a, 0.5, training=True) + torch.dropout(b, 0.4, True)

    agrees(function, function, (A, B))


def test_relevance_of_a_maximum_goes_to_the_winner_alone():
    expected = torch.zeros(4, dtype=torch.float64)
    row = B[0]
    expected[row.argmax()] = row.max()
    x = row.clone().requires_grad_()
    model = torch.nn.Flatten(0)
    with Composite().context(model):
        model(x).max().backward()
    assert math.isclose(float(x.grad.sum()), float(row.max()))
    assert torch.equal(x.grad, expected)


def full(value, *shape):
    return torch.full(shape, value, dtype=torch.float64)


def scalar(value):
    return full(value)


X = v(3, 5)
#: Spellings of one function each.
CLIPPED = {
    "hardtanh": (
        lambda h: F.hardtanh(h, -0.4, 0.4),
        lambda h: h.clamp(-0.4, 0.4),
        lambda h: torch.clip(h, min=-0.4, max=0.4),
        lambda h: (h * 1).clamp_(-0.4, 0.4),
        lambda h: F.hardtanh(h * 1, -0.4, 0.4, inplace=True),
        lambda h: h.clamp_min(-0.4).clamp_max(0.4),
        lambda h: torch.minimum(torch.maximum(h, scalar(-0.4)), scalar(0.4)),
        lambda h: torch.max(h, other=torch.full_like(h, -0.4)).min(full(0.4, 5)),
        lambda h: torch.fmin(scalar(0.4), torch.fmax(scalar(-0.4), h)),
        lambda h: torch.clamp(h, full(-0.4, 3, 1), scalar(0.4)),
        lambda h: -F.threshold(-F.threshold(h, -0.4, -0.4), -0.4, -0.4),
    ),
    "relu6": (
        F.relu6,
        nn.ReLU6(),
        lambda h: h.clamp(0, 6),
        lambda h: F.hardtanh(h, 0, 6),
        lambda h: h.relu().clamp(max=6),
        lambda h: torch.minimum(F.relu(h), torch.tensor(6.0).to(h)),
    ),
    "relu": (
        F.relu,
        lambda h: h.clamp(min=0),
        lambda h: h.clamp_min(0.0),
        lambda h: torch.maximum(h, torch.tensor(0.0).to(h)),
        lambda h: torch.max(torch.zeros_like(h), h),
        lambda h: F.threshold(h, 0.0, 0.0),
        lambda h: torch.where(h > 0, h, torch.zeros_like(h)),
        lambda h: h * (h > 0),
        lambda h: -(-h).clamp(max=0),
    ),
    "a bound beyond 0": (
        lambda h: h.clamp(0.2, 0.6),
        lambda h: F.hardtanh(h, 0.2, 0.6),
        lambda h: torch.minimum(h, scalar(0.6)).clamp(min=0.2),
        lambda h: torch.clamp(h, full(0.2, 3, 1), full(0.6, 3, 5)),
    ),
    "hardswish": (
        F.hardswish,
        lambda h: h * F.relu6(h + 3) / 6,
        lambda h: h * (h + 3).clamp(0, 6) / 6,
        lambda h: h * (F.hardtanh(h + 3, 0.0, 6.0) / 6),
    ),
}


@pytest.mark.parametrize("scale", [1.0, 12.0])
@pytest.mark.parametrize("name", CLIPPED)
def test_one_function_that_clips_has_one_relevance(name, scale, close):
    """By whichever function of torch, in place or not, and with bounds that are numbers or tensors."""
    first = nn.Linear(5, 5).double()
    composites = [Composite([(AnyLinear, rule)]) for rule in (Epsilon(0.0), Epsilon(0.1), Gamma(0.25), Flat())]
    for composite in composites:
        expected = None
        for spelling in CLIPPED[name]:
            model = Function(lambda x, spelling=spelling: spelling(first(x) * scale).sum(1, keepdim=True))
            model.first = first
            report = lrphooks.audit(model, X, 0, composite)
            assert report.unexplained < 1e-12
            relevance = lrphooks.lrp(model, X, 0, composite)
            expected = relevance if expected is None else expected
            close(relevance, expected, 1e-12)


def test_what_is_clipped_hands_on_all_but_for_bounds_beyond_0(close):
    """Dense: R_a = R_z, as for any activation; a lower bound above 0, or an upper one below it, is a constant."""
    G = v(3, 5, seed=3)
    for low, high in ((-0.4, 0.4), (0.0, 0.5), (-0.3, None), (None, 0.3), (0.2, 0.6), (None, -0.2), (-0.6, -0.2)):
        z = X.clamp(low, high)
        constant = low > X if low is not None and low > 0 else high < X if high is not None and high < 0 else X > 99
        found = lrphooks.lrp(Function(lambda x, low=low, high=high: x.clamp(low, high)), X, lambda out: out * G)
        close(found, torch.where(constant, torch.zeros_like(z), G * z), 1e-12)
