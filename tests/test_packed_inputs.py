"""Packed sequences as inputs: relevance in a packed sequence of the same lengths and order."""

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import lrphooks
from lrphooks import Composite, baselines
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon

EPSILON = Composite([(AnyLinear, Epsilon(1e-3))])
LENGTHS = {True: [5, 3, 3, 1], False: [3, 1, 5, 3]}


class Last(nn.Module):
    """Scores of the last state of sequences; ``lengths`` if they come padded and are packed inside."""

    def __init__(self, lengths=None, enforce_sorted=True, scores=3):
        super().__init__()
        self.layer, self.head = nn.LSTM(5, 4), nn.Linear(4, scores)
        self.lengths, self.enforce_sorted = lengths, enforce_sorted

    def forward(self, x):
        if self.lengths is not None:
            x = packed(x, self.enforce_sorted)
        elif isinstance(x, dict):
            x = x["sequence"]
        out = self.head(self.layer(x)[1][0][-1])
        return out if out.shape[1] > 1 else out[:, 0]


def packed(x, enforce_sorted):
    return pack_padded_sequence(x, LENGTHS[enforce_sorted], batch_first=True, enforce_sorted=enforce_sorted)


@pytest.fixture(params=[True, False], ids=["sorted", "in any order"])
def setting(request):
    """A model of packed sequences, the same model of padded ones, and the input in both forms."""
    model, padded = Last().double(), Last(LENGTHS[request.param], request.param).double()
    padded.load_state_dict(model.state_dict())
    x = torch.randn(4, 5, 5, dtype=torch.float64)
    return model, padded, packed(x, request.param), x, request.param


def check(found, given, expected, enforce_sorted):
    assert type(found) is PackedSequence
    assert found.batch_sizes is given.batch_sizes
    assert found.sorted_indices is given.sorted_indices
    assert found.unsorted_indices is given.unsorted_indices
    expected = packed(expected, enforce_sorted).data
    assert expected.abs().sum() > 0
    torch.testing.assert_close(found.data, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("target", [None, 1, [0, 1, 2, 1]], ids=str)
def test_relevance_is_that_of_the_padded_sequence(setting, target):
    model, padded, given, x, enforce_sorted = setting
    expected = lrphooks.lrp(padded, x, target, EPSILON)
    check(lrphooks.lrp(model, given, target, EPSILON), given, expected, enforce_sorted)
    assert not given.data.requires_grad


def test_every_way_to_ask(setting):
    model, padded, given, x, enforce_sorted = setting
    expected = lrphooks.explain(padded, x, 1, EPSILON, record=["layer"])
    found = lrphooks.explain(model, given, 1, EPSILON, record=["layer"])
    check(found.relevance, given, expected.relevance, enforce_sorted)
    assert found.total == pytest.approx(expected.total, rel=1e-12)
    torch.testing.assert_close(found.recorded["layer"][0].data, expected.recorded["layer"][0].data)
    assert "PackedSequence" not in repr(found)
    for each, target in zip(lrphooks.lrp_targets(model, given, [0, 2], EPSILON), [0, 2], strict=True):
        check(each, given, lrphooks.lrp(padded, x, target, EPSILON), enforce_sorted)
    report, books = lrphooks.audit(model, given, 1, EPSILON), lrphooks.audit(padded, x, 1, EPSILON)
    assert report.unexplained < 1e-12
    assert report.relevance == pytest.approx(books.relevance, rel=1e-12)
    _, keyword = lrphooks.lrp(model, (), 1, EPSILON, kwargs={"x": given})
    check(keyword["x"], given, expected.relevance, enforce_sorted)
    inner = lrphooks.lrp(model, {"sequence": given, "name": "text"}, 1, EPSILON)
    check(inner["sequence"], given, expected.relevance, enforce_sorted)
    leaf = given._replace(data=given.data.clone().requires_grad_())
    with EPSILON.context(model):
        model(leaf)[:, 1].sum().backward()
    check(given._replace(data=leaf.data.grad), given, expected.relevance, enforce_sorted)


def test_baselines(setting):
    model, padded, given, x, enforce_sorted = setting
    expected = lrphooks.lrp(padded, x, 1, baselines.InputXGradient())
    check(lrphooks.lrp(model, given, 1, baselines.InputXGradient()), given, expected, enforce_sorted)


def test_one_value_a_sequence_is_known_as_such():
    """The rows of a packed sequence are its sequences, not its steps."""
    model, given = Last(scores=1).double(), packed(torch.randn(4, 5, 5, dtype=torch.float64), True)
    assert lrphooks.lrp(model, given, 0, EPSILON).data.shape == (12, 5)


class Packing(nn.Module):
    """Takes and returns packed sequences, as a whole model and as a part of one."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(5, 2, bias=False)

    def forward(self, x):
        return x._replace(data=self.layer(x.data))


def test_packed_outputs():
    model, given = Packing().double(), packed(torch.randn(4, 5, 5, dtype=torch.float64), False)
    found = lrphooks.explain(model, given, lambda out: out.data[:, 1], Composite([(AnyLinear, Epsilon(0))]), record="")
    torch.testing.assert_close(found.relevance.data, given.data * model.layer.weight.detach()[1])
    torch.testing.assert_close(found.recorded[""].data[:, 1], found.explained)
    assert found.recorded[""].batch_sizes is not None


def test_packed_token_ids_have_a_word_to_say():
    given = packed(torch.randn(4, 5, 5), True)
    with pytest.raises(lrphooks.LRPError, match=r"x has dtype torch\.int64, through which no relevance can flow"):
        lrphooks.lrp(Last(), given._replace(data=torch.ones(12, dtype=torch.long)), 0, EPSILON)
