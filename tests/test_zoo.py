"""A quick part of the zoo: tiny models of every source, measured as `python -m benchmarks.zoo` does."""

import pytest
import torch

import torchvision_shim  # noqa: F401  (before timm and torchvision)

# isort: split
from benchmarks.zoo import report
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
