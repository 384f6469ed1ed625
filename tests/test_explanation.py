"""``lrp()`` in one call, and the sum of relevance: Σ R = f(x) where nothing absorbs any."""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import lrphooks
from lrphooks import Composite, LRPError, composites, explain, lrp
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, ZPlus
from small_networks import NETWORKS, equal, every_layer, network, relevance

X = torch.linspace(-1, 1.5, 18, dtype=torch.float64).reshape(3, 6)
EXACT = every_layer(Epsilon(0))


def mlp(bias=False):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=bias), nn.ReLU(), nn.Linear(8, 4, bias=bias)).double()


def reference(model, x, weights):
    """Gradient times input, which is LRP-0 on a network of ReLUs; for a weighting of the outputs."""
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad((model(leaf) * weights).sum(), leaf)[0] * x


def one_hot(indices):
    return F.one_hot(torch.as_tensor(indices), 4).double()


# --- targets -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "indices"),
    [
        (2, [2, 2, 2]), (-1, [3, 3, 3]), (-4, [0, 0, 0]), ([0, 3, 1], [0, 3, 1]), ((0, -1, 1), [0, 3, 1]),
        (range(3), [0, 1, 2]), (torch.tensor(2), [2, 2, 2]), (torch.tensor([0, 3, 1]), [0, 3, 1]),
        (torch.tensor([0, 3, 1], dtype=torch.int32), [0, 3, 1]),
        (torch.tensor([0, 3, 1], dtype=torch.uint8), [0, 3, 1]),
        (np.int64(2), [2, 2, 2]), (np.array([0, 3, 1]), [0, 3, 1]), ([torch.tensor(0), 3, np.int64(1)], [0, 3, 1]),
    ],
    ids=repr,
)  # fmt: skip
def test_targets(target, indices):
    model = mlp()
    equal(lrp(model, X, target, EXACT), reference(model, X, one_hot(indices)))


def test_no_target_is_the_largest_output_of_each_row():
    model = mlp()
    chosen = model(X).argmax(1)
    assert len(set(chosen.tolist())) > 1, "this case tests nothing"
    equal(lrp(model, X, None, EXACT), reference(model, X, one_hot(chosen)))
    equal(lrp(model, X, composite=EXACT), lrp(model, X, chosen, EXACT))


def test_a_target_may_be_a_function_of_the_output():
    model = mlp()
    equal(lrp(model, X, lambda y: y[:, 1] - 2 * y[:, 0], EXACT), reference(model, X, one_hot(1) - 2 * one_hot(0)))
    equal(lrp(model, X, lambda y: y.sum(), EXACT), reference(model, X, 1))


def test_the_default_composite_is_epsilon_plus():
    model, x = network("vgg")
    assert torch.equal(lrp(model, x, 1), lrp(model, x, 1, composites.EpsilonPlus()))
    assert torch.equal(lrphooks.lrp(model, x, target=1, composite=composites.EpsilonPlus()), lrp(model, x, 1))


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        (4, ValueError, r"target 4 is out of range for a model with 4 outputs \(0 to 3\)"),
        (-5, ValueError, r"target -5 is out of range"),
        ([0, 1, 9], ValueError, r"target 9 is out of range"),
        (2**40, ValueError, r"out of range"),
        ([0, 1], ValueError, r"2 targets were given for 3 rows; give one, or one a row"),
        ([], (TypeError, ValueError), r"target"),
        (1.0, TypeError, r"a target is an integer or one integer a row, got 1\.0"),
        ([0.5, 1.0, 2.0], TypeError, r"a target is an integer"),
        (torch.tensor([0.0, 1.0, 2.0]), TypeError, r"a target is an integer"),
        (True, TypeError, r"a target is an integer.*got True"),
        (torch.tensor([[0], [1], [2]]), TypeError, r"a target is an integer or one integer a row"),
        ("cat", TypeError, r"a target is an integer.*'cat'"),
        ({0: 1}, TypeError, r"a target is an integer"),
        ([[0, 1], [2]], (TypeError, ValueError), r"a target is an integer"),
        (lambda y: 3, TypeError, r"target function must return a tensor, got int"),
        (lambda y: torch.zeros(2), LRPError, r"does not depend on the input"),
        (lambda y: y.detach(), LRPError, r"does not depend on the input"),
        (lambda y: y.argmax(1), LRPError, r"does not depend on the input|integer"),
    ],
    ids=lambda value: "function" if callable(value) else repr(value)[:40],
)
def test_wrong_targets(target, error, message):
    with pytest.raises(error, match=rf"lrp: .*{message}"):
        lrp(mlp(), X, target, EXACT)


# --- inputs --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool], ids=str)
def test_integer_inputs(dtype):
    with pytest.raises(LRPError, match=rf"x has dtype {dtype}.*x\.float\(\).*embeddings"):
        lrp(mlp(), X.to(dtype), 0)


@pytest.mark.parametrize("x", [[[1.0] * 6], None, "x"], ids=lambda v: type(v).__name__)
def test_an_input_that_is_no_tensor(x):
    with pytest.raises(TypeError, match=rf"x must be a tensor.*{type(x).__name__}"):
        lrp(mlp(), x, 0)


@pytest.mark.parametrize("composite", [Epsilon(), composites.EpsilonPlus, "EpsilonPlus", [(nn.Linear, Epsilon())]])
def test_a_composite_that_is_none(composite):
    with pytest.raises(TypeError, match=r"[Cc]omposite"):
        lrp(mlp(), X, 0, composite)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("target", [0, None, lambda y: y[:, 0]], ids=["index", "none", "function"])
def test_an_output_that_is_not_finite(value, target):
    x = X.clone()
    x[1, 2] = value
    with pytest.raises(LRPError, match=r"output contains NaN or infinite values.*Check the input"):
        lrp(mlp(), x, target, EXACT)


def test_the_input_is_left_alone():
    """Nor does it need a gradient, or get one."""
    model = mlp()
    for x in (X.clone(), X.clone().requires_grad_(), (X.clone().requires_grad_() * 1.0)):
        before = x.detach().clone(), x.requires_grad, x._version
        found = lrp(model, x, 1, EXACT)
        assert not found.requires_grad
        assert torch.equal(x.detach(), before[0])
        assert (x.requires_grad, x._version) == before[1:]
        assert not x.is_leaf or x.grad is None
        equal(found, reference(model, X, one_hot(1)))
    assert all(p.grad is None for p in model.parameters())


def test_gradients_may_be_disabled_around_lrp():
    model = mlp()
    expected = lrp(model, X, 1, EXACT)
    with torch.no_grad():
        assert torch.equal(lrp(model, X, 1, EXACT), expected)
        assert not torch.is_grad_enabled()


def explained_or_refused(x):
    """The relevance, or where torch cannot record it, an error that names the reason."""
    try:
        return lrp(mlp(), x, 1, EXACT)
    except LRPError as error:
        return str(error)


def test_inference_mode_is_served_or_refused_clearly():
    """Around the call, and before it where only the input comes from there."""
    expected = lrp(mlp(), X, 1, EXACT)
    with torch.inference_mode():
        x = X * 1.0
        found = [explained_or_refused(X)]
    found.append(explained_or_refused(x))
    for answer in found:
        assert "inference_mode" in answer if isinstance(answer, str) else torch.equal(answer, expected)


class Cut(nn.Module):
    """A model whose output does not depend on its input by any differentiable path."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.how = mlp(), how
        self.inner.requires_grad_(how != "frozen")

    def forward(self, x):
        if self.how == "no_grad":
            with torch.no_grad():
                return self.inner(x)
        if self.how == "argmax":
            return self.inner(x).argmax(1, keepdim=True)
        return self.inner(x.detach())


@pytest.mark.parametrize("how", ["detach", "frozen", "no_grad", "argmax"])
def test_an_output_that_does_not_depend_on_the_input(how):
    with pytest.raises(LRPError, match=r"does not depend on the input.*detach"):
        lrp(Cut(how), X, 0, EXACT)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_forward_pass_without_gradients_is_refused(mode):
    message = rf"disabled \(torch\.{mode.__name__}\).*outside of that block"
    with EXACT.context(model := mlp()), mode(), pytest.raises(LRPError, match=message):
        model(X)


def test_a_forward_pass_on_inputs_without_gradients_is_refused():
    model = mlp()
    with EXACT.context(model), pytest.raises(LRPError, match=r"No input.*requires a gradient.*x\.requires_grad_\(\)"):
        model(X)
    words = nn.Sequential(nn.Embedding(5, 6), nn.Linear(6, 2))
    with EXACT.context(words), pytest.raises(LRPError, match=r"inputs are torch\.int64.*inputs_embeds"):
        words(torch.tensor([1, 2]))


def test_outputs_that_are_no_rows_of_classes():
    conv = nn.Conv2d(1, 2, 3)
    with pytest.raises(ValueError, match=r"shape \(1, 2, 3, 3\).*target must be a function.*sum\(\(1, 2\)\)"):
        lrp(conv, torch.randn(1, 1, 5, 5), 0)


class Total(nn.Module):
    def forward(self, x):
        return x.sum()


def test_an_output_without_rows():
    with pytest.raises(ValueError, match=r"shape \(\).*target must be a function"):
        lrp(Total(), X, 0, EXACT)
    equal(lrp(Total(), X, lambda y: y, EXACT), X)


def test_an_output_of_one_value_a_row():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 1, bias=False), nn.Flatten(0)).double()
    for target in (None, 0, [0, 0, 0]):
        equal(lrp(model, X, target, EXACT), X * model[0].weight.detach())


# --- containers ----------------------------------------------------------------------------------------------------


@dataclass
class Output:
    logits: torch.Tensor
    extra: object = None


class Pair(NamedTuple):
    logits: torch.Tensor
    extra: str


class Mapping(dict):
    """A dict with attributes, as model outputs are."""

    def __getattr__(self, name):
        return self[name]


CONTAINERS = {
    "tuple": (lambda y: (y, None), lambda o: o[0]),
    "list": (lambda y: [y, 3], lambda o: o[0]),
    "dict": (lambda y: {"logits": y, "name": "a"}, lambda o: o["logits"]),
    "nested": (lambda y: {"a": [(y,), {"b": y * 2}]}, lambda o: o["a"][0][0]),
    "namedtuple": (lambda y: Pair(y, "b"), lambda o: o.logits),
    "dataclass": (lambda y: Output(y, {"k": y + 1}), lambda o: o.logits),
    "mapping": (lambda y: Mapping(logits=y), lambda o: o.logits),
}


class Contained(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.inner, self.wrap = mlp(), wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


@pytest.mark.parametrize("kind", CONTAINERS)
def test_output_containers(kind):
    """Keep their type, and a function picks the explained value from them."""
    wrap, pick = CONTAINERS[kind]
    model = Contained(wrap)
    expected = reference(model.inner, X, one_hot(1))
    equal(lrp(model, X, lambda o: pick(o)[:, 1], EXACT), expected)
    leaf = X.clone().requires_grad_()
    with EXACT.context(model):
        output = model(leaf)
        assert type(output) is type(wrap(X))
        pick(output)[:, 1].sum().backward()
    equal(leaf.grad, expected)
    if isinstance(output, dict | Pair | Output) and kind != "nested":
        # What calls itself logits is what models of transformers answer.
        equal(lrp(model, X, 1, EXACT), expected)
        return
    with pytest.raises(TypeError, match=rf"returns a {type(output).__name__}.*target must be a function"):
        lrp(model, X, 1, EXACT)


class Inputs(nn.Module):
    """Adds what it is given, under several names and in several containers."""

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x=None, *, other=None, batch=None, indices=None):
        total = 0
        for part in (x, other, *(batch or {}).values()):
            if part is not None:
                total = total + self.inner(part)
        return total if indices is None else total[:, indices]


def test_keyword_only_inputs():
    model = Inputs()
    a, b, c = (X.clone() * s for s in (1.0, -0.5, 2.0))
    leaves = [t.clone().requires_grad_() for t in (a, b, c)]
    with EXACT.context(model):
        output = model(leaves[0], other=leaves[1], batch={"c": leaves[2]}, indices=torch.tensor([1]))
        output.sum().backward()
    for leaf, t in zip(leaves, (a, b, c), strict=True):
        equal(leaf.grad, reference(model.inner, t, one_hot(1)))


def test_an_input_without_gradient_is_a_constant():
    model = Inputs()
    leaf, fixed = X.clone().requires_grad_(), X * 2
    with EXACT.context(model):
        model(other=leaf, batch={"c": fixed})[:, 1].sum().backward()
    equal(leaf.grad, reference(model.inner, X, one_hot(1)))
    assert fixed.grad is None


def test_one_tensor_given_twice_receives_both_parts():
    model = Inputs()
    leaf = X.clone().requires_grad_()
    with EXACT.context(model):
        model(leaf, other=leaf)[:, 1].sum().backward()
    equal(leaf.grad, 2 * reference(model.inner, X, one_hot(1)))


@pytest.mark.parametrize("name", NETWORKS)
def test_lrp_equals_the_context(name):
    model, x = network(name)
    composite = Composite([(AnyLinear, ZPlus())])
    seed = torch.zeros_like(model(x))
    seed[:, 1] = 1
    equal(lrp(model, x, 1, composite), relevance(composite, copy.deepcopy(model), x, seed))


def test_an_example_without_rows_is_not_taken_for_many():
    """A (classes,) output would pass for one logit of as many rows."""
    with pytest.raises(ValueError, match=r"output has shape \(4,\), but its input has 6 rows.*x\.unsqueeze\(0\)"):
        lrp(nn.Linear(6, 4), torch.randn(6), 1, EXACT)
    model, x = nn.Sequential(nn.Linear(6, 1, bias=False), nn.Flatten(0)).double(), X[:3]
    equal(lrp(model, x, None, EXACT), x * model[0].weight.detach())


# --- what a notebook shows ---


def test_a_notebook_shows_the_numbers_and_the_picture():
    found = explain(_images_to_classes(), torch.rand(1, 3, 8, 8), 1)
    page = found._repr_html_()
    assert f"{float(found.explained):.4g}" in page
    assert "data:image/png;base64," in page
    assert found.picture().width > found.picture().height


def test_a_notebook_shows_a_table_alone_of_what_is_no_picture():
    found = explain(torch.nn.Linear(3, 2), torch.rand(1, 3), composite=composites.CPLRP())
    assert found.picture() is None
    assert "the largest output" in found._repr_html_()
    assert "<img" not in found._repr_html_()


def _images_to_classes():
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 2))
