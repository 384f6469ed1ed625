"""Messages name the line of the user's model, wherever its files lie."""

import importlib.util
import re
import warnings

import pytest
import torch

from lrphooks import Composite, LRPError, UnmatchedError, UnmatchedWarning, compiled, lrp
from lrphooks.composites import AttnLRP
from lrphooks.matching import AnyLinear, Convolution
from lrphooks.rules import Epsilon, ZPlus

MODEL = """\
import torch
from torch import nn


class Mystery(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return torch.cholesky_inverse(self.layer(x))


class Asking(nn.Linear):
    def forward(self, x):
        z = super().forward(x)
        return z if z.sum().item() > 0 else -z


def explained(composite, model, x):
    with composite.context(model):
        return model(x.requires_grad_())
"""


@pytest.fixture(params=["lrphooks", "torch", "lrphooks/src/lrphooks/engine", "site-packages/torch/nn", "plain"])
def user(request, tmp_path):
    """A module of a user, in a folder that may have the name of a package that it uses."""
    place = tmp_path / request.param / "model.py"
    place.parent.mkdir(parents=True)
    place.write_text(MODEL)
    spec = importlib.util.spec_from_file_location("model_of_a_user", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def line(user, text):
    return 1 + next(i for i, code in enumerate(MODEL.splitlines()) if text in code)


def test_an_error_names_the_line_of_the_model(user):
    expected = re.escape(f"{user.__file__}:{line(user, 'cholesky_inverse')}")
    with pytest.raises(UnmatchedError, match=expected):
        lrp(user.Mystery(), torch.randn(4, 4), lambda output: output.sum(), Composite([(AnyLinear, Epsilon())]))


@pytest.mark.parametrize("composite", [Composite([(AnyLinear, Epsilon())]), Composite([(Convolution, ZPlus())])])
def test_a_warning_points_at_the_line_of_the_user(user, composite):
    """At the operation that has no rule, and at the with statement whose model has a layer without a rule."""
    composite = Composite(composite.entries, unmatched="warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        user.explained(composite, user.Mystery(), torch.randn(4, 4))
    places = [(w.filename, w.lineno) for w in caught if w.category is UnmatchedWarning]
    where = {"cholesky_inverse", "with composite"} if composite.entries[0][0] is Convolution else {"cholesky_inverse"}
    assert set(places) == {(user.__file__, line(user, text)) for text in where}


def test_a_graph_that_cannot_be_names_the_line_that_asks_for_values(user):
    expected = re.escape(f"{user.__file__}:{line(user, 'item()')}")
    with pytest.raises(LRPError, match=expected):
        compiled(user.Asking(4, 3), AttnLRP())(torch.randn(2, 4), 0)
