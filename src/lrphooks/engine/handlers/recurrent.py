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

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import notes, unrolled
from lrphooks.engine.call import Call
from lrphooks.engine.errors import LRPError
from lrphooks.engine.handlers.common import plain, stop
from lrphooks.engine.nodes import TwinNode, unaliased
from lrphooks.rules.base import Rule
from lrphooks.rules.operation import Constant, Gradient

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

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
            twins = (unrolled.cell if cell else unrolled.layers)(call.operation.name.removesuffix("_cell"), arguments)
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
