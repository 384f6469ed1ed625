"""Composites and other methods as they are named on the command line."""

from pathlib import Path

import pytest
import torch

from lrphooks import Composite, baselines, composites
from lrphooks.cli.command import CommandError, UsageError
from lrphooks.cli.methods import METHODS, PRESETS, conserves, described, documented, method
from lrphooks.models import PictureModel, Pixels, digit_model

DIGITS = digit_model()
COLOURED = PictureModel("coloured", DIGITS.network, Pixels((8, 8), 8, (0.1, 0.2, 0.3), (0.5, 0.5, 0.25)))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("EpsilonPlus", composites.EpsilonPlus()),
        (" EpsilonPlus(0.1) ", composites.EpsilonPlus(0.1)),
        ("EpsilonPlus(stabilizer=1e-3)", composites.EpsilonPlus(stabilizer=1e-3)),
        ("EpsilonGammaBox", composites.EpsilonGammaBox(0.0, 1.0)),
        ("EpsilonGammaBox(gamma=0.5)", composites.EpsilonGammaBox(0.0, 1.0, gamma=0.5)),
        ("EpsilonGammaBox(low=-1, high=2.5)", composites.EpsilonGammaBox(-1, 2.5)),
        ("IntegratedGradients(steps=8)", baselines.IntegratedGradients(steps=8)),
        ("Occlusion(window=(4, 4), stride=2)", baselines.Occlusion((4, 4), 2)),
        (
            "SmoothGrad(EpsilonPlus(epsilon=0.5), samples=3)",
            baselines.SmoothGrad(composites.EpsilonPlus(0.5), samples=3),
        ),
        ("SmoothGrad(InputXGradient)", baselines.SmoothGrad(baselines.InputXGradient())),
    ],
)
def test_a_name_with_arguments(text, expected):
    assert method(text).make(DIGITS) == expected
    assert method(text).text == text.strip()


def test_the_bounds_of_the_box_may_differ_between_channels():
    low, high = torch.tensor([-0.2, -0.4, -1.2]), torch.tensor([1.8, 1.6, 2.8])
    (_, box), *_ = method("EpsilonGammaBox").make(COLOURED).entries
    torch.testing.assert_close(box.low, low)
    torch.testing.assert_close(box.high, high)
    (_, box), *_ = method("EpsilonGammaBox(low=[-1, -2, -3], high=(1, 2, 3))").make(COLOURED).entries
    assert box.low.tolist() == [-1, -2, -3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("EpsilonPlusFlatt", "there is no composite 'EpsilonPlusFlatt'. Did you mean EpsilonPlusFlat"),
        ("Nonsense()", "There are EpsilonPlus, .*lrphooks composites describes"),
        ("EpsilonPlus(gamma=1)", r"unexpected keyword argument 'gamma'\. It is EpsilonPlus\(epsilon=1e-06, stab"),
        ("EpsilonPlus(1, 2, 3)", "too many positional arguments"),
        ("EpsilonPlus(layers=[])", "layers can only be given in Python"),
        ("EpsilonPlus(epsilon=-1)", r"--composite EpsilonPlus\(epsilon=-1\): .*-1"),
        ("Occlusion", "window"),
        ("EpsilonGammaBox(low=2, high=1)", "low is above high"),
        ("EpsilonPlus(", "is not of the form NAME"),
        ("", "is not of the form NAME"),
        ("a.b", "is not of the form NAME"),
        ("EpsilonPlus(**{'epsilon': 1})", "unexpected keyword argument 'None'"),
        ("EpsilonPlus(epsilon=__import__('os').getpid())", "is not of the form NAME"),
        ("EpsilonPlus(epsilon=2**9**9)", "neither a number nor a text"),
        ("__import__('os')", "there is no composite '__import__'"),
        ("(lambda: 1)()", "is not of the form NAME"),
    ],
)
def test_what_names_no_method(text, message):
    with pytest.raises(UsageError, match=message):
        method(text).make(DIGITS)


@pytest.fixture
def rules(tmp_path, monkeypatch):
    """A module in the current directory, of a name that no other test imports."""
    monkeypatch.chdir(tmp_path)
    name = f"rules_{abs(hash(tmp_path))}"
    Path(f"{name}.py").write_text(
        "from lrphooks.composites import AttnLRP\n"
        "value = AttnLRP(0.25)\n"
        "def made():\n    return AttnLRP(0.5)\n"
        "def broken():\n    return 1 / 0\n"
        "number = 3\n"
    )
    return name


def test_a_composite_of_ones_own(rules):
    assert method(f"{rules}:value").make(DIGITS) == composites.AttnLRP(0.25)
    assert method(f"{rules}:made").make(DIGITS) == composites.AttnLRP(0.5)


@pytest.mark.parametrize(
    ("attribute", "kind", "message"),
    [
        ("broken", CommandError, r"broken\(\) raised ZeroDivisionError"),
        ("number", CommandError, "is a int, neither a lrphooks.Composite"),
        ("missing", UsageError, "has no 'missing' for the composite"),
    ],
)
def test_what_is_no_composite_of_ones_own(attribute, kind, message, rules):
    with pytest.raises(kind, match=message):
        method(f"{rules}:{attribute}").make(DIGITS)


def test_every_method_is_described_as_it_can_be_called():
    for name in METHODS:
        # The model itself cannot be written; its bounds can.
        text = described(name).replace("(model=<the model's>, ", "(").replace("=<the model's>", "=0.0")
        text = text.replace("window", "window=3")
        made = method(text.replace("high=0.0", "high=1.0")).make(DIGITS)
        plain = method("Occlusion(3)" if name == "Occlusion" else name).make(DIGITS)
        assert made == plain
        about, paper = documented(name)
        assert about.endswith(".")
        assert any(character.isdigit() for character in paper), "a paper has a year"


def test_only_rules_of_lrp_conserve():
    conserving = {name for name in PRESETS if conserves(method(name).make(DIGITS))}
    assert set(PRESETS) - conserving == {"GuidedBackprop", "DeconvNet"}
    assert not conserves(baselines.Gradient())
    assert isinstance(composites.EpsilonPlus(), Composite)
