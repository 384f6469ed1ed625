"""Operations under all their names, each with its convention as a surrogate and with operands to try it on."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from references.operations import constant, identity, shared
from references.operations import values as v


@dataclass
class Case:
    """An operation under all its names: what it computes, what its convention is, and on what it is tried."""

    names: str
    function: object
    surrogate: object
    operands: tuple
    options: dict = field(default_factory=dict)
    gates: bool = False


def elementwise(names, function, domain="signed", **options):
    return Case(
        names,
        lambda a: function(a, **options),
        identity(lambda a: function(a, **options)),
        (v(2, 4, domain=domain),),
        options,
    )


def gate(names, function, *operands, domain="signed", **options):
    """A constant that scales another activation."""
    operands = operands or (v(2, 4, domain=domain),)
    return Case(
        names,
        lambda *a: function(*a, **options),
        constant(lambda *a: function(*a, **options)),
        operands,
        options,
        gates=True,
    )


def plain(names, function, *operands, **options):
    """The gradient itself: linear, or selecting values."""
    return Case(names, lambda *a: function(*a, **options), lambda *a: function(*a, **options), operands, options)


def product(names, function, *operands, **options):
    return Case(
        names, lambda *a: function(*a, **options), shared(lambda *a: function(*a, **options)), operands, options
    )


A, B, C = v(2, 4), v(2, 4, seed=1, domain="nonzero"), v(2, 4, seed=2, domain="nonzero")
POSITIVE = v(2, 4, domain="positive")
IMAGE, LINE, CUBE = v(2, 2, 4, 4), v(2, 2, 6), v(1, 2, 4, 4, 4)
INDEX = torch.tensor([[0, 1, 1, 0], [1, 0, 1, 1]])
MASK = torch.tensor([[True, False, True, True], [False, True, True, False]])
WEIGHT = torch.tensor([0.3], dtype=torch.float64)

ELEMENTWISE = [
    elementwise("gelu", F.gelu),
    elementwise("gelu", F.gelu, approximate="tanh"),
    elementwise("silu", F.silu),
    elementwise("mish", F.mish),
    elementwise("tanh", torch.tanh),
    elementwise("hardtanh", F.hardtanh),
    elementwise("hardtanh", F.hardtanh, min_val=-0.4, max_val=0.7),
    elementwise("relu6", F.relu6),
    elementwise("clamp clip", torch.clamp, min=-0.5, max=0.6),
    elementwise("clamp clip", torch.clamp, min=-0.5),
    elementwise("clamp clip", torch.clamp, min=0.0),
    elementwise("clamp_min", torch.clamp_min, min=-0.5),
    elementwise("clamp_max", torch.clamp_max, max=0.6),
    elementwise("maximum max fmax", torch.maximum, other=torch.tensor(-0.4, dtype=torch.float64)),
    elementwise("minimum min fmin", torch.minimum, other=torch.tensor(0.4, dtype=torch.float64)),
    elementwise("threshold", F.threshold, threshold=-0.3, value=-0.3),
    elementwise("hardswish", F.hardswish),
    elementwise("elu", F.elu, alpha=0.7),
    elementwise("selu", F.selu),
    elementwise("celu", F.celu, alpha=1.3),
    elementwise("softsign", F.softsign),
    elementwise("tanhshrink", F.tanhshrink),
    elementwise("softshrink", F.softshrink, lambd=0.2),
    elementwise("hardshrink", F.hardshrink, lambd=0.3),
    elementwise("expm1", torch.expm1),
    elementwise("log1p", torch.log1p, "unit"),
    elementwise("erf", torch.erf),
    elementwise("erfinv", torch.erfinv, "unit"),
    elementwise("sin", torch.sin),
    elementwise("asin arcsin", torch.asin, "unit"),
    elementwise("tan", torch.tan, "unit"),
    elementwise("atan arctan", torch.atan),
    elementwise("sinh", torch.sinh),
    elementwise("asinh arcsinh", torch.asinh),
    elementwise("atanh arctanh", torch.atanh, "unit"),
    elementwise("square", torch.square),
    elementwise("sqrt", torch.sqrt, "positive"),
    elementwise("pow float_power", torch.pow, exponent=3),
    elementwise("pow", torch.pow, exponent=1.0),
    elementwise("pow float_power", torch.pow, "positive", exponent=0.7),
    elementwise("pow", torch.pow, exponent=torch.tensor([2.0, 1.0, 3.0, 2.0], dtype=torch.float64)),
    elementwise("abs absolute", torch.abs),
    elementwise("leaky_relu", F.leaky_relu, negative_slope=0.2),
    elementwise("prelu", F.prelu, weight=WEIGHT),
    elementwise("relu", F.relu),
    elementwise("rrelu", F.rrelu, training=False),
    elementwise("deg2rad", torch.deg2rad),
    elementwise("rad2deg", torch.rad2deg),
    elementwise("neg negative", torch.neg),
    elementwise("positive", torch.positive),
    elementwise("nan_to_num", torch.nan_to_num),
    elementwise("threshold", F.threshold, threshold=0.3, value=0.0),
]

SQUARE = v(2, 3, 3) + 2 * torch.eye(3, dtype=torch.float64)
GATES = [
    *(
        gate(n, getattr(torch, n))
        for n in (
            "sigmoid",
            "exp",
            "exp2",
            "cos",
            "cosh",
            "erfc",
            "i0",
            "frac",
            "floor",
            "ceil",
            "round",
            "trunc",
            "sign",
            "sgn",
        )
    ),
    *(
        gate(n, getattr(torch, n), domain="positive")
        for n in (
            "rsqrt",
            "reciprocal",
            "log",
            "log2",
            "log10",
            "lgamma",
            "digamma",
        )
    ),
    gate("sigmoid expit", torch.sigmoid),
    gate("lgamma gammaln", torch.lgamma, domain="positive"),
    gate("digamma psi", torch.digamma, domain="positive"),
    gate("trunc fix", torch.trunc),
    gate("round", torch.round, decimals=1),
    gate("hardsigmoid", F.hardsigmoid),
    gate("logsigmoid log_sigmoid", F.logsigmoid),
    gate("softplus", F.softplus),
    gate("softplus", F.softplus, beta=2, threshold=1),
    gate("acos arccos", torch.acos, domain="unit"),
    gate("acosh arccosh", torch.acosh, domain="above"),
    gate("erfcx", torch.special.erfcx),
    gate("sinc", torch.sinc),
    gate("log_ndtr", torch.special.log_ndtr),
    gate("ndtr", torch.special.ndtr),
    gate("i0e", torch.special.i0e),
    gate("i1", torch.special.i1),
    gate("i1e", torch.special.i1e),
    gate("logit", torch.logit, POSITIVE / 4),
    gate("angle", torch.angle),
    gate("logsumexp", torch.logsumexp, dim=1),
    gate("logcumsumexp", torch.logcumsumexp, dim=1),
    gate("var", torch.var, dim=1),
    gate("std", torch.std, dim=1),
    gate("var", torch.var),
    gate("std", torch.std),
    gate("norm vector_norm", torch.norm),
    gate("norm", torch.norm, dim=1),
    gate("vector_norm", torch.linalg.vector_norm, dim=1),
    gate("norm matrix_norm", torch.linalg.matrix_norm),
    gate("frobenius_norm norm", torch.linalg.norm),
    gate("nuclear_norm", torch.nuclear_norm),
    gate("logaddexp", torch.logaddexp, A, B),
    gate("logaddexp2", torch.logaddexp2, A, B),
    gate("hypot", torch.hypot, A, B),
    gate("atan2 arctan2", torch.atan2, A, B),
    gate("remainder", torch.remainder, A, B),
    gate("fmod", torch.fmod, A, B),
    gate("div divide", torch.div, A, B, rounding_mode="floor"),
    gate("div divide", torch.div, A, B, rounding_mode="trunc"),
    gate("cdist", torch.cdist, A, B),
    gate("pdist", F.pdist, A),
    gate("pairwise_distance", F.pairwise_distance, A, B),
    gate("dist", torch.dist, A, B),
    gate("cosine_similarity", F.cosine_similarity, A, B),
    gate("cov", torch.cov),
    gate("corrcoef", torch.corrcoef, C),
    gate("det", torch.det, SQUARE),
    gate("inverse inv", torch.inverse, SQUARE),
    gate("matrix_exp", torch.matrix_exp, SQUARE),
    gate("pow", torch.pow, domain="positive", exponent=-1.5),
    gate("pow float_power", torch.pow, POSITIVE, B),
]

PRODUCTS = [
    product("mul multiply", torch.mul, A, B),
    product("mul multiply", torch.mul, A, v(2, 1, seed=1, domain="nonzero")),
    product("mm", torch.mm, v(2, 4), v(4, 2, seed=1)),
    product("bmm", torch.bmm, v(2, 3, 4), v(2, 4, 2, seed=1)),
    product("matmul", torch.matmul, v(2, 3, 4), v(2, 4, 2, seed=1)),
    product("matmul", torch.matmul, v(2, 4), v(4, seed=1)),
    product("mv", torch.mv, v(2, 4), v(4, seed=1)),
    product("dot vdot vecdot", torch.dot, v(4), v(4, seed=1)),
    product("inner", torch.inner, v(4, 2), v(6, 2, seed=1)),
    product("outer ger", torch.outer, v(4), v(2, seed=1)),
    product("vecdot", torch.linalg.vecdot, A, B),
    product("kron", torch.kron, A, B),
    product("cross", torch.cross, v(2, 3), v(2, 3, seed=1), dim=1),
    product("tensordot", torch.tensordot, v(2, 3, 4), v(3, 4, 2, seed=1), dims=2),
    product("bilinear", lambda a, b, **o: F.bilinear(a, b, **o), A, B, weight=v(3, 4, 4, seed=4)),
]

DIVISIONS = [
    Case("div divide true_divide", torch.div, lambda a, b: a / b.detach(), (A, B)),
    Case("addcdiv", torch.addcdiv, lambda a, b, c: a + b / c.detach(), (A, B, C)),
    Case(
        "addcdiv",
        lambda a, b, c: torch.addcdiv(a, b, c, value=0.5),
        lambda a, b, c: a + 0.5 * b / c.detach(),
        (A, B, C),
        {"value": 0.5},
    ),
]


def _added(names, function, *operands, **options):
    """A summand, and a product whose factors share."""

    def surrogate(a, b, c):
        return (function(a, b, c.detach(), **options) + function(a, b.detach(), c, **options)) / 2

    return Case(names, lambda *a: function(*a, **options), surrogate, operands, options)


ADDED = [
    _added("addcmul", torch.addcmul, A, B, C),
    _added("addcmul", torch.addcmul, A, B, C, value=0.5),
    _added("addmm", torch.addmm, v(2, 2), v(2, 4, seed=1), v(4, 2, seed=2)),
    _added("addmm", torch.addmm, v(2, 2), v(2, 4, seed=1), v(4, 2, seed=2), beta=0.5, alpha=2.0),
    _added("addmv", torch.addmv, v(2), v(2, 4, seed=1), v(4, seed=2)),
    _added("addr", torch.addr, v(2, 4), v(2, seed=1), v(4, seed=2)),
    _added("baddbmm", torch.baddbmm, v(2, 3, 2), v(2, 3, 4, seed=1), v(2, 4, 2, seed=2)),
    _added("addbmm", torch.addbmm, v(3, 2), v(2, 3, 4, seed=1), v(2, 4, 2, seed=2)),
]


def _of_all():
    """The names of what selects among all values; aminmax has a derivative in newer releases of torch alone."""
    yield from ("max", "min", "amax", "amin", "median", "nanmedian", "msort")
    a = torch.arange(2.0, requires_grad=True)
    try:
        torch.autograd.grad(torch.aminmax(a).max, a)
    except RuntimeError:
        return
    yield "aminmax"


SELECTIONS = [
    *(plain(n, getattr(torch, n), A) for n in _of_all()),
    *(
        plain(n, getattr(torch, n), C, dim=1)
        for n in ("max", "min", "amax", "amin", "median", "nanmedian", "sort", "cummax", "cummin", "mode")
    ),
    *(plain(n, getattr(torch, n), A, B) for n in ("max", "min", "maximum", "minimum", "fmax", "fmin")),
    plain("topk", torch.topk, C, k=2),
    plain("kthvalue", torch.kthvalue, C, k=2),
    plain("quantile", torch.quantile, C, q=0.3, dim=1),
    plain("nanquantile", torch.nanquantile, C, q=0.3, dim=1),
    plain("clamp clip", torch.clamp, A, min=0.2, max=0.6),
    plain("clamp_min", torch.clamp_min, A, min=0.2),
    plain("clamp_max", torch.clamp_max, A, max=-0.2),
    plain("hardtanh", F.hardtanh, A, min_val=0.2, max_val=0.6),
    plain("masked_fill", torch.masked_fill, A, mask=MASK, value=0.0),
    plain("max_pool1d", F.max_pool1d, LINE, kernel_size=2),
    plain("max_pool2d", F.max_pool2d, IMAGE, kernel_size=2, stride=1),
    plain("max_pool3d", F.max_pool3d, CUBE, kernel_size=2),
    plain("adaptive_max_pool1d", F.adaptive_max_pool1d, LINE, output_size=2),
    plain("adaptive_max_pool2d", F.adaptive_max_pool2d, IMAGE, output_size=2),
    plain("adaptive_max_pool3d", F.adaptive_max_pool3d, CUBE, output_size=2),
]

ROWS = torch.tensor([1, 0])
STRUCTURE = [
    plain("add", torch.add, A, B),
    plain("add", torch.add, A, B, alpha=0.3),
    plain("sub subtract", torch.sub, A, B),
    plain("rsub", torch.rsub, A, B),
    plain("lerp", torch.lerp, A, B, weight=0.3),
    *(
        plain(n, getattr(torch, n), A)
        for n in (
            "sum",
            "mean",
            "nansum",
            "nanmean",
            "trace",
            "ravel",
            "t",
            "flatten",
            "squeeze",
            "clone",
            "fliplr",
            "flipud",
            "rot90",
            "atleast_1d",
            "atleast_2d",
            "atleast_3d",
            "diag",
            "diagonal",
            "tril",
            "triu",
            "adjoint",
            "diag_embed",
            "diagflat",
            "resolve_conj",
            "resolve_neg",
        )
    ),
    *(plain(n, getattr(torch, n), A, dim=1) for n in ("sum", "mean", "nansum", "cumsum", "diff", "unbind")),
    *(plain(n, getattr(torch, n), A, dim=1) for n in ("trapezoid", "trapz", "cumulative_trapezoid")),
    plain("gradient", torch.gradient, A, dim=1),
    plain("transpose swapaxes swapdims", torch.transpose, IMAGE, dim0=1, dim1=2),
    plain("permute", torch.permute, IMAGE, dims=(0, 2, 3, 1)),
    plain("movedim moveaxis", torch.movedim, IMAGE, source=1, destination=2),
    plain("reshape", torch.reshape, A, shape=(4, 2)),
    plain("view", torch.Tensor.view, A, size=(4, 2)),
    plain("unsqueeze", torch.unsqueeze, A, dim=1),
    plain("unflatten", torch.unflatten, A, dim=1, sizes=(2, 2)),
    plain("narrow narrow_copy", torch.narrow, A, dim=1, start=1, length=2),
    plain("select", torch.select, A, dim=1, index=2),
    plain("index_select", torch.index_select, A, dim=0, index=ROWS),
    plain("gather", torch.gather, A, dim=0, index=INDEX),
    plain("take_along_dim", torch.take_along_dim, A, indices=INDEX, dim=0),
    plain("take", torch.take, A, index=INDEX),
    plain("masked_select", torch.masked_select, A, mask=MASK),
    plain("flip", torch.flip, A, dims=(1,)),
    plain("roll", torch.roll, A, shifts=1),
    plain("expand", torch.Tensor.expand, v(2, 1), size=(2, 3)),
    plain("broadcast_to", torch.broadcast_to, v(2, 1), size=(2, 3)),
    plain("repeat", torch.Tensor.repeat, A, repeats=(2, 1)),
    plain("repeat_interleave", torch.repeat_interleave, A, repeats=2),
    plain("tile", torch.tile, A, dims=(2, 1)),
    plain("chunk", torch.chunk, A, chunks=2, dim=1),
    plain("split", torch.split, A, split_size_or_sections=1),
    plain("split_with_sizes", torch.split_with_sizes, A, split_sizes=(1, 3), dim=1),
    plain("tensor_split", torch.tensor_split, A, sections=2),
    plain("hsplit", torch.hsplit, A, sections=2),
    plain("vsplit", torch.vsplit, A, sections=2),
    plain("dsplit", torch.dsplit, IMAGE, sections=2),
    plain("pixel_shuffle", F.pixel_shuffle, v(1, 4, 2, 2), upscale_factor=2),
    plain("pixel_unshuffle", F.pixel_unshuffle, IMAGE, downscale_factor=2),
    plain("channel_shuffle", F.channel_shuffle, v(1, 4, 2, 2), groups=2),
    plain("pad", F.pad, A, pad=(1, 2)),
    plain("pad", F.pad, LINE, pad=(1, 2), mode="reflect"),
    plain("pad", F.pad, LINE, pad=(1, 2), mode="replicate"),
    plain("avg_pool1d", F.avg_pool1d, LINE, kernel_size=2),
    plain("avg_pool2d", F.avg_pool2d, IMAGE, kernel_size=2),
    plain("avg_pool3d", F.avg_pool3d, CUBE, kernel_size=2),
    plain("adaptive_avg_pool1d", F.adaptive_avg_pool1d, LINE, output_size=2),
    plain("adaptive_avg_pool2d", F.adaptive_avg_pool2d, IMAGE, output_size=2),
    plain("adaptive_avg_pool3d", F.adaptive_avg_pool3d, CUBE, output_size=2),
    *(
        plain("interpolate upsample", F.interpolate, IMAGE, size=6, mode=m)
        for m in ("nearest", "bilinear", "bicubic", "area")
    ),
    plain("unfold", F.unfold, IMAGE, kernel_size=2),
    plain("fold", F.fold, v(2, 4, 9), output_size=(4, 4), kernel_size=2),
    plain("dropout", F.dropout, A, training=False),
    plain("dropout1d", F.dropout1d, LINE, training=False),
    plain("dropout2d", F.dropout2d, IMAGE, training=False),
    plain("dropout3d", F.dropout3d, CUBE, training=False),
    plain("alpha_dropout", F.alpha_dropout, A, training=False),
    plain("feature_alpha_dropout", F.feature_alpha_dropout, IMAGE, training=False),
    plain("index_fill", torch.index_fill, A, dim=1, index=ROWS, value=0.0),
]

SHIFTS = [
    Case(
        "log_softmax",
        lambda a, **o: F.log_softmax(a, dim=1),
        lambda a: a - a.detach().logsumexp(1, keepdim=True),
        (A,),
        {"dim": 1},
    ),
    plain("softmax", torch.softmax, A, dim=1),
]

GROUPS = {
    "elementwise": ELEMENTWISE,
    "gates": GATES,
    "products": PRODUCTS,
    "divisions": DIVISIONS,
    "added": ADDED,
    "selections": SELECTIONS,
    "structure": STRUCTURE,
    "shifts": SHIFTS,
}
