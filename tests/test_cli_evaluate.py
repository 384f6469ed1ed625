"""The command `lrphooks evaluate`."""

import json
import os

import numpy as np
import pytest
import torch
from scipy import stats

from lrphooks import composites
from lrphooks.cli import main
from lrphooks.digits import images, load_image, load_network
from lrphooks.evaluation import Blur, SymmetricRelevanceGain

FOLDER = str(next(iter(images())).parent)
PATHS = sorted(images())
METRIC = SymmetricRelevanceGain(patch=2, infill=Blur(1.25), steps=5)
ARGUMENTS = ["evaluate", FOLDER, "--steps", "5", "--composite", "EpsilonPlus", "--composite", "AttnLRP"]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def gains(composite):
    network, x = load_network(), torch.cat([load_image(path) for path in PATHS])
    return METRIC(network, x, None, composite).values


def test_the_table_is_that_of_the_metric(tmp_path, capsys):
    assert main(ARGUMENTS) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == [
        "model       digits, which comes with the package",
        f"metric      {METRIC!r}",
        "pictures    5",
        "kept in     evaluation.jsonl",
    ]
    found = {name: gains(getattr(composites, name)()) for name in ("EpsilonPlus", "AttnLRP")}
    best, other = sorted(found, key=lambda name: -found[name].mean())
    assert lines[-2].split() == [best, f"{found[best].mean():.4f}", f"{stats.sem(found[best]):.4f}"]
    test = stats.ttest_rel(found[other], found[best])
    interval = test.confidence_interval(0.95)
    apart = [f"{np.mean(found[other] - found[best]):+.4f}", f"{interval.low:+.4f}", "to", f"{interval.high:+.4f}"]
    assert lines[-1].split() == [other, f"{found[other].mean():.4f}", f"{stats.sem(found[other]):.4f}", *apart]


def test_json_has_the_same_numbers(capsys):
    assert main([*ARGUMENTS, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["metric"] == repr(METRIC)
    assert printed["pictures"] == 5
    means = {row["composite"]: row["mean"] for row in printed["composites"]}
    assert means == pytest.approx({name: gains(getattr(composites, name)()).mean() for name in means}, rel=1e-5)


def test_results_are_kept_and_not_measured_again(tmp_path, capsys, monkeypatch):
    main(ARGUMENTS)
    lines = (tmp_path / "evaluation.jsonl").read_text().splitlines()
    assert len(lines) == 10
    # A run that was stopped after seven results.
    (tmp_path / "evaluation.jsonl").write_text("\n".join(lines[:7]) + "\n")
    calls = []
    monkeypatch.setattr(
        SymmetricRelevanceGain, "_judge", lambda *a, judge=SymmetricRelevanceGain._judge: calls.append(1) or judge(*a)
    )
    first = capsys.readouterr().out
    assert main(ARGUMENTS) == 0
    assert len(calls) == 3
    assert capsys.readouterr().out == first
    assert main([*ARGUMENTS, "--steps", "4"]) == 0
    assert len(calls) == 13


def test_the_curves_are_drawn(tmp_path):
    assert main([*ARGUMENTS, "--plot", "curves.png"]) == 0
    assert (tmp_path / "curves.png").stat().st_size > 10_000


def test_a_picture_that_fails_does_not_stop_the_others(tmp_path, capsys):
    (tmp_path / "broken.png").write_text("no picture")
    assert main(["evaluate", "broken.png", str(PATHS[0]), *ARGUMENTS[2:]]) == 1
    printed = capsys.readouterr()
    assert "broken.png could not be read as a picture" in printed.err
    assert "pictures    1" in printed.out


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--patch", "99"], 2, "--patch 99 is larger than the input of the model, (28, 28)"),
        (["--target", "3,4"], 2, "--target 3,4 names 2 classes, and evaluate takes one"),
        (["--results", "missing/file.jsonl"], 1, "the result could not be kept"),
        (["--results", "text.jsonl"], 1, "text.jsonl is there, but holds no results of lrphooks evaluate"),
        (["--plot", "curves.what"], 1, "the plot could not be written"),
        (["--plot", "pipe.png"], 1, "the plot could not be written: pipe.png: there is a pipe of that name"),
        (["--results", "pipe.png"], 1, "pipe.png is there, but holds no results of lrphooks evaluate (it is a pipe)"),
        (["--results", "n" * 300], 1, "the result could not be kept"),
    ],
)
def test_what_goes_wrong_is_said(more, status, message, tmp_path, capsys):
    (tmp_path / "text.jsonl").write_text("{}\n")
    os.mkfifo(tmp_path / "pipe.png")
    assert main(["evaluate", str(PATHS[0]), *ARGUMENTS[2:], *more]) == status
    assert message in capsys.readouterr().err


def test_a_picture_that_the_network_cannot_explain_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    class Particular(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = load_network()
            self.register_buffer("first", load_image(PATHS[0]))

        def forward(self, x):
            return self.inner(x) / (~(x == self.first).flatten(1).all(1)).float().unsqueeze(1)

    monkeypatch.setattr("lrphooks.digits.load_network", Particular)
    assert main(ARGUMENTS) == 1
    printed = capsys.readouterr()
    assert f"pictures    {len(PATHS) - 1}" in printed.out
    assert len(printed.err.splitlines()) == 1
    assert printed.err.startswith(f"lrphooks: error: {PATHS[0]}: ")
