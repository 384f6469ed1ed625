"""The audit of models in which masked rows are no numbers before they are filled."""

import math

import pytest
import torch
from torch import nn

from lrphooks import audit, composites

SEEN = torch.ones(4, 4).tril().bool()
SEEN[0] = False
GONE = ~SEEN
LOW = float("-inf")


def setting(scores, where, value):
    scores = scores.clone()
    scores[where.expand_as(scores)] = value
    return scores


def by_hand(scores):
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


#: Attention weights whose first row is masked wholly: no number, and then filled with 0.
WEIGHTS = {
    "masked_fill": lambda s: s.masked_fill(GONE, LOW).softmax(-1).masked_fill(GONE, 0.0),
    "masked_fill_": lambda s: (1 * s).masked_fill_(GONE, LOW).softmax(-1).clone().masked_fill_(GONE, 0.0),
    "nan_to_num": lambda s: torch.nan_to_num(s.masked_fill(GONE, LOW).softmax(-1)),
    "where": lambda s: torch.where(
        SEEN.any(1)[:, None], torch.where(SEEN, s, s.new_tensor(LOW)).softmax(-1), s.new_zeros(())
    ),
    "setitem": lambda s: setting(setting(s, GONE, LOW).softmax(-1), GONE, 0.0),
    "scaled after": lambda s: torch.nan_to_num((s.masked_fill(GONE, LOW) / 2 * 2 + 1.0 - 1.0).softmax(-1)),
    "dropout after": lambda s: torch.nan_to_num(
        nn.functional.dropout(s.masked_fill(GONE, LOW).softmax(-1), 0.5, training=False)
    ),
    "log_softmax": lambda s: torch.nan_to_num(s.masked_fill(GONE, LOW).log_softmax(-1).exp()),
    "by hand": lambda s: torch.nan_to_num(by_hand(s.masked_fill(GONE, LOW))),
}


#: What by convention is a constant, and a softmax only where that has a rule.
WRITTEN_OUT = (WEIGHTS["log_softmax"], WEIGHTS["by hand"])


class Attention(nn.Module):
    def __init__(self, weights):
        super().__init__()
        self.weights = weights
        self.project, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.head((self.weights(x @ self.project(x).transpose(1, 2)) @ x).mean(1))


def cut(scores):
    """The same without the row: what a model computes that never meets a value that is no number."""
    rest = scores[:, 1:].masked_fill(GONE[1:], -1e6).softmax(-1)
    return torch.cat([torch.zeros(2, 1, 4, dtype=scores.dtype), rest], 1)


@pytest.mark.parametrize("composite", [composites.AttnLRP(), composites.CPLRP(), composites.EpsilonPlus()], ids=repr)
@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS)
def test_the_books_are_those_of_the_model_without_the_masked_row(weights, composite):
    model, x = Attention(weights).double(), torch.randn(2, 4, 8, dtype=torch.float64)
    twin = Attention(cut).double()
    twin.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x), twin(x))
    found, expected = (audit(each, x, 0, composite) for each in (model, twin))
    assert found.unexplained < 1e-12
    assert not found.imbalances
    if weights not in WRITTEN_OUT or composite == composites.AttnLRP():
        assert found.relevance == pytest.approx(expected.relevance, rel=1e-9)
        for name in {*found.sinks, *expected.sinks}:
            assert found.sinks.get(name, 0.0) == pytest.approx(expected.sinks.get(name, 0.0), rel=1e-9, abs=1e-12)


def test_relevance_that_is_no_number_is_not_explained_away():
    """Where a quotient by 0 is filled, the derivative of what it divides is no number, and neither is relevance."""

    class Quotient(nn.Module):
        def forward(self, x):
            return torch.nan_to_num(x / x.new_tensor([0.0, 1.0, 2.0]), posinf=0.0, neginf=0.0)

    report = audit(Quotient(), torch.randn(2, 3), lambda out: out.sum(1))
    assert math.isnan(report.relevance)
    assert math.isnan(report.unexplained)
