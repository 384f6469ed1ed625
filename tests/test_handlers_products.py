"""Products and quotients: shares, gates, one tensor in several places, rules that replace the convention."""

import operator

import pytest
import torch
import torch.nn.functional as F

from lrphooks import Composite, UnmatchedError, composites
from lrphooks.matching import AnyLinear, Product
from lrphooks.rules import Constant, Epsilon, Gradient, Identity, Proportional, TakesAll, Uniform
from references.operations import agrees, shared
from references.operations import values as v

A, B, C = v(2, 4), v(2, 4, seed=1, domain="nonzero"), v(2, 4, seed=2, domain="nonzero")


def ruled(matcher, rule):
    return Composite([(matcher, rule), (AnyLinear, Epsilon(0))])


LISTS = {
    "einsum": (lambda a, b: torch.einsum("ij,ij->i", a, b), (A, B)),
    "einsum of a list": (lambda a, b: torch.einsum("ij,kj->ik", [a, b]), (A, B)),
    "einsum by index": (lambda a, b: torch.einsum(a, [0, 1], b, [2, 1], [0, 2]), (A, B)),
    "einsum of three": (lambda a, b, c: torch.einsum("ij,ij,kj->ik", a, b, c), (A, B, C)),
    "multi_dot": (lambda a, b, c: torch.linalg.multi_dot([a, b, c]), (A, v(4, 2, seed=1), C)),
    "chain_matmul": (lambda a, b, c: torch.chain_matmul(a, b, c), (A, v(4, 2, seed=1), C)),
    "tensordot": (lambda a, b: torch.tensordot(a, b, dims=([0, 1], [1, 0])), (A, v(4, 2, seed=1))),
    "three bilinear": (lambda a, b: F.bilinear(a, b, v(3, 4, 4, seed=4, domain="nonzero")), (A, B)),
    "prod": (lambda a, b, c: torch.stack((a, b, c)).prod(0), (A, B, C)),
}


@pytest.mark.filterwarnings("ignore:.*chain_matmul")
@pytest.mark.parametrize("name", LISTS)
def test_products_of_lists_share_evenly(name):
    function, operands = LISTS[name]
    agrees(function, shared(function), operands)


PRODS = {
    "all": lambda a: a.prod(),
    "dim": lambda a: torch.prod(a, 1),
    "keyword": lambda a: a.prod(dim=-1, keepdim=True),
    "axis": lambda a: torch.prod(a, axis=0),
    "dtype": lambda a: a.prod(dtype=torch.float64),
    "aten": lambda a: torch.ops.aten.prod.dim_int(a, 1),
}


@pytest.mark.parametrize("name", PRODS)
@pytest.mark.parametrize("zeros", [0, 1])
def test_every_factor_of_prod_receives_its_share(name, zeros):
    """Also beside a factor that is 0, where the others' derivative is 0."""
    a = C.clone()
    a[0, :zeros] = 0.0
    value = PRODS[name](torch.ones(2, 4, dtype=torch.float64))
    count = {(): 8, (2,): 4, (2, 1): 4, (4,): 2}[tuple(value.shape)]

    def surrogate(a):
        return PRODS[name](a) / count

    agrees(PRODS[name], surrogate, (a,))


PLACES = {
    "x * x": (lambda a, b: a * a, lambda a, b: a * a.detach()),
    "torch.mul(x, x)": (lambda a, b: torch.mul(a, a), lambda a, b: a * a.detach()),
    "x.mul_(x)": (lambda a, b: a.mul_(a), lambda a, b: a * a.detach()),
    "x *= x + y": (lambda a, b: operator.imul(a, a + b), lambda a, b: shared(torch.mul)(a, a + b)),
    "addcmul(x, x, y)": (lambda a, b: torch.addcmul(a, a, b), lambda a, b: a + shared(torch.mul)(a, b)),
    "addcmul(x, y, x)": (lambda a, b: torch.addcmul(a, b, a), lambda a, b: a + shared(torch.mul)(a, b)),
    "addcmul by keyword": (
        lambda a, b: torch.addcmul(input=a, tensor1=a, tensor2=b),
        lambda a, b: a + shared(torch.mul)(a, b),
    ),
    "addcmul_(x, x, y)": (lambda a, b: a.addcmul_(a, b), lambda a, b: a + shared(torch.mul)(a, b)),
    "addmm(x, y, x)": (
        lambda a, b: torch.addmm(a[:, :2], b[:, :2], a[:, :2]),
        lambda a, b: a[:, :2] + shared(torch.mm)(b[:, :2], a[:, :2]),
    ),
    "einsum(x, x)": (lambda a, b: torch.einsum("ij,ij->ij", a, a), lambda a, b: a * a.detach()),
    "y / y": (lambda a, b: b / b, lambda a, b: b / b.detach()),
    "y.div_(y)": (lambda a, b: b.div_(b), lambda a, b: b / b.detach()),
    "addcdiv(y, x, y)": (lambda a, b: torch.addcdiv(b, a, b), lambda a, b: b + a / b.detach()),
    "addcdiv(x, y, y)": (lambda a, b: torch.addcdiv(a, b, b), lambda a, b: a + b / b.detach()),
    "div by x2": (lambda a, b: torch.div(a, x2=b), lambda a, b: a / b.detach()),
    "mul by x1, x2": (lambda a, b: torch.mul(x1=a, x2=b), shared(torch.mul)),
    "2 / y * x": (lambda a, b: 2 / b * a, lambda a, b: 2 / b.detach() * a),
    "reciprocal": (lambda a, b: b.reciprocal() * a, lambda a, b: a / b.detach()),
    "x / y ** 2": (lambda a, b: a / b**2, lambda a, b: a / b.detach() ** 2),
    "x * y ** -1": (lambda a, b: a * b**-1.0, lambda a, b: a / b.detach()),
    "x * 2 ** y": (lambda a, b: a * 2**b, lambda a, b: a * 2 ** b.detach()),
    "matmul transposed": (lambda a, b: a @ a.mT, lambda a, b: shared(torch.mm)(a, a.mT)),
    "the matmul reflected": (lambda a, b: b.mT.__rmatmul__(a), lambda a, b: shared(torch.mm)(a, b.mT)),
}


@pytest.mark.parametrize("name", PLACES)
def test_each_place_has_its_own_share(name):
    """One tensor may be a factor twice, a summand and a factor, or a numerator and a denominator."""
    function, surrogate = PLACES[name]
    agrees(function, surrogate, (A, B))


GATED = {
    "1 + tanh": (lambda a, b: a * (1 + b.tanh()), lambda a, b: a * (1 + b.tanh()).detach()),
    "scale + 1": (lambda a, b: (b + 1) * a, lambda a, b: a * (b + 1).detach()),
    "1 - x": (lambda a, b: a * (1 - b), lambda a, b: a * (1 - b).detach()),
    "half of 1 + erf": (lambda a, b: a * 0.5 * (1.0 + torch.erf(b)), lambda a, b: a * 0.5 * (1 + b.erf()).detach()),
    "in place": (lambda a, b: a.mul_(1 + b), lambda a, b: a * (1 + b).detach()),
    "signal second": (lambda a, b: (1 + b).mul_(a), lambda a, b: a * (1 + b).detach()),
    "both": (lambda a, b: (1 + a) * (1 + b), lambda a, b: shared(torch.mul)(1 + a, 1 + b)),
    "sigmoid": (lambda a, b: b.sigmoid() * a, lambda a, b: b.sigmoid().detach() * a),
    "softplus": (lambda a, b: a * F.softplus(b), lambda a, b: a * F.softplus(b).detach()),
    "sum over exp": (lambda a, b: a * b.exp() / b.exp().sum(), lambda a, b: a * (b.exp() / b.exp().sum()).detach()),
    "rsqrt of a mean": (
        lambda a, b: a * (a.square().mean(1, keepdim=True) + 1e-5).rsqrt(),
        lambda a, b: a * (a.square().mean(1, keepdim=True) + 1e-5).rsqrt().detach(),
    ),
}


@pytest.mark.parametrize("name", GATED)
def test_gates_leave_the_signal_everything(name):
    function, surrogate = GATED[name]
    agrees(function, surrogate, (A, B))


SPELLED = [torch.mul, torch.multiply, torch.Tensor.mul, torch.Tensor.multiply_, operator.mul, operator.imul]


def takes(k):
    return lambda *factors: torch.mul(*(f if i == k else f.detach() for i, f in enumerate(factors)))


def proportional(a, b):
    share = a.abs() / (a.abs() + b.abs())
    return (a * b.detach()) * share.detach() + (a.detach() * b) * (1 - share).detach()


REPLACED = {
    "TakesAll": (TakesAll(), takes(0)),
    "TakesAll second": (TakesAll(1), takes(1)),
    "Proportional": (Proportional(), proportional),
    "Gradient": (Gradient(), torch.mul),
    "Uniform": (Uniform(), shared(torch.mul)),
}


@pytest.mark.parametrize("name", REPLACED)
@pytest.mark.parametrize(
    "matcher",
    [torch.mul, torch.multiply, torch.Tensor.__mul__, Product],
    ids=["mul", "multiply", "__mul__", "Product"],
)
def test_a_rule_for_products_serves_every_spelling(name, matcher):
    rule, surrogate = REPLACED[name]
    for function in SPELLED:
        agrees(function, surrogate, (A, B), ruled(matcher, rule))


def test_a_rule_for_products_serves_broadcast_factors():
    wide = v(2, 1, seed=3, domain="nonzero")
    for rule, surrogate in REPLACED.values():
        agrees(torch.mul, surrogate, (A, wide), ruled(torch.mul, rule))


@pytest.mark.parametrize("rule", [TakesAll(), TakesAll(1), Proportional()], ids=str)
def test_a_square_written_as_a_product_conserves_under_every_rule(rule):
    agrees(lambda a: a * a, lambda a: a * a.detach(), (A,), ruled(torch.mul, rule))
    agrees(lambda a: a.mul_(a), lambda a: a * a.detach(), (A,), ruled(torch.mul, rule))


def test_a_constant_product_leaves_the_rest_everything():
    agrees(lambda a, b: a + a * b, lambda a, b: a + (a * b).detach(), (A, B), ruled(torch.mul, Constant()))


def test_a_rule_replaces_the_convention_of_quotients():
    agrees(torch.div, torch.div, (A, B), ruled(torch.true_divide, Gradient()))


def test_attention_presets_share_products_of_attention():
    """AttnLRP: softmax by its gradient, products half each. CPLRP: the attention weights are constants."""
    x, y = v(2, 3), v(2, 3, seed=1, domain="nonzero")

    def attend(a, b):
        return (a.mT @ b).softmax(-1) @ a.mT

    def half(a, b):
        scores = shared(torch.matmul)(a.mT, b)
        p = scores.softmax(-1)
        return shared(torch.matmul)(p, a.mT)

    agrees(attend, half, (x, y), composites.AttnLRP(0))
    agrees(attend, lambda a, b: (a.mT @ b).softmax(-1).detach() @ a.mT, (x, y), composites.CPLRP(0))


def test_what_mixes_or_samples_is_a_gate():
    """Where a grid points, or how lerp mixes, is constant, as the weights of attention are: the signal takes all."""
    agrees(torch.lerp, lambda a, b, w: torch.lerp(a, b, w.detach()), (A, B, C))
    agrees(
        lambda a, g: F.grid_sample(a, g, align_corners=False),
        lambda a, g: F.grid_sample(a, g.detach(), align_corners=False),
        (v(1, 1, 3, 3), v(1, 2, 2, 2, domain="unit")),
    )


def test_attention_masks_take_what_the_weights_get():
    """A mask that depends on the input adds to the product of query and key, and has its own part of the logits."""
    q, k, w, mask = v(1, 3, 2), v(1, 3, 2, seed=1), v(1, 3, 2, seed=2), v(1, 3, 3, seed=3)

    def half(q, k, w, mask):
        logits = shared(torch.matmul)(q, k.mT) * 2**-0.5 + mask
        return shared(torch.matmul)(logits.softmax(-1), w)

    def constant(q, k, w, mask):
        return (q @ k.mT * 2**-0.5 + mask).softmax(-1).detach() @ w

    def attend(q, k, w, mask):
        return F.scaled_dot_product_attention(q, k, w, attn_mask=mask)

    agrees(attend, half, (q, k, w, mask), composites.AttnLRP(0))
    agrees(attend, constant, (q, k, w, mask), composites.CPLRP(0))


def test_weights_that_depend_on_the_input_are_reported():
    with pytest.raises(UnmatchedError, match="prelu"):
        agrees(F.prelu, F.prelu, (A, v(4, seed=1, domain="nonzero")))


def test_identity_on_a_gate_and_uniform_products_share():
    composite = Composite([(torch.sigmoid, Identity()), (AnyLinear, Epsilon(0))])

    def surrogate(a, b):
        gate = b * (b.sigmoid() / b).detach()
        return shared(torch.mul)(a, gate)

    agrees(lambda a, b: a * torch.special.expit(b), surrogate, (A, B), composite)
