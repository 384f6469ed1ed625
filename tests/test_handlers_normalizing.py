"""Normalisations, statistics, softmax and what is made of them, against matrices written out in plain numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import Composite, LRPError, UnmatchedError, composites
from lrphooks.matching import AnyLinear, Softmax
from lrphooks.rules import Constant, Epsilon, Gradient, Identity
from references.operations import EXACT, agrees
from references.operations import values as v

A, B = v(2, 6), v(2, 6, seed=1, domain="nonzero")
IMAGE = v(3, 4, 2, 3)
GAIN, SHIFT = v(6, seed=5, domain="nonzero"), v(6, seed=6, domain="nonzero")
CHANNEL_GAIN, CHANNEL_SHIFT = v(4, seed=5, domain="nonzero"), v(4, seed=6, domain="nonzero")
MEAN, VARIANCE = v(4, seed=7, domain="nonzero"), v(4, seed=8, domain="positive")
EPS = 1e-3


def standardized(a, groups, *, centre=True, eps=EPS):
    """Each row of ``groups(a)`` by its own linear map: minus the mean, over a constant deviation, as a matrix."""
    rows = groups(a)
    n = rows.shape[-1]
    projection = torch.eye(n, dtype=torch.float64) - (torch.full((n, n), 1 / n, dtype=torch.float64) if centre else 0)
    fixed = rows.detach()
    spread = (fixed - fixed.mean(-1, keepdim=True) if centre else fixed).square().mean(-1, keepdim=True)
    return (rows @ projection.T) / (spread + eps).sqrt()


def layer(a, **kwargs):
    return standardized(a, lambda a: a, **kwargs)


def group(a, count, **kwargs):
    return standardized(a, lambda a: a.reshape(len(a), count, -1), **kwargs).reshape(a.shape)


def batch(a, **kwargs):
    swapped = a.transpose(0, 1)
    rows = standardized(a, lambda a: a.transpose(0, 1).reshape(a.shape[1], -1), **kwargs)
    return rows.reshape(swapped.shape).transpose(0, 1)


def per_channel(t):
    return t.reshape(-1, 1, 1)


def handwritten(a):
    mean, variance = a.mean(1, keepdim=True), a.var(1, keepdim=True, correction=0)
    return (a - mean) / torch.sqrt(variance + EPS) * GAIN + SHIFT


def by_var_mean(a):
    variance, mean = torch.var_mean(a, 1, correction=0, keepdim=True)
    return (a - mean) * torch.rsqrt(variance + EPS) * GAIN + SHIFT


def by_std_mean(a):
    deviation, mean = torch.std_mean(a, dim=1, correction=0, keepdim=True)
    return (a - mean) / deviation


def by_squares(a):
    centred = a - a.mean(1, keepdim=True)
    return centred / (centred.pow(2).mean(1, keepdim=True) + EPS) ** 0.5 * GAIN + SHIFT


aten = torch.ops.aten
AFFINE = {
    "F.layer_norm": lambda a: F.layer_norm(a, (6,), GAIN, SHIFT, EPS),
    "by keyword": lambda a: F.layer_norm(input=a, normalized_shape=[6], weight=GAIN, bias=SHIFT, eps=EPS),
    "torch.layer_norm": lambda a: torch.layer_norm(a, (6,), GAIN, SHIFT, EPS),
    "aten.layer_norm": lambda a: aten.layer_norm(a, (6,), GAIN, SHIFT, EPS),
    "handwritten": handwritten,
    "var_mean": by_var_mean,
    "aten.var_mean": lambda a: (
        (a - aten.var_mean.correction(a, [1], correction=0, keepdim=True)[1])
        * (aten.var_mean.correction(a, [1], correction=0, keepdim=True)[0] + EPS).rsqrt()
        * GAIN
        + SHIFT
    ),
    "squares": by_squares,
}
NORMS = {
    **{name: (f, lambda a: layer(a) * GAIN + SHIFT, A) for name, f in AFFINE.items()},
    "std_mean": (by_std_mean, lambda a: layer(a, eps=0.0), A),
    "two dimensions": (
        lambda a: F.layer_norm(a, (2, 3), eps=EPS),
        lambda a: standardized(a, lambda a: a.reshape(3, 4, 6)).reshape(a.shape),
        IMAGE,
    ),
    "no affine part": (lambda a: F.layer_norm(a, (6,)), lambda a: layer(a, eps=1e-5), A),
    "rms_norm": (lambda a: F.rms_norm(a, (6,), GAIN, EPS), lambda a: layer(a, centre=False) * GAIN, A),
    "torch.rms_norm": (lambda a: torch.rms_norm(a, (6,), GAIN, EPS), lambda a: layer(a, centre=False) * GAIN, A),
    "rms_norm, default eps": (
        lambda a: F.rms_norm(a, (6,)),
        lambda a: layer(a, centre=False, eps=torch.finfo(torch.float64).eps),
        A,
    ),
    "handwritten rms": (
        lambda a: GAIN * (a * torch.rsqrt(a.pow(2).mean(-1, keepdim=True) + EPS)),
        lambda a: layer(a, centre=False) * GAIN,
        A,
    ),
    "group_norm": (
        lambda a: F.group_norm(a, 2, CHANNEL_GAIN, CHANNEL_SHIFT, EPS),
        lambda a: group(a, 2) * per_channel(CHANNEL_GAIN) + per_channel(CHANNEL_SHIFT),
        IMAGE,
    ),
    "torch.group_norm": (lambda a: torch.group_norm(a, 2, None, None, EPS), lambda a: group(a, 2), IMAGE),
    "instance_norm": (
        lambda a: F.instance_norm(a, weight=CHANNEL_GAIN, bias=CHANNEL_SHIFT, eps=EPS),
        lambda a: group(a, 4) * per_channel(CHANNEL_GAIN) + per_channel(CHANNEL_SHIFT),
        IMAGE,
    ),
    "torch.instance_norm": (
        lambda a: torch.instance_norm(a, CHANNEL_GAIN, CHANNEL_SHIFT, None, None, True, 0.1, EPS, False),
        lambda a: group(a, 4) * per_channel(CHANNEL_GAIN) + per_channel(CHANNEL_SHIFT),
        IMAGE,
    ),
    "instance_norm, tracked": (
        lambda a: F.instance_norm(a, MEAN, VARIANCE, CHANNEL_GAIN, CHANNEL_SHIFT, use_input_stats=False, eps=EPS),
        lambda a: (
            (a - per_channel(MEAN)) / per_channel(VARIANCE + EPS).sqrt() * per_channel(CHANNEL_GAIN)
            + per_channel(CHANNEL_SHIFT)
        ),
        IMAGE,
    ),
    "batch_norm in training": (
        lambda a: F.batch_norm(a, MEAN.clone(), VARIANCE.clone(), CHANNEL_GAIN, CHANNEL_SHIFT, training=True, eps=EPS),
        lambda a: batch(a) * per_channel(CHANNEL_GAIN) + per_channel(CHANNEL_SHIFT),
        IMAGE,
    ),
    "torch.batch_norm in training": (
        lambda a: torch.batch_norm(a, CHANNEL_GAIN, CHANNEL_SHIFT, None, None, True, 0.1, EPS, False),
        lambda a: batch(a) * per_channel(CHANNEL_GAIN) + per_channel(CHANNEL_SHIFT),
        IMAGE,
    ),
    **{
        f"{name} evaluated": (
            f,
            lambda a: (
                (a - per_channel(MEAN)) / per_channel(VARIANCE + EPS).sqrt() * per_channel(CHANNEL_GAIN)
                + per_channel(CHANNEL_SHIFT)
            ),
            IMAGE,
        )
        for name, f in {
            "F.batch_norm": lambda a: F.batch_norm(a, MEAN, VARIANCE, CHANNEL_GAIN, CHANNEL_SHIFT, eps=EPS),
            "torch.batch_norm": lambda a: torch.batch_norm(
                a, CHANNEL_GAIN, CHANNEL_SHIFT, MEAN, VARIANCE, False, 0.1, EPS, False
            ),
            "aten.batch_norm": lambda a: aten.batch_norm(
                a, CHANNEL_GAIN, CHANNEL_SHIFT, MEAN, VARIANCE, False, 0.1, EPS, False
            ),
        }.items()
    },
    "normalize": (F.normalize, lambda a: a / a.detach().square().sum(1, keepdim=True).sqrt(), A),
    "normalize by hand": (lambda a: a / a.norm(dim=1, keepdim=True), lambda a: a / a.detach().norm(dim=1)[:, None], A),
    "local_response_norm": (
        lambda a: F.local_response_norm(a, 3, alpha=0.5, beta=0.7, k=1.5),
        lambda a: a * (F.local_response_norm(a.detach(), 3, alpha=0.5, beta=0.7, k=1.5) / a.detach()),
        IMAGE + 0.1,
    ),
    "weighted by itself": (lambda a: a / a.sum(1, keepdim=True), lambda a: a / a.detach().sum(1, keepdim=True), A),
    "min-max": (
        lambda a: (a - a.amin()) / (a.amax() - a.amin()),
        lambda a: (a - a.amin()) / (a.amax() - a.amin()).detach(),
        A,
    ),
}


@pytest.mark.parametrize("name", NORMS)
def test_the_mean_is_linear_and_the_deviation_constant(name):
    function, surrogate, operand = NORMS[name]
    agrees(function, surrogate, (operand,))


@pytest.mark.parametrize("norm", [F.layer_norm, F.batch_norm], ids=["layer_norm", "batch_norm"])
def test_a_scale_that_depends_on_the_input_is_reported(norm):
    def function(a, b):
        if norm is F.layer_norm:
            return norm(a, (6,), b[0])
        return norm(a, None, None, b[0], training=True)

    with pytest.raises(UnmatchedError, match=r"scale or shift depends"):
        agrees(function, function, (A, B))


# --- softmax ---


def jacobian(a):
    """The values of a softmax, with the Jacobian diag(p) - p p^T as the linear map of its input."""
    p = a.detach().softmax(-1)
    matrix = torch.diag_embed(p) - p.unsqueeze(-1) * p.unsqueeze(-2)
    return (matrix @ a.unsqueeze(-1)).squeeze(-1)


def masked(a):
    keep = torch.tensor([True, False, True, True, False, True])
    return a.masked_fill(~keep, float("-inf"))


SOFTMAX = {
    "torch": lambda a: torch.softmax(a, 1),
    "method": lambda a: a.softmax(dim=-1),
    "F": lambda a: F.softmax(a, dim=1, dtype=torch.float64),
    "special": lambda a: torch.special.softmax(a, 1),
    "module": nn.Softmax(1),
    "aten": lambda a: aten._softmax.default(a, 1, False),
    "softmin": lambda a: F.softmin(-a, dim=1),
}


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_by_its_jacobian_or_constant(name):
    function = SOFTMAX[name]
    agrees(function, jacobian, (A,), composites.AttnLRP(0))
    for composite in (composites.CPLRP(0), Composite([(F.softmax, Constant()), (AnyLinear, Epsilon(0))])):
        agrees(lambda a, b: function(a) * b, lambda a, b: a.softmax(1).detach() * b, (A, B), composite)
    agrees(
        lambda a, b: function(a) * b,
        lambda a, b: (jacobian(a) * b.detach() + a.detach().softmax(1) * b) / 2,
        (A, B),
        composites.AttnLRP(0),
    )


def test_a_masked_softmax_follows_the_same_rule():
    keep = [0, 2, 3, 5]
    agrees(lambda a: masked(a).softmax(1)[:, keep], lambda a: jacobian(a[:, keep]), (A,))


def _stable(a):
    e = (a - a.amax(1, keepdim=True)).exp()
    return e / e.sum(1, keepdim=True)


WRITTEN_OUT = {
    "exp over sum": lambda a: a.exp() / a.exp().sum(1, keepdim=True),
    "stable exp over sum": _stable,
    "exp of log_softmax": lambda a: F.log_softmax(a, 1).exp(),
    "exp of a - logsumexp": lambda a: (a - a.logsumexp(1, keepdim=True)).exp(),
    "exp2 over sum": lambda a: (a / 0.6931471805599453).exp2() / (a / 0.6931471805599453).exp2().sum(1, keepdim=True),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
@pytest.mark.parametrize("composite", [EXACT, composites.CPLRP(0)], ids=["conventions", "CPLRP"])
def test_a_softmax_written_out_is_a_constant_softmax(name, composite):
    function = WRITTEN_OUT[name]
    agrees(lambda a, b: function(a) * b, lambda a, b: a.softmax(1).detach() * b, (A, B), composite)


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_under_attnlrp_a_softmax_written_out_follows_the_rule_of_softmax_or_is_reported(name):
    def surrogate(a, b):
        return (jacobian(a) * b.detach() + a.softmax(1).detach() * b) / 2

    function = WRITTEN_OUT[name]
    try:
        agrees(lambda a, b: function(a) * b, surrogate, (A, B), composites.AttnLRP(0))
    except UnmatchedError as error:
        assert "softmax" in str(error)  # noqa: PT017 - both are right


SHIFTED = {
    "F.log_softmax": lambda a: F.log_softmax(a, 1),
    "method": lambda a: a.log_softmax(1),
    "special": lambda a: torch.special.log_softmax(a, 1),
    "aten": lambda a: aten._log_softmax.default(a, 1, False),
    "written out": lambda a: a - a.logsumexp(1, keepdim=True),
}


@pytest.mark.parametrize("name", SHIFTED)
def test_log_softmax_subtracts_a_constant(name):
    agrees(SHIFTED[name], lambda a: a - a.detach().logsumexp(1, keepdim=True), (A,))


def test_a_constant_output_is_refused():
    for function in (torch.sigmoid, torch.exp, lambda a: F.log_softmax(a, 1).exp()):
        with pytest.raises(LRPError, match="counts as a constant"):
            agrees(function, function, (A,))


# --- rules that replace a convention ---

FLAT = {
    torch.sigmoid: (Identity(), lambda a: a * (a.sigmoid() / a).detach()),
    torch.exp: (Gradient(), torch.exp),
    F.gelu: (Gradient(), F.gelu),
    torch.round: (Identity(), lambda a: a * (a.round() / a).detach()),
    F.softmax: (Gradient(), F.softmax),
    torch.square: (Gradient(), torch.square),
    torch.var: (Gradient(), torch.var),
    F.log_softmax: (Gradient(), F.log_softmax),
}


@pytest.mark.filterwarnings("ignore:Implicit dimension")
@pytest.mark.parametrize("function", FLAT, ids=lambda f: f.__name__)
def test_a_rule_replaces_the_convention(function):
    rule, surrogate = FLAT[function]
    agrees(function, surrogate, (B,), Composite([(function, rule), (AnyLinear, Epsilon(0))]))


def test_a_constant_activation_leaves_the_rest_everything():
    composite = Composite([(F.gelu, Constant()), (AnyLinear, Epsilon(0))])
    agrees(lambda a, b: F.gelu(a) * b, lambda a, b: F.gelu(a).detach() * b, (A, B), composite)


def test_a_normalisation_may_keep_its_gradient_or_be_constant():
    def norm(a):
        return F.layer_norm(a, (6,), GAIN, SHIFT)

    by_gradient = Composite([(torch.layer_norm, Gradient()), (AnyLinear, Epsilon(0))])
    agrees(norm, norm, (A,), by_gradient)
    constant = Composite([(F.layer_norm, Constant()), (AnyLinear, Epsilon(0))])
    agrees(lambda a, b: norm(a) * b, lambda a, b: norm(a).detach() * b, (A, B), constant)


def test_variance_under_the_gradient():
    composite = Composite([(torch.var_mean, Gradient()), (AnyLinear, Epsilon(0))])
    agrees(lambda a: torch.var_mean(a, 1), lambda a: torch.var_mean(a, 1), (A,), composite)


def test_glu_takes_its_signal():
    agrees(lambda a: F.glu(a, 1), lambda a: a[:, :3] * a[:, 3:].detach().sigmoid(), (A,))
    agrees(lambda a: aten.glu(a), lambda a: a[:, :3] * a[:, 3:].detach().sigmoid(), (A,))
    agrees(nn.GLU(0), lambda a: a[:1] * a[1:].detach().sigmoid(), (A,))
    composite = Composite([(F.glu, Gradient()), (AnyLinear, Epsilon(0))])
    agrees(F.glu, F.glu, (A,), composite)


def test_softmax_group_serves_every_spelling():
    composite = Composite([(Softmax, Constant()), (AnyLinear, Epsilon(0))])
    for function in SOFTMAX.values():
        agrees(lambda a, b, f=function: f(a) * b, lambda a, b: a.softmax(1).detach() * b, (A, B), composite)
