"""Recurrent layers of torch: stacked, in both directions, batch first, packed, projected, as single cells."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from benchmarks.zoo.case import Case, Subject

_LAYERS: dict[str, Callable[..., nn.Module]] = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN": nn.RNN,
    "RNN relu": partial(nn.RNN, nonlinearity="relu"),
}
_SETTINGS: dict[str, dict[str, Any]] = {
    "one layer": {},
    "stacked": {"num_layers": 3},
    "bidirectional": {"bidirectional": True},
    "stacked, bidirectional, batch first": {"num_layers": 2, "bidirectional": True, "batch_first": True},
    "no bias": {"bias": False},
    "dropout": {"num_layers": 2, "dropout": 0.5},
}


def subjects() -> list[Subject]:
    """Return each layer in each setting, padded and packed, and single cells."""
    found = []
    for layer in _LAYERS:
        found += [Subject("recurrent", f"{layer}, {s}", partial(_sequence, layer, s)) for s in _SETTINGS]
        found.append(Subject("recurrent", f"{layer}, packed", partial(_packed, layer, {"num_layers": 2})))
        found.append(
            Subject("recurrent", f"{layer}, packed, bidirectional", partial(_packed, layer, {"bidirectional": True}))
        )
    found.append(Subject("recurrent", "LSTM, projected", lambda: _case(nn.LSTM(6, 8, proj_size=5))))
    found.append(Subject("recurrent", "LSTM, given state", _given_state))
    found += [
        Subject("recurrent", f"{cell.__name__} in a loop", partial(_cells, cell))
        for cell in (nn.LSTMCell, nn.GRUCell, nn.RNNCell)
    ]
    found.append(Subject("recurrent", "tagger: convolution, BiLSTM, attention, Linear", _tagger))
    return found


def _case(layer: nn.Module) -> Case:
    return Case(layer, (torch.randn(5, 3, 6),), outputs=lambda output: output[0], rows=False)


def _sequence(layer: str, setting: str) -> Case:
    return _case(_LAYERS[layer](6, 8, **_SETTINGS[setting]))


class Packed(nn.Module):
    """A recurrent layer on rows of different lengths."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Pack, run, and pad again."""
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = self.layer(packed)
        padded: Tensor = pad_packed_sequence(output, batch_first=True)[0]
        return padded


def _packed(layer: str, setting: dict[str, Any]) -> Case:
    model = Packed(_LAYERS[layer](6, 8, batch_first=True, **setting))
    return Case(model, (torch.randn(3, 5, 6), torch.tensor([3, 5, 2])))


def _given_state() -> Case:
    state = (torch.randn(1, 3, 8), torch.randn(1, 3, 8))
    wrapped = StatefulLSTM()
    return Case(wrapped, (torch.randn(5, 3, 6), *state), explained=(0, 1, 2), rows=False)


class StatefulLSTM(nn.Module):
    """An LSTM whose first state is an input."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LSTM(6, 8)

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return outputs and the last state."""
        output, (h, c) = self.layer(x, (h, c))
        return output, h, c


class Loop(nn.Module):
    """A recurrent cell called step by step."""

    def __init__(self, cell: type[nn.Module]) -> None:
        super().__init__()
        self.cell = cell(6, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores after the last step."""
        state = None
        for step in x.unbind(1):
            state = self.cell(step, state)
        last: Tensor = state[0] if isinstance(state, tuple) else state
        scores: Tensor = self.head(last)
        return scores


def _cells(cell: type[nn.Module]) -> Case:
    return Case(Loop(cell), (torch.randn(3, 5, 6),))


class Tagger(nn.Module):
    """Convolution, a bidirectional LSTM, attention pooling and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(6, 8, 3, padding=1), nn.BatchNorm1d(8), nn.ReLU())
        self.layer = nn.LSTM(8, 8, batch_first=True, bidirectional=True)
        self.score = nn.Linear(16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores."""
        h, _ = self.layer(self.features(x.transpose(1, 2)).transpose(1, 2))
        weights = self.score(h).softmax(1)
        scores: Tensor = self.head((weights * h).sum(1))
        return scores


def _tagger() -> Case:
    return Case(Tagger(), (torch.randn(3, 7, 6),))
