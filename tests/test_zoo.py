"""A quick part of the zoo: tiny models of every source, measured as `python -m benchmarks.zoo` does."""

import pytest
import torch

import torchvision_shim  # noqa: F401  (before timm and torchvision)

# isort: split
from benchmarks.zoo import report
from benchmarks.zoo.__main__ import Job, _batches
from benchmarks.zoo.measure import measure
from benchmarks.zoo.subjects import subjects

#: Other libraries warn of what they please.
pytestmark = pytest.mark.filterwarnings("ignore")

#: Models by source, each a second or less.
QUICK = {
    "timm": ["test_resnet", "test_vit", "test_efficientnet"],
    "torchvision": ["squeezenet1_1"],
    "transformers": ["llama, sdpa", "bert, eager"],
    "keras": ["residual.keras"],
    "recurrent": ["GRU, stacked, bidirectional, batch first", "LSTM, packed"],
    "spatial": ["U-Net 3-D, transposed, batch norm"],
    "graphs": ["message passing, index_add"],
    "plain": ["TransformerEncoder, gelu, norm first", "mixture of experts, top 2", "SwiGLU and RMSNorm written out"],
}


@pytest.mark.parametrize(("source", "name"), [(source, name) for source in QUICK for name in QUICK[source]])
def test_nothing_is_lost(source, name, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    subject = next(s for s in subjects(source) if s.name == name)
    try:
        row = measure(subject)
    finally:
        torch.set_flush_denormal(False)
    assert report.faults(row.as_dict()) == []
    assert row.conserved <= 1e-6
    assert row.identical


# --- the table ---


def table(rows, tmp_path):
    report.write(rows, tmp_path / "coverage.md")
    return (tmp_path / "coverage.md").read_text(encoding="utf-8")


GOOD = {
    "by": "lrphooks",
    "unexplained": 1e-16,
    "unexplained32": 1e-7,
    "conserved": 0.0,
    "identical": True,
    "ratio": 2.0,
}


def test_what_was_not_run_says_so(tmp_path):
    rows = [
        {**GOOD, "key": "timm/b", "place": 1, "engine": "abc"},
        {**GOOD, "key": "timm/a", "place": 0, "engine": "abc"},
        {"key": "timm/a", "by": "zennit", "conserved": 0.5, "ratio": 3.0},
        {"key": "timm/b", "by": "captum", "error": "TypeError: no rule"},
        {"key": "transformers/c", "by": "lxt", "error": "took longer than 60 s"},
        {**GOOD, "key": "transformers/c", "place": 2, "engine": "abc"},
    ]
    text = table(rows, tmp_path)
    assert "| a | 1e-16 | 1e-07 | 0 | yes | 2.0× | 5e-01 | not run | – |" in text
    assert "| b | 1e-16 | 1e-07 | 0 | yes | 2.0× | not run | TypeError | – |" in text
    assert "| c | 1e-16 | 1e-07 | 0 | yes | 2.0× | not run | not run | took longer than 60 s |" in text
    assert text.index("| a |") < text.index("| b |") < text.index("| c |")
    assert "| zennit | 3 | 2 | 0 | 1 | 0 | 3.0× |" in text
    assert "lrphooks was measured at abc." in text


def test_rows_of_another_commit_and_entries_of_their_own_are_told(tmp_path):
    rows = [
        {**GOOD, "key": "timm/a", "engine": "abc"},
        {**GOOD, "key": "timm/b", "engine": "abc"},
        {**GOOD, "key": "timm/c", "engine": "def", "entries": ["(Own, Identity())"], "refused": "UnmatchedError: Own"},
        {**GOOD, "key": "timm/d", "engine": "def", "unexplained": 1e-3},
    ]
    text = table(rows, tmp_path)
    assert "measured at several commits: 2 models at abc (2 of timm); 2 models at def (2 of timm)." in text
    assert "- **timm/c**: `(Own, Identity())`; without it UnmatchedError: Own" in text
    assert "- **timm/d**: unexplained 1.0e-03" in text


def test_small_models_share_a_process_and_large_ones_do_not():
    jobs = [Job(i, "plain", f"plain/{i}", "lrphooks") for i in range(30)]
    jobs += [Job(i, "timm", f"timm/{i // 2}", str(i % 2)) for i in range(4)]
    assert [len(batch) for batch in _batches(jobs)] == [24, 6, 2, 2]
