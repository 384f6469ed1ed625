"""Rules of one's own for operations, known to lrphooks or not: one method says what each operand gets."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import lrphooks
from lrphooks import Composite, LRPError
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, Identity, OperationRule, Proportional, TakesAll, Uniform


@dataclass(frozen=True)
class Halves(OperationRule):
    """R_z / n to each operand, as the rule for products."""

    def modified_gradients(self, gradient, output, operands):
        return [gradient * output / (len(operands) * a) for a in operands]


@dataclass(frozen=True)
class Keeps(OperationRule):
    """R_a = share * R_z for one operand."""

    share: float = 1.0

    def modified_gradients(self, gradient, output, operands):
        (a,) = operands
        return [self.share * gradient * output / a]


@dataclass(frozen=True)
class First(OperationRule):
    def modified_gradients(self, gradient, output, operands):
        first, *others = operands
        return [gradient * output / first, *[None for _ in others]]


@dataclass(frozen=True)
class Wrong(OperationRule):
    def modified_gradients(self, gradient, output, operands):
        return [gradient.sum(0)]


@torch.library.custom_op("lrphooks_tests::times", mutates_args=())
def times(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return a * b


def _backward(ctx, gradient):
    a, b = ctx.saved_tensors
    return gradient * b, gradient * a


times.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


class Cubed(torch.autograd.Function):
    """A function of the model's own, with a derivative of its own."""

    @staticmethod
    def forward(ctx, a):
        ctx.save_for_backward(a)
        return a**3

    @staticmethod
    def backward(ctx, gradient):
        (a,) = ctx.saved_tensors
        return 3 * gradient * a**2


class Two(nn.Module):
    """Two layers, joined by an operation, and a head."""

    def __init__(self, join):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.head, self.join = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 3), join
        self.double()

    def forward(self, x):
        return self.head(self.join(self.a(x), self.b(x)))


X = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
#: An operation, a rule of one's own for it, and another way to the same relevance.
MUL = torch.mul, (torch.mul, Uniform())
SAME = {
    "an operation that nobody knows": (times, (times, Halves()), *MUL),
    "products": (torch.mul, (torch.mul, Halves()), *MUL),
    "one takes all": (torch.mul, (torch.mul, First()), torch.mul, (torch.mul, TakesAll(0))),
    "in place": (lambda a, b: a.clone().mul_(b), (torch.mul, Halves()), *MUL),
    "an activation": (
        lambda a, b: a.tanh() + b, (torch.tanh, Keeps()), lambda a, b: a.tanh() + b, (torch.tanh, Identity())
    ),
    "a function of the model's own": (
        lambda a, b: Cubed.apply(a) + b, (Cubed, Keeps()), lambda a, b: a**3 + b, (torch.pow, Identity())
    ),
    "overwritten": (lambda a, b: (a * b).relu_(), (torch.mul, Halves()), lambda a, b: (a * b).relu(), MUL[1]),
    "in a checkpoint": (lambda a, b: checkpoint(torch.mul, a, b, use_reentrant=False), (torch.mul, Halves()), *MUL),
}  # fmt: skip


@pytest.mark.parametrize("epsilon", [0, 0.1])
@pytest.mark.parametrize("name", SAME)
def test_a_rule_of_ones_own_is_asked(name, epsilon, close):
    join, entry, other, known = SAME[name]
    own, reference = (Composite([e, (AnyLinear, Epsilon(epsilon))]) for e in (entry, known))
    close(lrphooks.lrp(Two(join), X, 1, own), lrphooks.lrp(Two(other), X, 1, reference), 1e-12)
    with own.context(model := Two(join)):
        assert torch.equal(model(X.clone().requires_grad_()), Two(join)(X))
    assert lrphooks.audit(Two(join), X, 1, own).unexplained < 1e-12


@pytest.mark.parametrize("name", SAME)
def test_its_relevance_can_be_differentiated(name, close):
    join, entry, other, known = SAME[name]
    found = []
    for joined, given in ((join, entry), (other, known)):
        model, leaf = Two(joined), X.clone().requires_grad_()
        with Composite([given, (AnyLinear, Epsilon(0))]).context(model):
            out = model(leaf)
        relevance = torch.autograd.grad(out[:, 1].sum(), leaf, create_graph=True)[0]
        found.append(torch.autograd.grad(relevance.square().sum(), (leaf, model.a.weight)))
    for first, second in zip(*found, strict=True):
        close(first, second, 1e-10)


def test_what_it_drops_is_in_the_books():
    model = Two(lambda a, b: a.tanh())
    report = lrphooks.audit(model, X, 1, Composite([(torch.tanh, Keeps(0.25)), (AnyLinear, Epsilon(0))]))
    assert report.unexplained < 1e-12
    arrived = (model.a(X).tanh() * model.head.weight[1]).sum().item()
    assert report.sinks["rule"] == pytest.approx(0.75 * arrived)


def test_a_module_may_have_one():
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    own, known = (Composite([("1", rule), (AnyLinear, Epsilon(0))]) for rule in (Keeps(), Identity()))
    torch.testing.assert_close(lrphooks.lrp(model, X, 1, own), lrphooks.lrp(model, X, 1, known), rtol=1e-10, atol=1e-12)


def test_a_wrong_answer_is_told():
    composite = Composite([(torch.mul, Wrong()), (AnyLinear, Epsilon(0))])
    message = r"Wrong\(\) on operation mul in .*\(Two\) must .* 2 operands.*\[\(3, 5\), \(3, 5\)\].*returned \[\(5,\)\]"
    with pytest.raises(LRPError, match=message):
        lrphooks.lrp(Two(torch.mul), X, 1, composite)
    several = Two(lambda a, b: torch.var_mean(a, -1, keepdim=True)[1] + b)
    with pytest.raises(LRPError, match=r"Keeps.* cannot serve operation var_mean.*returns a tuple.*one output"):
        lrphooks.lrp(several, X, 1, Composite([(torch.var_mean, Keeps()), (AnyLinear, Epsilon(0))]))


def test_it_is_a_value_like_other_rules():
    assert Keeps(0.5) == Keeps(0.5) != Keeps()
    assert repr(Composite([(F.gelu, Keeps(0.5))])) == "Composite([(torch.nn.functional.gelu, Keeps(share=0.5))])"
    with pytest.raises(TypeError, match="abstract"):
        OperationRule()
    assert not isinstance(Keeps(), Proportional)


@dataclass(frozen=True)
class Even(OperationRule):
    """R_z of a row to all inputs of the row alike."""

    def modified_gradients(self, gradient, output, operands):
        (a,) = operands
        return [(gradient * output).sum(-1, keepdim=True) / (a.shape[-1] * a)]


def test_the_example_of_the_page(close):
    page = (Path(__file__).parents[1] / "docs" / "any-graph.md").read_text(encoding="utf-8")
    (code,) = re.findall(
        r"```python\n(.*?)```", page.partition("## A rule of your own")[2].partition("\n## ")[0], re.DOTALL
    )
    scope = {"__name__": "page"}
    exec(code, scope)
    model = Two(torch.mul)
    found = lrphooks.lrp(model, X, 1, scope["composite"])
    parts = [lrphooks.lrp(model, X, 1, Composite([(torch.mul, TakesAll(k)), (AnyLinear, Epsilon(0))])) for k in (0, 1)]
    close(found, 0.75 * parts[0] + 0.25 * parts[1], 1e-12)


def test_a_linear_layer_may_have_one(close):
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 3)).double()
    found = lrphooks.lrp(model, X, 1, Composite([("0", Even()), (AnyLinear, Epsilon(0))]))
    arrived = (model[0](X) * model[1].weight[1]).sum(-1, keepdim=True).detach()
    close(found, (arrived / 4).expand_as(X), 1e-12)
    frozen = model.requires_grad_(requires_grad=False)
    close(lrphooks.lrp(frozen, X, 1, Composite([("0", Even()), (AnyLinear, Epsilon(0))])), found, 1e-12)
