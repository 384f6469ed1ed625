"""Sums of activations under the rules of linear layers, against the formulas of two contributions."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import lrphooks
from lrphooks import Composite, audit, lrp
from lrphooks.matching import AnyLinear, Sum, Within
from lrphooks.rules import AlphaBeta, Epsilon, Flat, Gamma, TopRelevance, Uniform, ZBox, ZPlus
from small_networks import equal


class Adds(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.write = write

    def forward(self, a, b):
        return self.write(a, b)


def in_place(a, b):
    c = a * 1.0
    c += b
    return c


def in_place_alpha(a, b):
    return (a * 1.0).add_(b, alpha=-0.5)


#: Ways to write c_1 a + c_2 b, with the two numbers.
WRITTEN = {
    "+": (lambda a, b: a + b, (1.0, 1.0)),
    "-": (lambda a, b: a - b, (1.0, -1.0)),
    "torch.add": (lambda a, b: torch.add(a, b, alpha=-2), (1.0, -2.0)),
    "torch.sub": (lambda a, b: torch.sub(input=a, other=b, alpha=0.5), (1.0, -0.5)),
    "rsub": (lambda a, b: torch.rsub(a, b, alpha=3), (-3.0, 1.0)),
    "+=": (in_place, (1.0, 1.0)),
    "add_": (in_place_alpha, (1.0, -0.5)),
}


def epsilon(c, z):
    return c / (z + 0.1 * torch.where(z < 0, -torch.ones_like(z), torch.ones_like(z)))


def zplus(c, z):
    positive = c.clamp(min=0).sum(0)
    return torch.where(positive > 0, c.clamp(min=0) / positive, torch.zeros_like(c))


def gamma(c, z):
    agreeing = torch.where(z < 0, c.clamp(max=0), c.clamp(min=0))
    return (c + 2 * agreeing) / (z + 2 * agreeing.sum(0))


def alpha_beta(c, z):
    up, down = c.clamp(min=0), c.clamp(max=0)

    def shared(part):
        # A sum without contributions of a sign has no share to give.
        return torch.nan_to_num(part / part.sum(0))

    return 2 * shared(up) - shared(down)


#: Rules, with the share that each of the stacked contributions c of a sum z receives of its relevance.
SHARES = {
    "epsilon": (Epsilon(0.1), epsilon),
    "zplus": (ZPlus(1e-12), zplus),
    "gamma": (Gamma(2.0, 1e-12), gamma),
    "alpha2beta1": (AlphaBeta(2, 1, 1e-12), alpha_beta),
}


def summed(rule, write, a, b):
    """The relevance of both summands, of the sum of all elements."""
    return lrp(Adds(write), (a, b), lambda z: z.flatten(1).sum(1), Composite([(Sum, rule)]))


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("rule", SHARES)
def test_each_summand_receives_its_share(rule, written):
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    given, share = SHARES[rule]
    write, (first, second) = WRITTEN[written]
    contributions = torch.stack((first * a, second * b))
    z = contributions.sum(0)
    expected = share(contributions, z) * z
    for found, wanted in zip(summed(given, write, a, b), expected, strict=True):
        equal(found, wanted, 1e-9)


@pytest.mark.parametrize("rule", SHARES)
def test_a_summand_that_is_broadcast_receives_what_all_its_copies_do(rule):
    torch.manual_seed(0)
    a, b = torch.randn(3, 5, 4, dtype=torch.float64), torch.randn(3, 1, 4, dtype=torch.float64)
    given, share = SHARES[rule]
    contributions = torch.stack(torch.broadcast_tensors(a, b))
    expected = share(contributions, a + b) * (a + b)
    first, second = summed(given, lambda a, b: a + b, a, b)
    equal(first, expected[0], 1e-9)
    equal(second, expected[1].sum(1, keepdim=True), 1e-9)


def test_a_tensor_added_to_itself_receives_all():
    x = torch.randn(2, 4, dtype=torch.float64)
    found = lrp(Adds(lambda a, b: a + a), (x, x), lambda z: z.sum(1), Composite([(Sum, Gamma(1.0, 0.0))]))
    equal(found[0], 2 * x, 1e-12)


@pytest.mark.parametrize("write", [lambda a, b: a + 1.0, lambda a, b: a - torch.ones(4), lambda a, b: 2 + a])
def test_constants_are_no_summands(write):
    x = torch.randn(2, 4, dtype=torch.float64)
    (found, _) = lrp(Adds(write), (x, x), lambda z: z.sum(1), Composite([(Sum, ZPlus())]))
    equal(found, x)


def test_sums_of_complex_numbers_have_their_gradient():
    """They have no sign to tell them apart by; what is transformed before and after keeps its rules."""

    def transformed(a, b):
        return torch.fft.ifft(torch.fft.fft(a) - 2 * torch.fft.fft(b)).real

    a, b = torch.randn(2, 3, 4, dtype=torch.float64)
    for found, wanted in zip(summed(Gamma(10.0), transformed, a, b), (a, -2 * b), strict=True):
        equal(found, wanted, 1e-12)


def test_sums_of_single_numbers():
    class Single(nn.Module):
        def forward(self, x):
            return x[0, 0] + x[0, 1]

    found = lrp(Single(), torch.tensor([[2.0, -1.0]]), lambda z: z, Composite([(Sum, ZPlus(0.0))]))
    equal(found, torch.tensor([[1.0, 0.0]]))


class Block(nn.Module):
    """A residual block, with the BatchNorm in front of the sum or behind it."""

    def __init__(self, *, behind=False, inplace=False):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.two = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm, self.behind, self.relu = nn.BatchNorm2d(3), behind, nn.ReLU(inplace)
        nn.init.normal_(self.norm.bias)
        self.norm.running_mean.normal_()
        self.norm.running_var.uniform_(0.5, 2)
        self.head = nn.Linear(3, 4)
        self.double().eval()

    def forward(self, x):
        x = self.relu(self.one(x))
        z = self.two(x)
        z = self.norm(z + x) if self.behind else self.norm(z) + x
        return self.head(self.relu(z).mean((2, 3)))


class Stacked(nn.Linear):
    """The same sum as a linear layer of two inputs."""

    def __init__(self):
        super().__init__(2, 1, bias=False)
        nn.init.ones_(self.weight)
        self.double()

    def forward(self, a, b):
        return super().forward(torch.stack((a, b), -1)).squeeze(-1)


class StackedBlock(Block):
    def __init__(self, **options):
        super().__init__(**options)
        self.sum = Stacked()

    def forward(self, x):
        x = self.relu(self.one(x))
        z = self.two(x)
        # A BatchNorm is merged into a linear layer; the copy keeps it apart, as it is from a sum.
        z = self.norm(self.sum(z, x).clone()) if self.behind else self.sum(self.norm(z), x)
        return self.head(self.relu(z).mean((2, 3)))


@pytest.mark.parametrize("options", [{}, {"inplace": True}, {"behind": True}], ids=["", "in place", "norm behind"])
@pytest.mark.parametrize("rule", SHARES)
def test_a_residual_sum_equals_a_linear_layer_of_two_inputs(rule, options):
    rule = SHARES[rule][0]
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    found = lrp(Block(**options), x, 1, Composite([(Sum, rule), (AnyLinear, Gamma(0.5))]))
    expected = lrp(StackedBlock(**options), x, 1, Composite([(Stacked, rule), (AnyLinear, Gamma(0.5))]))
    equal(found, expected, 1e-10)


@pytest.mark.parametrize("rule", SHARES)
def test_the_audit_explains_sums(rule):
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    composite = Composite([(Sum, SHARES[rule][0]), (AnyLinear, Gamma(0.5))])
    report = audit(Block(), x, 1, composite)
    assert report.unexplained < 1e-12
    assert ("add", repr(SHARES[rule][0])) in {(o.name, o.rule) for o in report.operations}


def test_relevance_of_sums_can_be_differentiated():
    composite = Composite([(Sum, Gamma(0.5, 0.25)), (AnyLinear, Epsilon(0.25))])
    model = Block()

    def of(x):
        with composite.context(model):
            out = model(x)[:, 1].sum()
            return torch.autograd.grad(out, x, create_graph=True)[0]

    x = torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(of, (x,), atol=1e-5)


def into_a_part(a, b):
    c = a * 1.0
    part = c[:, :2]
    part += b[:, :2]
    part *= 3
    return c


def into_all_of_it(a, b):
    c = a * 1.0
    whole = c.view(-1, 2, 2)
    whole += b.view(-1, 2, 2)
    whole *= 3
    return c


@pytest.mark.parametrize(("write", "columns"), [(into_a_part, 2), (into_all_of_it, 4)])
@pytest.mark.parametrize("rule", SHARES)
def test_sums_in_place_on_a_view_reach_what_it_is_a_view_of(rule, write, columns):
    torch.manual_seed(0)
    a, b = torch.randn(2, 3, 4, dtype=torch.float64)
    given, share = SHARES[rule]
    contributions = torch.stack((a, b))[..., :columns]
    expected = torch.stack((a, torch.zeros_like(b)))
    expected[..., :columns] = 3 * share(contributions, contributions.sum(0)) * contributions.sum(0)
    for found, wanted in zip(summed(given, write, a, b), expected, strict=True):
        equal(found, wanted, 1e-9)
    leaf, composite = a.clone().requires_grad_(), Composite([(Sum, given)])
    with composite.context(model := Adds(write)):
        assert torch.equal(model(leaf, b.clone().requires_grad_()), write(a, b))
    assert audit(Adds(write), (a, b), lambda z: z.sum(1), composite).unexplained < 1e-12


def test_sums_run_again_by_a_checkpoint():
    class Checkpointed(Block):
        def forward(self, x):
            return checkpoint(super().forward, x, use_reentrant=False)

    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    composite = Composite([(Sum, Gamma(0.5)), (AnyLinear, Gamma(0.5))])
    equal(lrp(Checkpointed(), x, 1, composite), lrp(Block(), x, 1, composite), 1e-12)


def test_sums_of_certain_modules_alone():
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(3, 3, 1).double(), Block()).eval()
    ruled = Composite([(Within("1", Sum), ZPlus()), (AnyLinear, Gamma(0.5))])
    everywhere = Composite([(Sum, ZPlus()), (AnyLinear, Gamma(0.5))])
    nowhere = Composite([(Within("0", Sum), ZPlus()), (AnyLinear, Gamma(0.5))])
    equal(lrp(model, x, 1, ruled), lrp(model, x, 1, everywhere), 1e-12)
    assert not torch.allclose(lrp(model, x, 1, nowhere), lrp(model, x, 1, everywhere))
    equal(lrp(model, x, 1, nowhere), lrp(model, x, 1, Composite([(AnyLinear, Gamma(0.5))])), 1e-12)


def test_a_layer_that_adds_within_itself_keeps_its_rule_for_its_weight_alone():
    class LowRank(nn.Linear):
        def forward(self, x):
            return super().forward(x) + x * 0.5

    torch.manual_seed(0)
    layer = LowRank(4, 4).double()
    x = torch.randn(3, 4, dtype=torch.float64)
    z = layer.weight * x.unsqueeze(1)
    positive = z.clamp(min=0)
    linear = x @ layer.weight.T + layer.bias
    expected = (positive / (positive.sum(-1) + layer.bias.clamp(min=0)).unsqueeze(-1) * linear.unsqueeze(-1)).sum(1)
    found = lrp(layer, x, lambda out: out.sum(1), Composite([(nn.Linear, ZPlus(1e-12)), (Sum, Epsilon(0))]))
    equal(found, expected.detach() + 0.5 * x, 1e-9)


def test_a_filter_on_sums_drops_relevance():
    a, b = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 1.0, 1.0]])
    first, second = summed(TopRelevance(Gamma(0.0), 40), lambda a, b: a + b, a, b)
    equal(first, torch.tensor([[0.0, 0.0, 3.0]]), 1e-5)
    equal(second, torch.tensor([[0.0, 0.0, 1.0]]), 1e-5)


@pytest.mark.parametrize("rule", [Flat(), ZBox(-1.0, 1.0), Uniform()], ids=repr)
def test_rules_that_sums_cannot_have(rule):
    with pytest.raises(TypeError, match=r"cannot serve operation add.*The rules that can are .*LinearRule"):
        lrp(Adds(lambda a, b: a + b), torch.ones(1, 2), 0, Composite([(Sum, rule)]))


def test_sums_print_as_code():
    composite = Composite([(Sum, Gamma(1.0))])
    assert repr(composite).startswith("Composite([(Sum, Gamma(gamma=1.0")
    assert lrphooks.matching.Sum is Sum


class Masked(nn.Module):
    """Attention whose scores are a sum, some of them minus infinity."""

    def __init__(self, least):
        super().__init__()
        self.least = least

    def forward(self, x):
        scores = x @ x.mT
        scores = scores + (x @ x.mT).masked_fill(torch.ones(4, 4).triu(1).bool(), self.least)
        return (scores.softmax(-1) @ x).sum((1, 2))


@pytest.mark.parametrize("rule", SHARES)
def test_sums_that_are_infinite_hand_nothing_on(rule):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 8, dtype=torch.float64)
    composite = Composite([(Sum, SHARES[rule][0])])
    # The softmax of a score so low is exactly 0 too.
    expected = lrp(Masked(-1e4), x, lambda z: z, composite)
    equal(lrp(Masked(-torch.inf), x, lambda z: z, composite), expected)
    assert audit(Masked(-torch.inf), x, lambda z: z, composite).unexplained < 1e-9


def test_the_factor_of_a_sum_may_be_a_tensor():
    a, b = torch.randn(2, 3, 4, dtype=torch.float64)
    found = summed(ZPlus(1e-12), lambda a, b: torch.add(a, b, alpha=torch.tensor(2)), a, b)
    expected = summed(ZPlus(1e-12), lambda a, b: torch.add(a, b, alpha=2), a, b)
    equal(found[1], expected[1])
