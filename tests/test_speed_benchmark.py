"""`python -m benchmarks.speed` on a tiny model: what it measures and writes, not how long it took."""

import json

import pytest
import torch

import torchvision_shim  # noqa: F401  (before zennit, which imports torchvision)

# isort: split
from benchmarks.speed import subjects
from benchmarks.speed.__main__ import main

#: Other libraries warn of what they please.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(autouse=True)
def denormals():
    yield
    torch.set_flush_denormal(False)


def test_every_subject_is_measured(tmp_path, capsys):
    files = [tmp_path / name for name in ("speed.json", "speed.md", "speed.png")]
    options = ["--model", "tiny", "--quick", "--repeats", "2", "--batch", "2"]
    for name in subjects.SUBJECTS:
        options += ["--subject", name]
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
