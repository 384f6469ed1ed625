"""Recurrent layers: the fused call gives the value, the same computation cell by cell hands down relevance.

The cells run with the mode on, so each operation in them follows the composite and the conventions as anywhere else.
The sigmoid gates then are constants, and the signal of each product takes all relevance (LRP-all of Arras et al.,
"Explaining Recurrent Neural Network Predictions in Sentiment Analysis", 2017); a composite that gives the gates
``Identity()`` and the products ``Uniform()`` or ``Proportional()`` shares it instead (LRP-half and LRP-abs of Arras et
al., "Explaining and Interpreting LSTMs", 2019). A neuron that sees both x and the last hidden state h is one linear map
of the two, as in these papers.

Where the composite gives no operation of the cells a rule of its own, one node does the same for whole layers, all
steps at once but for what passes from step to step.
"""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lrphooks.engine import facts, unrolled
from lrphooks.engine.call import Call
from lrphooks.engine.claims import rule_of_layer
from lrphooks.engine.errors import LRPError
from lrphooks.engine.handlers.common import plain, stop
from lrphooks.engine.nodes import TwinNode, unaliased
from lrphooks.engine.recurrent_node import RecurrentNode, Stack
from lrphooks.engine.unmatched import report_operation
from lrphooks.operations import Operation, classify
from lrphooks.rules.base import Rule
from lrphooks.rules.linear_rule import LinearRule
from lrphooks.rules.operation import Constant, Gradient

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

_PADDED = ("input", "hx", "params", "has_biases", "num_layers", "dropout", "train", "bidirectional", "batch_first")
_PACKED = ("data", "batch_sizes", *_PADDED[1:-1])
_CELL = ("input", "hx", "w_ih", "w_hh", "b_ih", "b_hh")

#: What the cells are made of, beside linear maps.
_NAMES = ("add", "cat", "chunk", "mul", "neg", "relu", "sigmoid", "split", "stack", "tanh", "unbind")
_PARTS = tuple(map(classify, _NAMES))


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
        report_operation(
            run,
            call,
            f"it draws its own mask for the dropout of {arguments['dropout']:g} between its layers, so it cannot be "
            "unrolled; call model.eval(), or set the layer's dropout to 0",
        )
        return call.invoke()
    name = call.operation.name.removesuffix("_cell")
    run.unrolled = call.operation.name
    try:
        if not cell and not packed and (stack := _stack(run, name, arguments)) is not None:
            return _as_one(run, stack, call, arguments)
        with torch.no_grad():
            values = call.invoke()
        with run.mode():
            twins = (unrolled.cell if cell else unrolled.layers)(name, arguments)
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
    note = facts.read(twin, run)
    if note is not None:
        facts.write(out, run, nonnegative=note.nonnegative, maker=note.maker)
    if not run.carries(twin):
        stop(run, out)
    return out


# --- whole layers at once ---


def _stack(run: Run, name: str, arguments: dict[str, Any]) -> Stack | None:
    """Return the layers of a call for one node to serve, or None where their cells have to be run."""
    x, params = arguments["input"], arguments["params"]
    h, *_ = states = unrolled.states_in(arguments["hx"])
    if run.observer is not None or run.delivers or run.hooked or run.parameters or not run.times_input:
        return None
    if run.plan.rules_sums or any(run.plan.operation_rule(part, run.frames) is not None for part in _PARTS):
        return None
    # Without either of them, the gates of the first step are made of parameters alone.
    if not (run.carries(x) or run.carries(h)) or any(run.carries(p) for p in params):
        return None
    directions = 2 if arguments["bidirectional"] else 1
    projected = len(params) != arguments["num_layers"] * directions * (4 if arguments["has_biases"] else 2)
    if projected or torch.is_autocast_enabled(x.device.type):
        return None
    first = Call(Operation("linear", "linear"), F.linear, (x, params[0]), {}, [x])
    rule = rule_of_layer(run, first, [facts.read(x, run)])
    if not (isinstance(rule, Gradient) or (isinstance(rule, LinearRule) and rule.separable and rule.bias == "absorb")):
        return None
    return Stack(
        name,
        rule,
        arguments["num_layers"],
        directions,
        arguments["batch_first"],
        arguments["has_biases"],
        carriers=tuple(run.carries(t) for t in (x, *states)),
    )


def _as_one(run: Run, stack: Stack, call: Call, arguments: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return the values of the call with the one node of its layers."""
    # Copies, since the model may write to what it gave, of which torch's own backward pass keeps none on a CPU.
    given = [t.clone() for t in (arguments["input"], *unrolled.states_in(arguments["hx"]))]
    out: tuple[Tensor, ...] = RecurrentNode.apply(run.passes, stack, call.invoke, *given, *arguments["params"])
    if stack.name == "rnn_relu":
        for tensor in out:
            facts.write(tensor, run, nonnegative=True)
    return out
