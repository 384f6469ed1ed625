"""Recurrent layers: the fused call gives the value, the same computation cell by cell hands down relevance.

The cells run with the mode on, so each operation in them follows the composite and the conventions as anywhere else.
The sigmoid gates then are constants, and the signal of each product takes all relevance (LRP-all of Arras et al.,
"Explaining Recurrent Neural Network Predictions in Sentiment Analysis", 2017); a composite that gives the gates
``Identity()`` and the products ``Uniform()`` or ``Proportional()`` shares it instead (LRP-half and LRP-abs of Arras et
al., "Explaining and Interpreting LSTMs", 2019). A neuron that sees both x and the last hidden state h is one linear map
of the two, as in these papers.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrphooks.engine import notes
from lrphooks.engine.call import Call
from lrphooks.engine.errors import LRPError
from lrphooks.engine.handlers.common import plain, stop
from lrphooks.engine.nodes import TwinNode, unaliased
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Constant, Gradient

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

#: What a cell remembers: (h, c) of an LSTM, (h,) of the others.
State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]

_PADDED = ("input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
_PACKED = ("data", "batch_sizes", *_PADDED[1:-1])
_CELL = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")


def recurrent(run: Run, call: Call, rule: Rule) -> Any:
    """LSTM, GRU and RNN, whole layers and single cells: relevance goes through the unrolled cells."""
    given = run.plan.operation_rule(call.operation, run.frames)
    if isinstance(given, Gradient | Constant):
        return plain(run, call, given)
    if given is not None:
        raise LRPError(
            f"{given!r} cannot serve {call.operation.name}: each operation of its cells has its own rule. Give rules "
            "to the gates (lrphooks.matching.Gate), the products (torch.mul) and the linear maps "
            "(lrphooks.matching.Linear), or Gradient() or Constant() to the whole."
        )
    cell = call.operation.name.endswith("_cell")
    packed = not cell and ("batch_sizes" in call.kwargs or not _floating(call.argument(1, "hx")))
    names = _CELL if cell else _PACKED if packed else _PADDED
    arguments: dict[str, Any] = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
    if not cell and arguments["train"] and arguments["dropout"] and arguments["num_layers"] > 1:
        run.unmatched(
            call,
            f"it draws its own mask for the dropout of {arguments['dropout']:g} between its layers, so it cannot be "
            "unrolled; call model.eval(), or set the layer's dropout to 0",
        )
        return call.invoke()
    with torch.no_grad():
        values = call.invoke()
    run.unrolled = call.operation.name
    try:
        with run.mode():
            twins = (_cell if cell else _layers)(call.operation.name.removesuffix("_cell"), arguments)
    finally:
        run.unrolled = ""
    if isinstance(values, Tensor):
        return _joined(run, values, twins[0])
    return tuple(_joined(run, value, twin) for value, twin in zip(values, twins, strict=True))


def _floating(hx: Any) -> bool:
    return not isinstance(hx, Tensor) or hx.is_floating_point()


def _joined(run: Run, value: Tensor, twin: Tensor) -> Tensor:
    """Return the fused value with the autograd graph of its twin."""
    out: Tensor = TwinNode.apply((unaliased(value),), twin)
    note = notes.read(twin, run)
    if note is not None:
        notes.write(out, run, nonnegative=note.nonnegative, maker=note.maker)
    if not run.carries(twin):
        stop(run, out)
    return out


# --- unrolling ---


def _cell(name: str, arguments: dict[str, Any]) -> State:
    """Return the next state of a single cell."""
    weights = [arguments[key] for key in _CELL[2:4]]
    biases = [arguments.get(key) for key in _CELL[4:]]
    return _STEPS[name](*weights, *biases)(arguments["input"], _state(arguments["hx"]))


def _layers(name: str, arguments: dict[str, Any]) -> State:
    """Return the output sequence and the last state of a stack of layers in one or both directions."""
    packed, batch_first = "batch_sizes" in arguments, arguments.get("batch_first", False)
    if packed:
        inputs = arguments["data"].split(arguments["batch_sizes"].tolist())
    else:
        inputs = arguments["input"].unbind(1 if batch_first else 0)
    initial = _state(arguments["hx"])
    directions = 2 if arguments["bidirectional"] else 1
    params, cells = arguments["params"], arguments["num_layers"] * directions
    each = len(params) // cells
    last: list[State] = []
    for layer in range(arguments["num_layers"]):
        sequences = []
        for direction in range(directions):
            index = layer * directions + direction
            step = _STEPS[name](*_weights(params[index * each : (index + 1) * each], arguments["has_biases"]))
            run = _backwards if direction else _forwards
            outputs, state = run(step, inputs, tuple(s[index] for s in initial))
            sequences.append(outputs)
            last.append(state)
        inputs = sequences[0] if directions == 1 else [torch.cat(pair, -1) for pair in zip(*sequences, strict=True)]
    output = torch.cat(tuple(inputs)) if packed else torch.stack(tuple(inputs), 1 if batch_first else 0)
    return output, *(torch.stack(parts) for parts in zip(*last, strict=True))


def _state(hx: Any) -> State:
    return (hx,) if isinstance(hx, Tensor) else tuple(hx)


def _weights(params: Sequence[Tensor], has_biases: bool) -> tuple[Tensor | None, ...]:
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


def _linear(w_ih: Tensor, w_hh: Tensor, b_ih: Tensor | None, b_hh: Tensor | None) -> Callable[[Tensor, Tensor], Tensor]:
    """Return w_ih x + b_ih + w_hh h + b_hh as one linear map of (x, h)."""
    weight = torch.cat((w_ih, w_hh), 1)
    biases = [b for b in (b_ih, b_hh) if b is not None]
    bias = reduce(torch.add, biases) if biases else None
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
