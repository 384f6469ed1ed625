"""`python -m benchmarks.speed` on a tiny model: what it measures and writes, not how long it took."""

import json
import math
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchvision_shim  # noqa: F401  (before zennit, which imports torchvision)

# isort: split
from benchmarks.speed import cases, growth, subjects
from benchmarks.speed.__main__ import main

import lrphooks
from lrphooks import composites
from lrphooks.engine.eager import EAGER

#: Other libraries warn of what they please.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def process(monkeypatch):
    """Leave the process of the tests as it is; yields whether memory was asked to be kept, each time it was."""
    asked = []
    monkeypatch.setattr("benchmarks.speed.__main__.keep_freed", lambda: asked.append(True) or True)
    yield asked
    torch.set_flush_denormal(False)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such option")
def test_freed_memory_is_kept():
    program = """
import resource, sys, torch
from benchmarks.speed.memory import keep_freed
if sys.argv[1] == "kept":
    assert keep_freed()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
# The first ones make the process grow.
print(min(faults() for _ in range(20)))
"""
    kept, returned = (
        int(subprocess.check_output([sys.executable, "-c", program, how], text=True, cwd=Path(__file__).parents[1]))
        for how in ("kept", "returned")
    )
    assert kept < 100 < returned


@pytest.mark.parametrize("option", [[], ["--returns"]], ids=["kept", "returned"])
def test_what_becomes_of_freed_memory_is_told(option, process, capsys):
    main(["--model", "tiny", "--quick", "--repeats", "1", "--subject", "lrphooks epsilon", *option])
    told = "freed memory returned to the system" if option else "freed memory kept by the process"
    assert told in capsys.readouterr().out
    assert len(process) == (not option)


def test_every_subject_is_measured(tmp_path, capsys):
    files = [tmp_path / name for name in ("speed.json", "speed.md", "speed.png")]
    options = ["--model", "tiny", "--quick", "--repeats", "2", "--batch", "2", "--subject", "all"]
    for option, file in zip(("--json", "--table", "--plot"), files, strict=True):
        options += [option, str(file)]
    assert main(options) == 0
    rows = {row["subject"]: row for row in json.loads(files[0].read_text())["rows"]}
    page = files[1].read_text()
    assert set(rows) == {"gradient", *subjects.SUBJECTS, "enter and leave a context"}
    assert page == capsys.readouterr().out.removesuffix("\n")
    for name, row in rows.items():
        assert f"| {name} |" in page
        if name.startswith("lrphooks"):
            assert not row["error"], row
            assert row["ratio"] > 0
            assert row["memory"] >= 0.5
        if name.startswith("zennit"):
            assert not row["error"], row
            assert row["difference"] < 1e-3
        if name.startswith("autoLRP"):
            assert not row["error"], row


def test_runs_are_joined_to_one_page(tmp_path, capsys):
    names, pages = ("a.json", "b.json", "page.md"), []
    first, second, page = (tmp_path / name for name in names)
    common = ["--quick", "--repeats", "1", "--subject", "lrphooks epsilon"]
    for model, file in (("tiny", first), ("LSTM", second)):
        assert main(["--model", model, *common, "--json", str(file)]) == 0
        pages.append(capsys.readouterr().out)
    assert main(["--growth", "targets", "--quick", "--repeats", "1", "--json", str(tmp_path / "c.json")]) == 0
    capsys.readouterr()
    joins = [f"--join={tmp_path / name}" for name in ("a.json", "b.json", "c.json")]
    assert main([*joins, "--table", str(page), "--json", str(tmp_path / "d.json")]) == 0
    text = page.read_text()
    assert capsys.readouterr().out == text + "\n"
    # Every line of figures is one of a run, but for the table of all models.
    lines = [line for line in text.splitlines() if line.startswith("| lrphooks epsilon |")]
    assert len(lines) == 3
    assert all(line in pages[0] + pages[1] for line in lines[1:])
    heads = [line for line in text.splitlines() if line.startswith("| | tiny | LSTM |")]
    assert len(heads) == 1
    assert text.count("- `python -m benchmarks.speed") == 3
    assert "## Growth with the targets" in text
    rows = [row for name in names[:2] for row in json.loads((tmp_path / name).read_text())["rows"]]
    assert json.loads((tmp_path / "d.json").read_text())["rows"] == rows


@pytest.mark.parametrize("case", cases.CASES.values(), ids=lambda case: case.name)
def test_what_is_timed_where_nothing_is_named(case):
    assert set(case.subjects) <= set(subjects.SUBJECTS)
    assert {"forward", "lrphooks LRP-0"} < set(case.subjects)


def test_compiled_relevance_is_measured_beside_compiled_gradients(tmp_path, monkeypatch):
    file = tmp_path / "speed.json"
    options = ["--model", "tiny", "--quick", "--repeats", "1", "--compile", "--json", str(file)]
    options += ["--subject", "lrphooks epsilon", "--subject", "lrphooks gamma"]
    open_contexts = []
    monkeypatch.setattr(torch, "compile", lambda graph, **_: open_contexts.append(EAGER._users) or graph)
    assert main(options) == 0
    # While a context is open, what is compiled would run as it is written.
    assert open_contexts
    assert not any(open_contexts)
    rows = {row["subject"]: row for row in json.loads(file.read_text())["rows"]}
    for subject in subjects.COMPILED:
        assert not rows[subject.name]["error"], rows[subject.name]
        assert rows[subject.name]["ratio"] > 0


def test_a_failing_subject_shows_its_error(monkeypatch, capsys):
    def broken(model, stack):
        raise RuntimeError("no such layer\nsecond line")

    monkeypatch.setitem(subjects.SUBJECTS, "captum epsilon", subjects.Subject("captum epsilon", "", "captum", broken))
    main(["--model", "tiny", "--quick", "--repeats", "1", "--subject", "captum epsilon"])
    assert "| captum epsilon | RuntimeError: no such layer |" in capsys.readouterr().out


def test_an_unequal_result_is_not_timed(monkeypatch):
    def wrong(model, stack):
        return torch.ones_like

    monkeypatch.setitem(subjects.SUBJECTS, "zennit epsilon", subjects.Subject("zennit epsilon", "epsilon", "z", wrong))
    with pytest.raises(AssertionError, match="zennit epsilon differs"):
        main(["--model", "tiny", "--quick", "--subject", "lrphooks epsilon", "--subject", "zennit epsilon"])


def test_growth_is_measured_at_every_value(tmp_path, capsys):
    files = [tmp_path / name for name in ("speed.json", "speed.png")]
    options = ["--quick", "--repeats", "2", "--json", str(files[0]), "--plot", str(files[1])]
    for name in growth.GROWTHS:
        options += ["--growth", name]
    assert main(options) == 0
    points = json.loads(files[0].read_text())["points"]
    page = capsys.readouterr().out
    for name, its in growth.GROWTHS.items():
        found = {}
        for point in points:
            if point["growth"] == name:
                found.setdefault(point["subject"], []).append(point["value"])
        assert set(found) >= {its.base, "lrp_targets" if name == "targets" else its.subjects[0]}
        assert all(tuple(values) == its.quick for values in found.values())
        assert f"## Growth with the {name}: {its.what}, " in page
    assert "lrphooks epsilon, checkpointed" in page
    assert files[1].stat().st_size > 10_000


def test_the_exponent_of_a_power_law():
    points = [growth.Point("depth", "", n, "a", 1.0, 1.0, 1.0, 3.0 * n**1.5, 1.0, 7 * n) for n in (1, 2, 8)]
    assert growth.exponent(points, "a", lambda p: p.seconds) == pytest.approx(1.5)
    assert growth.exponent(points, "a", lambda p: p.bytes) == pytest.approx(1.0)
    assert math.isnan(growth.exponent(points[:1], "a", lambda p: p.seconds))


@pytest.mark.parametrize("name", ["LSTM", "U-Net 3-D", "Llama-small", "BERT-base"])
def test_relevance_of_the_models_that_are_timed_is_conserved(name):
    # Without biases all of f(x) must come back under CP-LRP.
    case = cases.CASES[name]
    torch.manual_seed(0)
    model = cases.bert(64, layers=2, length=8) if name == "BERT-base" else None
    if name == "Llama-small":
        model = cases.llama(64, layers=2)
    model = case.model(case.quick).double() if model is None else model.eval().double()
    for key, parameter in model.named_parameters():
        if "bias" in key or "position_embeddings" in key or "token_type" in key:
            torch.nn.init.zeros_(parameter)
    for key, buffer in model.named_buffers():
        if "running_mean" in key:
            buffer.zero_()
    x = case.input(1, case.quick if name in ("LSTM", "U-Net 3-D") else 8).double()
    if name in ("Llama-small", "BERT-base"):
        x = x[..., :64]
    relevance = lrphooks.lrp(model, x, 1, composites.CPLRP(epsilon=0))
    # Llama turns to float32 for its norms.
    close = 1e-6 if name == "Llama-small" else 1e-10
    torch.testing.assert_close(relevance.sum(), model(x)[0, 1].detach(), rtol=close, atol=0)
