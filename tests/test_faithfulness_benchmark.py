"""`python -m benchmarks.faithfulness` on a tiny network: what it measures, keeps and writes."""

import json
import re

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import torchvision_shim  # noqa: F401  (before zennit, which imports torchvision)

# isort: split
from benchmarks.faithfulness import assets, networks
from benchmarks.faithfulness.__main__ import main
from benchmarks.faithfulness.methods import SUBJECTS

#: Other libraries warn of what they please.
pytestmark = pytest.mark.filterwarnings("ignore")


def tiny(count):
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(1, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 5),
    ).eval()
    x = 2.0 * torch.randn(400, 1, 12, 12)
    with torch.no_grad():
        logits = module(x)
        module[-1].bias -= logits.mean(0)
        y = module(x).argmax(1)
    # One picture of each class after the other, as mosaics want several.
    turn = torch.stack([(y[:i] == y[i]).sum() for i in range(len(y))]).argsort(stable=True)
    x, y = x[turn], y[turn]
    low, high = torch.full((1, 1, 1, 1), -12.0), torch.full((1, 1, 1, 1), 12.0)
    return networks.Network("tiny", module, x, y, low, high, patch=4)


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny)
    places = {name: tmp_path / f"{name}.out" for name in ("results", "table")} | {"plot": tmp_path / "plot.png"}
    options = ["--network", "tiny", "--images", "6", "--mosaics", "1", "--steps", "3"]

    def call(*more):
        assert main([*options, *more, *(part for k, v in places.items() for part in (f"--{k}", str(v)))]) == 0
        return places

    yield call
    torch.set_flush_denormal(False)


def rows_of(places):
    return {row["method"]: row for row in map(json.loads, places["results"].read_text().splitlines())}


def test_every_method_is_measured_and_listed_once(run):
    places = run()
    rows, page = rows_of(places), places["table"].read_text()
    assert list(rows) == [subject.name for subject in SUBJECTS]
    assert {row["error"] for row in rows.values()} == {""}
    for name, row in rows.items():
        assert len(row["gain"]) == 6
        assert len(row["pointing"]) == (0 if name == "occlusion" else 4)
        gain = np.array(row["gain"])
        (line,) = [
            line for line in page.splitlines() if line.split("|")[1:2] and line.split("|")[1].strip(" *") == name
        ]
        assert f"| {gain.mean():.3f} ± {stats.sem(gain):.3f} |" in line
    peers = {name: row["gain"] for name, row in rows.items() if row["family"] != "lrphooks"}
    best = max(peers, key=lambda name: np.mean(peers[name]))
    test = stats.ttest_rel(rows["GammaDecay"]["gain"], peers[best])
    low, high = test.confidence_interval(0.95)
    assert f"| {np.mean(rows['GammaDecay']['gain']) - np.mean(peers[best]):+.3f} ({low:+.3f} to {high:+.3f}) |" in page
    chosen = rows["GammaDecay tuned against 5"]["chosen"]
    assert re.fullmatch(r"first=[\d.]+, last=[\d.]+, sums=(None|10\.0) \(on 6 pictures\)", chosen)
    assert f"GammaDecay tuned against 5: {chosen}." in page
    assert places["plot"].stat().st_size > 10_000
    assert "`python -m benchmarks.faithfulness --network tiny --images 6 --mosaics 1 --steps 3`" in page
    assert str(places["table"].parent) not in page


def test_zennits_preset_agrees_with_ours(run):
    rows = rows_of(run("--method", "*EpsilonPlus", "--method", "*EpsilonGammaBox"))
    for name in ("EpsilonPlus", "EpsilonGammaBox"):
        assert rows[name]["gain"] == pytest.approx(rows[f"zennit {name}"]["gain"], abs=0.02)


def test_a_run_goes_on_where_it_was(run, capsys):
    run("--method", "chance")
    kept = run("--method", "chance", "--method", "gradient")["results"].read_text()
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["tiny, chance", "tiny, gradient"]
    assert len(kept.splitlines()) == 2
    run("--report")
    assert rows_of(run("--report")).keys() == {"chance", "gradient"}


def test_pictures_for_tuning_are_held_apart(monkeypatch):
    monkeypatch.setitem(networks.NETWORKS, "tiny", tiny)
    reported = networks.load("tiny", 400)
    tuned = reported.apart
    assert len(reported.x) == 300
    assert len(tuned.x) == 100
    assert not (reported.x[:, None] == tuned.x[None]).flatten(2).all(2).any()


def test_the_cache_is_where_it_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("LRPHOOKS_CACHE", str(tmp_path / "named"))
    assert assets.cache() == tmp_path / "named"
    monkeypatch.delenv("LRPHOOKS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert assets.cache() == tmp_path / "lrphooks"
