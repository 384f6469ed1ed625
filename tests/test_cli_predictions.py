"""What a model answers, and which class --target means."""

import types

import pytest
import torch
from torch import nn

from lrphooks.cli.command import CommandError, UsageError
from lrphooks.cli.predictions import predict, targets_of
from lrphooks.models import PictureModel, Pixels

NAMES = ("tench", "crane", "tabby, tabby cat", "tiger cat", "crane", "7", "Eskimo dog")
X = torch.zeros(2, 1, 2, 2)


class Answers(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer


def model(answer, names=()):
    return PictureModel("m", Answers(answer), Pixels((2, 2), 2, (0.0,), (1.0,)), names)


@pytest.fixture
def prediction():
    logits = torch.tensor([[0.0, 1.0, 5.0, 2.0, 3.0, -1.0, 0.5], [9.0, 1.0, 5.0, 2.0, 3.0, -1.0, 0.5]])
    return predict(model(logits, NAMES), X)[0]


def test_a_prediction(prediction):
    probability = torch.tensor([0.0, 1.0, 5.0, 2.0, 3.0, -1.0, 0.5]).softmax(0)[2].item()
    assert prediction.predicted == 2
    assert str(prediction) == f"tabby, tabby cat (class 2), probability {probability:.4f}"
    first, second = prediction.to_dict(2)
    assert first == {"class": 2, "name": "tabby, tabby cat", "output": 5.0, "probability": pytest.approx(probability)}
    assert second["class"] == 4


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        (None, [2]),
        ("3", [3]),
        ("tiger cat", [3]),
        (" TENCH ", [0]),
        ("tabby, tabby cat", [2]),
        ("tench,3 , eskimo dog", [0, 3, 6]),
        ("0,tench", [0]),
        ("7", [5]),  # a name counts before a number
    ],
)
def test_targets(text, classes, prediction):
    assert targets_of(text, prediction) == classes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("crane", r"is the name of 2 classes of m: give the number, one of 1, 4\."),
        ("tiger cot", r"m has no class of that name\. Did you mean tiger cat"),
        ("cat", r"Did you mean .*tiger cat"),
        ("zebra", r"m has no class of that name\. Give its number, 0 to 6\."),
        ("8", "--target 8 is out of range: the classes of m are 0 to 6"),
        ("-1", "--target -1 is out of range"),
        ("tench,", "--target : m has no class of that name"),
    ],
)
def test_what_is_no_target(text, message, prediction):
    with pytest.raises(UsageError, match=message):
        targets_of(text, prediction)


def test_a_model_without_names_says_how_to_give_them():
    (prediction, _) = predict(model(torch.eye(2, 3)), X)
    assert str(prediction).startswith("0, probability")
    with pytest.raises(UsageError, match="Its classes have numbers alone, 0 to 2: give one, or names with --labels"):
        targets_of("cat", prediction)


def test_probabilities_are_taken_as_they_are():
    (prediction, _) = predict(model(torch.tensor([[0.25, 0.75], [0.5, 0.5]])), X)
    assert str(prediction) == "1, probability 0.7500"


@pytest.mark.parametrize("answer", [torch.tensor([[0.5], [1.0]]), torch.tensor([0.5, 1.0])])
def test_a_model_of_one_output_has_no_classes(answer):
    (prediction, _) = predict(model(answer), X)
    assert str(prediction) == "a model of one output, which has no classes"
    assert targets_of(None, prediction) == [0]
    assert prediction.to_dict()[0]["probability"] is None


def test_the_logits_of_transformers():
    (prediction, _) = predict(model(types.SimpleNamespace(logits=torch.eye(2))), X)
    assert prediction.predicted == 0


@pytest.mark.parametrize(
    ("answer", "names", "message"),
    [
        (
            torch.zeros(2, 3, 4, 4),
            (),
            r"m returns shape \(2, 3, 4, 4\) for an input of shape \(2, 1, 2, 2\), not one value a class",
        ),
        (torch.zeros(5, 3), (), r"m returns shape \(5, 3\) for an input"),
        ((torch.zeros(2, 3),), (), "m returns a tuple for an input"),
        (torch.zeros(2, 3), ("a", "b"), "m has 3 classes, and 2 names for them"),
    ],
)
def test_what_is_no_answer(answer, names, message):
    with pytest.raises(CommandError, match=message):
        predict(model(answer, names), X)


def test_a_network_that_fails_says_why_and_what_it_was_given():
    broken = PictureModel("m", nn.Linear(3, 2), Pixels((2, 2), 2, (0.0,), (1.0,)))
    with pytest.raises(CommandError, match=r"m failed on an input of shape \(2, 1, 2, 2\): RuntimeError: .*--size\?"):
        predict(broken, X)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_inputs_have_the_precision_of_the_network(dtype):
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).to(dtype)
    found = PictureModel("m", network, Pixels((2, 2), 2, (0.0,), (1.0,)))
    x = found.batch([torch.rand(1, 1, 2, 2), torch.rand(1, 1, 2, 2)])
    assert (x.dtype, x.shape) == (dtype, (2, 1, 2, 2))
    first, _ = predict(found, x)
    assert first.outputs.tolist() == network(x)[0].double().tolist()
    assert first.probabilities.sum().item() == pytest.approx(1, abs=1e-6)
