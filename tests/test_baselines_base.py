"""What all baselines promise: how they are asked, that they are values, and that the model is left as it was."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import LRPError, composites, explain, lrp, lrp_targets, rules
from lrphooks.baselines import GradCAM, Gradient, InputXGradient, IntegratedGradients, Occlusion, SmoothGrad
from lrphooks.rules import Epsilon
from lrphooks.targets import Difference
from small_networks import NETWORKS, every_layer, network

BASELINES = [
    Gradient(),
    InputXGradient(),
    SmoothGrad(samples=2),
    SmoothGrad(every_layer(Epsilon(0)), samples=2),
    IntegratedGradients(4, tolerance=100.0),
    Occlusion(3, 2),
    GradCAM(),
]
#: Those that take inputs of any shape.
ANY_SHAPE = [baseline for baseline in BASELINES if not isinstance(baseline, GradCAM)]


def state(model):
    hooks = [[len(h) for h in (m._forward_hooks, m._forward_pre_hooks, m._backward_hooks)] for m in model.modules()]
    values = {name: value.clone() for name, value in model.state_dict().items()}
    return hooks, [m.training for m in model.modules()], values


@pytest.mark.parametrize("train", [False, True], ids=["evaluated", "training"])
@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
@pytest.mark.parametrize("name", ["residual", "vgg"])
def test_nothing_is_altered(name, baseline, train):
    """Not the running statistics of a model in training mode either, nor the gradients that someone collects."""
    model, x = network(name, train=train)
    for index, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, float(index))
    x.requires_grad_()
    given, (hooks, modes, values) = x.detach().clone(), state(model)
    baseline(model, x, 1)
    assert state(model)[:2] == (hooks, modes)
    for key, value in model.state_dict().items():
        assert torch.equal(value, values[key]), key
    assert all(bool((p.grad == i).all()) for i, p in enumerate(model.parameters()))
    assert torch.equal(x, given)
    assert x.grad is None


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
def test_a_model_that_overwrites_its_input(baseline, close):
    """It is served, and writes to a copy."""
    model, x = network("vgg")
    before = x.clone()
    found = baseline(nn.Sequential(nn.ReLU(inplace=True), model).eval(), x, 2)
    assert torch.equal(x, before)
    close(found, baseline(nn.Sequential(nn.ReLU(), model).eval(), x, 2))


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
def test_explain_alters_nothing_either(baseline):
    """It runs the model once more, for the explained values."""
    model, x = network("residual", train=True)
    model = nn.Sequential(nn.ReLU(inplace=True), model)
    before, (hooks, modes, values) = x.clone(), state(model)
    explain(model, x, 1, baseline)
    assert torch.equal(x, before)
    assert state(model)[:2] == (hooks, modes)
    assert all(torch.equal(value, values[key]) for key, value in model.state_dict().items())


def test_lrp_with_a_baseline_runs_the_model_no_more_than_the_baseline():
    calls = []

    class Counting(nn.Module):
        def forward(self, x):
            calls.append(len(x))
            return x.square()

    lrp(Counting(), torch.randn(2, 3), 1, Gradient())
    assert calls == [2]


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
def test_nothing_is_altered_where_the_model_raises(baseline):
    class Fails(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x):
            self.norm(self.conv(x))
            raise RuntimeError("no luck")

    model = Fails()
    before = state(model)
    with pytest.raises(RuntimeError, match="no luck"):
        baseline(model, torch.randn(2, 3, 8, 8), 1)
    hooks, modes, values = state(model)
    assert (hooks, modes) == before[:2]
    assert all(torch.equal(values[key], before[2][key]) for key in values)


@pytest.mark.parametrize("baseline", ANY_SHAPE, ids=repr)
@pytest.mark.parametrize("name", NETWORKS)
def test_shape_and_meaning_of_targets(name, baseline, close):
    """None is the largest output of each row; one index serves all rows; a function says the same."""
    model, x = network(name)
    found = baseline(model, x)
    assert found.shape == x.shape
    assert found.dtype == x.dtype
    assert not found.requires_grad
    largest = model(x).argmax(1)
    close(found, baseline(model, x, largest))
    close(found, baseline(model, x, largest.tolist()))
    close(baseline(model, x, 1), baseline(model, x, [1, 1]))
    close(baseline(model, x, 1), baseline(model, x, lambda output: output[:, 1]), tol=1e-9)
    close(baseline(model, x, -1), baseline(model, x, model(x).shape[1] - 1))


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
def test_it_stands_where_a_composite_does(baseline):
    model, x = network("vgg")
    found = baseline(model, x, [1, 2])
    assert torch.equal(lrp(model, x, [1, 2], baseline), found)
    explanation = explain(model, x, [1, 2], baseline)
    assert torch.equal(explanation.relevance, found)
    assert torch.equal(explanation.explained, model(x)[[0, 1], [1, 2]])
    one, two = lrp_targets(model, x, [1, None], baseline)
    assert torch.equal(one, baseline(model, x, 1))
    assert torch.equal(two, baseline(model, x))


@pytest.mark.parametrize("baseline", ANY_SHAPE, ids=repr)
def test_targets_that_are_formulas(baseline, close):
    model, x = network("vgg")
    model.class_names = ["cat", "dog", "cow", "hen"]
    close(baseline(model, x, "cow"), baseline(model, x, 2))
    close(baseline(model, x, ["cow", "hen"]), baseline(model, x, [2, 3]))
    found = baseline(model, x, Difference("cow", "hen"))
    close(found, baseline(model, x, 2) - baseline(model, x, 3), tol=1e-9)


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
def test_a_row_does_not_depend_on_the_others(baseline, close):
    if isinstance(baseline, SmoothGrad):
        baseline = SmoothGrad(baseline.method, samples=1, noise=0.0)
    model, x = network("vgg")
    both = baseline(model, x, [1, 2])
    close(baseline(model, x[1:], 2), both[1:])


class Several(nn.Module):
    """A dict in, a keyword in, token numbers in: a sum of products that a closed form knows."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.double()

    def forward(self, first, tokens, scale=None):
        return torch.stack([(first["a"] * self.table(tokens)).sum(1) + 2 * scale.sum(1), first["a"].sum(1)], 1)


@pytest.mark.parametrize("baseline", ANY_SHAPE, ids=repr)
def test_structures_of_inputs(baseline, close):
    """Linear in each input, so all methods but the gradient give weight times input."""
    if isinstance(baseline, SmoothGrad):
        baseline = SmoothGrad(baseline.method, samples=1, noise=0.0)
    if isinstance(baseline, Occlusion):
        baseline = Occlusion(1)
    model = Several()
    a, scale, tokens = torch.randn(4, 3).double(), torch.randn(4, 3).double(), torch.tensor([1, 0, 4, 2])
    (first, none), keywords = baseline(model, ({"a": a, "n": tokens}, tokens), 0, kwargs={"scale": scale})
    assert none is None
    assert first["n"] is None
    gradient = isinstance(baseline, Gradient) or (isinstance(baseline, SmoothGrad) and baseline.method == Gradient())
    close(first["a"], model.table.weight[tokens] * (1 if gradient else a))
    close(keywords["scale"], 2 * (torch.ones_like(scale) if gradient else scale))


@pytest.mark.parametrize("baseline", ANY_SHAPE, ids=repr)
def test_an_input_without_a_part_has_no_attribution(baseline):
    class OnlyFirst(nn.Module):
        def forward(self, first, second):
            return first.square()

    first, second = torch.randn(2, 3), torch.randn(2, 4)
    found = baseline(OnlyFirst(), (first, second), 0) if not isinstance(baseline, Occlusion) else None
    if found is None:
        found = Occlusion(1)(OnlyFirst(), (first, second), 0)
    assert float(found[0].abs().max()) > 0
    assert torch.equal(found[1], torch.zeros(2, 4))


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
def test_without_gradients_and_in_inference_mode(baseline, close):
    model, x = network("vgg")
    expected = baseline(model, x, 2)
    with torch.no_grad():
        close(baseline(model, x, 2), expected)
    with torch.inference_mode():
        close(baseline(model, x.clone(), 2), expected)
    model.requires_grad_(False)
    close(baseline(model, x, 2), expected)


@pytest.mark.parametrize("baseline", BASELINES, ids=repr)
def test_wrong_questions(baseline):
    model, x = network("vgg")
    with pytest.raises(ValueError, match="out of range"):
        baseline(model, x, 4)
    with pytest.raises(ValueError, match="3 targets were given for 2 rows"):
        baseline(model, x, [0, 1, 2])
    with pytest.raises(LRPError, match=r"dtype torch.int64, through which no relevance can flow"):
        baseline(model, torch.ones(2, 3, 8, 8, dtype=torch.int64), 0)
    with pytest.raises(TypeError, match=r"expected a torch.nn.Module"):
        baseline(torch.sin, x, 0)


@pytest.mark.parametrize("baseline", [Gradient(), InputXGradient(), IntegratedGradients(2), SmoothGrad()], ids=repr)
def test_no_path_to_the_input(baseline):
    class Detached(nn.Module):
        def forward(self, x):
            return x.detach() * 2

    with pytest.raises(LRPError, match=r"does not depend on the input through any differentiable path"):
        baseline(Detached(), torch.randn(2, 3), 0)


REFERENCE = torch.tensor([[0.5], [1.0]])
VALUES = [
    *BASELINES,
    SmoothGrad(IntegratedGradients(3), 7, 0.5, 9),
    IntegratedGradients(reference=REFERENCE),
    IntegratedGradients(reference=(0.0, REFERENCE)),
    Occlusion((2, 2), 1, reference=torch.zeros(100)),
    GradCAM("features.3", -1),
]


@pytest.mark.parametrize("baseline", VALUES, ids=repr)
def test_baselines_are_values(baseline):
    twin = pickle.loads(pickle.dumps(baseline))
    assert twin == baseline == copy.deepcopy(baseline)
    assert hash(twin) == hash(baseline)
    assert [other for other in VALUES if other == baseline] == [baseline]
    assert baseline != repr(baseline)


@pytest.mark.parametrize("baseline", [b for b in VALUES if "<" not in repr(b)], ids=repr)
def test_the_repr_is_the_call(baseline):
    names = {**vars(rules), **vars(composites), **vars(__import__("lrphooks.baselines", fromlist=["x"]))}
    assert eval(repr(baseline), {**names, "torch": torch, "Composite": type(every_layer(Epsilon()))}) == baseline


def test_a_large_reference_prints_short():
    assert repr(Occlusion(2, reference=torch.zeros(100))) == (
        "Occlusion(window=2, stride=2, reference=<tensor of shape (100,)>, batch=64)"
    )


def test_a_reference_belongs_to_its_baseline():
    given = torch.zeros(3)
    baseline = IntegratedGradients(reference=given)
    given += 1
    assert baseline == IntegratedGradients(reference=torch.zeros(3))


def test_functions_of_the_output_run_one_trial_at_a_time():
    """For a function may tell rows by their number."""
    sizes = []

    class Counting(nn.Module):
        def forward(self, x):
            sizes.append(len(x))
            return F.relu(x)

    x = torch.randn(2, 4)
    by_rows = Occlusion(1)(Counting().eval(), x, lambda output: output[range(2), [1, 3]])
    assert set(sizes) == {2}
    sizes.clear()
    assert torch.equal(Occlusion(1)(Counting().eval(), x, [1, 3]), by_rows)
    assert sizes == [2, 8]
