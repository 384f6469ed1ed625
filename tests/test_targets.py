"""What is explained: formulas of the output, regions, boxes, decisions; each against the relevance it stands for."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import LRPError, explain, lrp, lrp_targets
from lrphooks.rules import Epsilon
from lrphooks.targets import AgainstOthers, Difference, Entry, Region, Sign, SoftmaxGradient
from small_networks import equal, every_layer

X = torch.linspace(-1, 1.5, 18, dtype=torch.float64).reshape(3, 6)
EXACT = every_layer(Epsilon(0))


def mlp(outputs=4):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs)).double()


def of_each_class(model):
    """The relevance of each class for LRP-0, which is gradient times input: (rows, classes, inputs)."""
    jacobian = torch.autograd.functional.jacobian(lambda x: model(x).sum(0), X)
    return jacobian.transpose(0, 1) * X.unsqueeze(1)


ROWS = torch.arange(3)


@pytest.mark.parametrize(("a", "b"), [(1, 3), ([0, 1, 2], 3), (2, [1, 0, -1]), ((0, 1, 2), torch.tensor([3, 2, 1]))])
def test_a_difference_is_that_of_the_relevances(a, b):
    model = mlp()
    each = of_each_class(model)
    equal(lrp(model, X, Difference(a, b), EXACT), each[ROWS, torch.as_tensor(a)] - each[ROWS, torch.as_tensor(b)])
    found = explain(model, X, Difference(a, b), EXACT)
    logits = model(X).detach()
    equal(found.explained, logits[ROWS, torch.as_tensor(a)] - logits[ROWS, torch.as_tensor(b)])


@pytest.mark.parametrize("a", [1, [3, 0, 1]], ids=repr)
def test_one_class_against_all_others_is_the_mean_of_the_differences(a):
    model = mlp()
    per_row = torch.as_tensor(a).expand(3).tolist()
    others = [[j for j in range(4) if j != per_row[row]] for row in range(3)]
    differences = [lrp(model, X, Difference(a, [others[row][k] for row in range(3)]), EXACT) for k in range(3)]
    equal(lrp(model, X, AgainstOthers(a), EXACT), sum(differences) / 3)


@pytest.mark.parametrize("a", [1, [3, 0, 1]], ids=repr)
@pytest.mark.parametrize("strongest", [1, 2, 3, 10])
def test_one_class_against_the_strongest_others(a, strongest):
    model = mlp()
    logits = model(X).detach()
    each = of_each_class(model)
    expected = []
    for row, chosen in enumerate(torch.as_tensor(a).expand(3).tolist()):
        others = sorted((j for j in range(4) if j != chosen), key=lambda j: -float(logits[row, j]))[:strongest]
        expected.append(each[row, chosen] - sum(each[row, j] for j in others) / len(others))
    equal(lrp(model, X, AgainstOthers(a, strongest), EXACT), torch.stack(expected))


@pytest.mark.parametrize(
    ("strongest", "error", "text"),
    [
        (0, ValueError, "at least 1, got 0"),
        (2.0, TypeError, r"an integer, got 2\.0"),
        (True, TypeError, "True"),
    ],
)
def test_how_many_others_there_can_be(strongest, error, text):
    with pytest.raises(error, match=f"AgainstOthers: strongest must be.*{text}"):
        AgainstOthers(0, strongest)


@pytest.mark.parametrize("a", [1, [3, 0, 1]], ids=repr)
def test_the_softmax_gradient_starts_from_the_jacobian_of_softmax(a):
    """Iwana et al.: relevance at the outputs is the derivative of the probability by each output."""
    model = mlp()
    logits = model(X).detach()
    per_row = torch.as_tensor(a).expand(3)
    jacobian = torch.autograd.functional.jacobian(lambda z: z.softmax(1)[ROWS, per_row].sum(), logits)
    identity = lrp(nn.Identity(), logits, SoftmaxGradient(a), EXACT)
    equal(identity, jacobian)
    expected = (of_each_class(model) / logits.unsqueeze(-1) * jacobian.unsqueeze(-1)).sum(1)
    equal(lrp(model, X, SoftmaxGradient(a), EXACT), expected)
    explained = explain(model, X, SoftmaxGradient(a), EXACT).explained
    assert explained.shape == (3,)
    assert explained.abs().max() < 1e-15


def test_the_softmax_gradient_gives_nothing_to_an_output_of_zero():
    logits = torch.tensor([[0.0, 2.0, -1.0]])
    found = lrp(nn.Identity(), logits, SoftmaxGradient(1), EXACT)
    p = logits.softmax(1)[0]
    torch.testing.assert_close(found[0], torch.stack((torch.tensor(0.0), p[1] * (1 - p[1]), -p[1] * p[2])))


def test_a_model_with_one_output_is_explained_through_its_logit_or_its_decision():
    model = mlp(1)
    logit = model(X).detach().squeeze(1)
    assert logit.min() < 0 < logit.max(), "this case tests nothing"
    of_logit = of_each_class(model)[:, 0]
    for target in (None, 0):
        equal(lrp(model, X, target, EXACT), of_logit)
    equal(lrp(model, X, Sign(), EXACT), of_logit * logit.sign().unsqueeze(1))
    equal(explain(model, X, Sign(), EXACT).explained, logit.abs())
    flat = nn.Sequential(*model, nn.Flatten(0))
    equal(lrp(flat, X, Sign(), EXACT), of_logit * logit.sign().unsqueeze(1))


class Answers(nn.Module):
    """A model that answers in a container."""

    def __init__(self, inner, wrap):
        super().__init__()
        self.inner, self.wrap = inner, wrap

    def forward(self, x):
        return self.wrap(self.inner(x))


MAPS = torch.randn(2, 3, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def segmenter(wrap=lambda y: y):
    torch.manual_seed(0)
    return Answers(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).double(), wrap)


def masked(model, weights):
    leaf = MAPS.clone().requires_grad_()
    return torch.autograd.grad((model.inner(leaf) * weights).sum(), leaf)[0] * MAPS


REGIONS = {
    "mask": (lambda m: m, [slice(None)]),
    "mask a row": (lambda m: torch.stack((m, m.flip(0))), None),
    "slices": (lambda m: (slice(1, 4), slice(2, None)), None),
    "slice": (lambda m: slice(0, 2), None),
}


@pytest.mark.parametrize("wrap", [lambda y: y, lambda y: {"out": y, "aux": y * 2}], ids=["tensor", "as torchvision"])
@pytest.mark.parametrize("kind", REGIONS)
@pytest.mark.parametrize("a", [1, [2, 0]], ids=repr)
def test_a_class_summed_over_a_region(kind, a, wrap):
    mask = torch.rand(6, 5) > 0.5
    where = REGIONS[kind][0](mask)
    weights = torch.zeros(2, 3, 6, 5, dtype=torch.float64)
    for row, cls in enumerate(torch.as_tensor(a).expand(2).tolist()):
        if kind == "mask":
            weights[row, cls][mask] = 1
        elif kind == "mask a row":
            weights[row, cls][where[row]] = 1
        else:
            weights[row, cls][where] = 1
    model = segmenter(wrap)
    equal(lrp(model, MAPS, Region(a, where), EXACT), masked(model, weights))
    equal(
        explain(model, MAPS, Region(a, where), EXACT).explained,
        (model.inner(MAPS).detach() * weights).flatten(1).sum(1),
    )


def test_without_a_mask_the_region_is_where_the_class_is_predicted():
    model = segmenter()
    with torch.no_grad():
        # Each class is predicted somewhere.
        model.inner[2].bias -= model(MAPS).mean((0, 2, 3))
    predicted = F.one_hot(model(MAPS).argmax(1), 3).permute(0, 3, 1, 2).double()
    weights = predicted.clone()
    for row, cls in ((0, 0), (0, 2), (1, 0), (1, 1)):
        weights[row, cls] = 0
    assert weights.flatten(1).sum(1).min() > 0, "this case tests nothing"
    equal(lrp(model, MAPS, Region([1, 2]), EXACT), masked(model, weights))


def test_one_entry_of_a_nested_output():
    model = Answers(mlp(), lambda y: [{"scores": y[0], "labels": y[0].argmax()}, {"scores": y[1] * 2}])
    each = of_each_class(model.inner)
    expected = torch.zeros_like(X)
    expected[0] = each[0, 3]
    equal(lrp(model, X, Entry(0, "scores", 3), EXACT), expected)
    expected = torch.zeros_like(X)
    expected[1] = 2 * each[1].sum(0)
    equal(lrp(model, X, Entry(1, "scores"), EXACT), expected)


class Detector(nn.Module):
    """One box a cell, the best first, as detectors of torchvision answer: a list of images in, a list of dicts out."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(4, 5, 1)

    def forward(self, images):
        found = []
        for image in images:
            cells = self.head(F.relu(self.stem(image.unsqueeze(0))))[0].flatten(1).t()
            scores, order = cells[:, 4].sort(descending=True)
            keep = scores > 0
            found.append({"boxes": cells[order][keep, :4], "scores": scores[keep], "labels": order[keep] % 2})
        return found


def test_the_score_of_one_box_of_a_detector():
    torch.manual_seed(2)
    detector = Detector().double()
    images = [torch.rand(3, 9, 11, dtype=torch.float64), torch.rand(3, 7, 7, dtype=torch.float64)]
    leaves = [image.clone().requires_grad_() for image in images]
    score = detector(leaves)[1]["scores"][2]
    (gradient,) = torch.autograd.grad(score, leaves[1])
    found = explain(detector, (images,), Entry(1, "scores", 2), EXACT)
    equal(found.explained, score.detach())
    ((first, second),) = found.relevance
    assert not first.any()
    equal(second, gradient * images[1])
    assert 0 < int((gradient.sum(0) != 0).sum()) < 49, "the box sees its own part of the picture"
    with pytest.raises(ValueError, match=r"finds no entry 99 in output\[0\]\['scores'\].*is its threshold"):
        lrp(detector, (images,), Entry(0, "scores", 99), EXACT)


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (Difference(1, 2), "Difference(a=1, b=2)"),
        (Difference([1, 2], torch.tensor([0, 1])), "Difference(a=(1, 2), b=(0, 1))"),
        (Difference("cat", "dog"), "Difference(a='cat', b='dog')"),
        (AgainstOthers(range(2)), "AgainstOthers(a=(0, 1), strongest=None)"),
        (AgainstOthers(3, 5), "AgainstOthers(a=3, strongest=5)"),
        (SoftmaxGradient(3), "SoftmaxGradient(a=3)"),
        (Sign(), "Sign()"),
        (Entry(0, "scores", 3), "Entry(0, 'scores', 3)"),
        (Region(3, (slice(0, 2),)), "Region(3, (slice(0, 2, None),))"),
        (Region(3), "Region(3)"),
        (Region(3, torch.ones(4, 5)), "Region(3, <mask of shape (4, 5)>)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_targets_are_values_that_print_as_their_call(target, text):
    assert repr(target) == text
    if "<" not in text:
        again = eval(text)
        assert again == target
        assert repr(pickle.loads(pickle.dumps(target))) == text
    hash(target)


def test_several_targets_of_one_forward_pass():
    model = mlp()
    targets = [Difference(0, 1), 2, AgainstOthers(3), SoftmaxGradient(0)]
    for target, found in zip(targets, lrp_targets(model, X, targets, EXACT), strict=True):
        equal(found, lrp(model, X, target, EXACT))


WRONG = [
    (mlp(), X, Difference(0, 4), ValueError, r"target 4 is out of range for a model with 4 outputs"),
    (mlp(), X, Difference([0, 1], 2), ValueError, r"2 targets were given for 3 rows"),
    (mlp(), X, AgainstOthers(1.5), TypeError, r"a target is an integer or one integer a row, got 1\.5"),
    (mlp(1), X, AgainstOthers(0), ValueError, r"needs a class beside.*single output.*Sign\(\)"),
    (mlp(), X, Sign(), ValueError, r"Sign\(\) is for models with one output.*this one has 4"),
    (mlp(), X, Region(0), ValueError, r"Region\(0\) needs an output of shape \(rows, classes, \.\.\.\).*\(3, 4\)"),
    (segmenter(), MAPS, Difference(0, 1), ValueError, r"not \(rows, classes\)"),
    (segmenter(), MAPS, Region(3), ValueError, r"target 3 is out of range"),
    (segmenter(), MAPS, Region(0, torch.ones(4, 4)), ValueError, r"does not broadcast to the positions.*\(2, 6, 5\)"),
    (segmenter(), MAPS, Region(0, torch.zeros(6, 5)), ValueError, r"region of Region\(0, .* is empty in row 0"),
    (segmenter(), MAPS, Region(0, (1, 2)), TypeError, r"where of Region.* is a mask or slices of the 2 dimensions"),
    (segmenter(), MAPS, Region(0, (slice(2),) * 3), TypeError, r"slices of the 2 dimensions"),
    (mlp(), X, Entry(0, "scores"), ValueError, r"finds no entry 'scores' in output\[0\], which is a tensor of shape"),
    (Answers(mlp(), lambda y: [{"a": y}]), X, Entry(0, "b"), ValueError, r"'b' in output\[0\].*dict with the keys 'a'"),
    (Answers(mlp(), lambda y: [{"a": y}]), X, Entry(1), ValueError, r"no entry 1 in output, which is a list of length"),
    (Answers(mlp(), lambda y: [y.argmax(1), y]), X, Entry(0), TypeError, r"leads to a tensor of shape \(3,\).*int64"),
    (Answers(mlp(), lambda y: y / 0), X, Difference(0, 1), LRPError, r"output contains NaN or infinite values"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "x", "target", "error", "message"), WRONG, ids=lambda value: "")
def test_targets_that_the_output_does_not_have(model, x, target, error, message):
    with pytest.raises(error, match=rf"lrp: .*{message}"):
        lrp(model, x, target, EXACT)
