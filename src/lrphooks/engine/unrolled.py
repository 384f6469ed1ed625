"""Recurrent layers written out cell by cell, in torch's documented equations."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: What a cell remembers: (h, c) of an LSTM, (h,) of the others.
State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]


def cell(name: str, arguments: dict[str, Any]) -> State:
    """Return the next state of a single cell."""
    weights = [arguments.get(key) for key in ("w_ih", "w_hh", "b_ih", "b_hh")]
    return _STEPS[name](*weights)(arguments["input"], states_in(arguments["hx"]))


def layers(name: str, arguments: dict[str, Any]) -> State:
    """Return the output sequence and the last state of a stack of layers in one or both directions."""
    packed, batch_first = "batch_sizes" in arguments, arguments.get("batch_first", False)
    if packed:
        inputs = arguments["data"].split(arguments["batch_sizes"].tolist())
    else:
        inputs = arguments["input"].unbind(1 if batch_first else 0)
    initial = states_in(arguments["hx"])
    directions = 2 if arguments["bidirectional"] else 1
    params, cells = arguments["params"], arguments["num_layers"] * directions
    each = len(params) // cells
    last: list[State] = []
    for layer in range(arguments["num_layers"]):
        sequences = []
        for direction in range(directions):
            index = layer * directions + direction
            step = _STEPS[name](*weights_in(params[index * each : (index + 1) * each], arguments["has_biases"]))
            run = _backwards if direction else _forwards
            outputs, state = run(step, inputs, tuple(s[index] for s in initial))
            sequences.append(outputs)
            last.append(state)
        inputs = sequences[0] if directions == 1 else [torch.cat(pair, -1) for pair in zip(*sequences, strict=True)]
    output = torch.cat(tuple(inputs)) if packed else torch.stack(tuple(inputs), 1 if batch_first else 0)
    return output, *(torch.stack(parts) for parts in zip(*last, strict=True))


def states_in(hx: Any) -> State:
    """Return the states that a call was given, one or more."""
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def weights_in(params: Sequence[Tensor], has_biases: bool) -> tuple[Tensor | None, ...]:
    """Return w_ih, w_hh, b_ih, b_hh and, where there is one, the projection."""
    biases = params[2:4] if has_biases else (None, None)
    return *params[:2], *biases, *params[4 if has_biases else 2 :]


def _forwards(step: Step, inputs: Sequence[Tensor], state: State) -> tuple[list[Tensor], State]:
    """Run along the sequence; rows, the longest first, leave when theirs ends."""
    outputs, ended = [], []
    for x in inputs:
        rows = x.shape[0]
        if rows < state[0].shape[0]:
            ended.append(tuple(s[rows:] for s in state))
            state = tuple(s[:rows] for s in state)
        state = step(x, state)
        outputs.append(state[0])
    if ended:
        state = tuple(torch.cat(parts) for parts in zip(state, *reversed(ended), strict=True))
    return outputs, state


def _backwards(step: Step, inputs: Sequence[Tensor], initial: State) -> tuple[list[Tensor], State]:
    """Run against the sequence; rows join where theirs ends, by a step of their own while their state is constant."""
    outputs = []
    rows = inputs[-1].shape[0]
    state = tuple(s[:rows] for s in initial)
    for x in reversed(inputs):
        joining = slice(rows, x.shape[0])
        steps = [step(x[:rows], state)]
        if x.shape[0] > rows:
            steps.append(step(x[joining], tuple(s[joining] for s in initial)))
            rows = x.shape[0]
        state = steps[0] if len(steps) == 1 else tuple(torch.cat(parts) for parts in zip(*steps, strict=True))
        outputs.append(state[0])
    return outputs[::-1], state


# --- cells ---


def joint(
    w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None = None, b_hh: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return weight and bias of w_ih x + b_ih + w_hh h + b_hh as one linear map of (x, h)."""
    biases = [b for b in (b_ih, b_hh) if b is not None]
    return torch.cat((w_ih, w_hh), 1), reduce(torch.add, biases) if biases else None


def _linear(*weights: Any) -> Callable[[Tensor, Tensor], Tensor]:
    weight, bias = joint(*weights)
    return lambda x, h: F.linear(torch.cat((x, h), -1), weight, bias)


def _lstm(
    w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None, projection: Tensor | None = None
) -> Step:
    """Return c' = c * f + g * i, h' = tanh(c') * o, projected where the layer is told to."""
    linear = _linear(w_ih, w_hh, b_ih, b_hh)

    def step(x: Tensor, state: State) -> State:
        h, c = state
        i, f, g, o = linear(x, h).chunk(4, -1)
        # Signals come first, so that TakesAll() means them.
        c = c * f.sigmoid() + g.tanh() * i.sigmoid()
        h = c.tanh() * o.sigmoid()
        return h if projection is None else F.linear(h, projection), c

    return step


def _gru(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> Step:
    """Return n = tanh(w_in x + (w_hn h) * r), h' = n * (1 - z) + h * z."""
    size = w_hh.shape[1]
    gates, news = zip(
        *((None, None) if p is None else p.split((2 * size, size)) for p in (w_ih, w_hh, b_ih, b_hh)), strict=True
    )
    linear = _linear(*gates)

    def step(x: Tensor, state: State) -> State:
        (h,) = state
        r, z = linear(x, h).chunk(2, -1)
        n = F.linear(x, news[0], news[2]) + F.linear(h, news[1], news[3]) * r.sigmoid()
        # sigmoid(-z) is 1 - sigmoid(z), and a gate like any other.
        return (n.tanh() * (-z).sigmoid() + h * z.sigmoid(),)

    return step


def _rnn(activation: Callable[[Tensor], Tensor]) -> Callable[..., Step]:
    """Return the maker of h' = activation(w_ih x + w_hh h)."""

    def make(*weights: Any) -> Step:
        linear = _linear(*weights)
        return lambda x, state: (activation(linear(x, state[0])),)

    return make


_STEPS: dict[str, Callable[..., Step]] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _rnn(torch.tanh),
    "rnn_relu": _rnn(torch.relu),
}
