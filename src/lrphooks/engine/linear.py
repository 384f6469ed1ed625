"""Linear layers and BatchNorm as they are executed: from the torch call to a pending layer call."""

# mypy: disable-error-code="no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lrphooks.engine import cuts, facts
from lrphooks.engine.call import Call
from lrphooks.engine.epsilon_node import EpsilonCall, EpsilonNode, Share
from lrphooks.engine.errors import LRPError
from lrphooks.engine.function_nodes import ParameterizedMapNode
from lrphooks.engine.handlers.common import plain, stop
from lrphooks.engine.handlers.products import shares_of
from lrphooks.engine.layer_call import LayerCall, saving_hooks
from lrphooks.engine.nodes import ScaleNode, unaliased
from lrphooks.engine.normalization_nodes import BatchNormNode
from lrphooks.engine.passing import through
from lrphooks.engine.ruled_layer import BatchNormCall
from lrphooks.engine.tensor_hooks import asked, serve_through
from lrphooks.engine.unmatched import report_operation
from lrphooks.layers.linear_map import Dense, General, LinearMap, bind_convolution
from lrphooks.rules.base import LayerRule, Rule
from lrphooks.rules.filter import TopRelevance
from lrphooks.rules.input import InputRule
from lrphooks.rules.linear import Epsilon
from lrphooks.rules.linear_rule import LinearRule
from lrphooks.rules.operation import Constant, Gradient, Identity, Pass, Uniform
from lrphooks.torch_private import version_of

if TYPE_CHECKING:
    from lrphooks.engine.run import Run

_DENSE = Dense()
_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


def linear(run: Run, call: Call, rule: Rule) -> Any:
    """Run a linear layer; its rule is settled by what consumes the output."""
    name = call.operation.name
    transposed = "transpose" in name
    if name == "linear" and not call.kwargs:
        a, weight, bias = (*call.args, None)[:3]
    else:
        names = _TRANSPOSED_ARGUMENTS if transposed else _CONVOLUTION_ARGUMENTS
        arguments = {**dict(zip(names, call.args, strict=False)), **call.kwargs}
        a, weight, bias = arguments["input"], arguments["weight"], arguments.get("bias")
    if (weight.requires_grad and run.carries(weight)) or (bias is not None and run.carries(bias)):
        return run.observed(call, rule, _dynamic)
    if run.unrolled and isinstance(rule, LayerRule) and isinstance(rule.inner, InputRule):
        raise LRPError(
            f"{rule!r} is a rule for input values, but the linear maps of {run.unrolled} see the hidden state too. "
            "Give the recurrent layer another rule, in front: (torch.nn.LSTM, lrphooks.rules.Epsilon())."
        )
    linear_map: LinearMap
    if name == "linear":
        linear_map = _DENSE if weight.dim() == 2 else General(torch.matmul)
    else:
        spatial = int(name[-2])
        linear_map = bind_convolution(spatial, arguments, transposed=transposed)
    out = execute(run, call, rule, linear_map, (a, weight, bias))
    if bias is None:
        await_bias(run, out)
    return out


def await_bias(run: Run, out: Tensor) -> None:
    """Note that a bias which the model adds to the output next belongs to the layer."""
    known = facts.read(out, run)
    if known is not None:
        known.bias_follows = True


def execute(
    run: Run,
    call: Call,
    rule: Rule,
    linear_map: LinearMap,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    function: Callable[..., Tensor] | None = None,
    *,
    probed: bool = False,
) -> Tensor:
    """Run the call, and note the layer on its output for the rule to be set when it is consumed.

    ``function`` is the call as a function of the tensors, where they are not its arguments themselves. ``probed``
    tells that an observer watches what the input was made of already.
    """
    a, weight, bias = tensors
    record = None
    if run.watched and not isinstance(rule, Constant | Pass):
        assert run.observer is not None
        record = run.observer.begin(run, call.operation.name, rule)
        if not probed:
            watched = run.observer.probe(run, a)
            call, a, tensors = call.replaced({id(a): watched}), watched, (watched, weight, bias)
    filtered = rule if isinstance(rule, TopRelevance) else None
    rule = rule.inner if isinstance(rule, LayerRule) else rule
    pending = (
        filtered is not None or isinstance(rule, InputRule) or (isinstance(rule, LinearRule) and not rule.is_gradient)
    )
    if pending and (a.is_complex() or weight.is_complex()):
        raise LRPError(
            f"{rule!r} cannot serve operation {call.operation.name} in {run.name_of_running()}: it is of complex "
            "numbers, which are neither positive nor negative. Give the layer Epsilon(0)."
        )
    # A view that the model overwrites leaves its place in the graph, where an observer waits too.
    alone = pending or record is not None
    z = _output(run, call, linear_map, tensors, function, alone=alone)
    if isinstance(rule, Constant):
        stop(run, z)
        return z
    if isinstance(rule, Pass):
        return through(run, a, z)
    if isinstance(rule, InputRule):
        _check_input(run, call, rule, linear_map, a)
    if not (pending or run.delivers or record is not None):
        return z
    if isinstance(rule, Epsilon) and rule.bias == "absorb" and pending and filtered is None and not run.linked:
        return _under_epsilon(run, rule, linear_map, tensors, z)
    note = facts.read(a, run)
    layer = LayerCall(
        run,
        rule if isinstance(rule, LinearRule | InputRule) else Epsilon(0.0),
        linear_map,
        (a, weight, bias),
        input_nonnegative=note is not None and note.nonnegative,
        hooks=saving_hooks(),
        input_link=None if note is None else note.link,
        record=record,
        filtered=filtered,
        version=version_of(a),
    )
    return layer.guard(z) if pending else layer.bypassed(z)


def _under_epsilon(
    run: Run, rule: Epsilon, linear_map: LinearMap, tensors: tuple[Tensor, Tensor, Tensor | None], z: Tensor
) -> Tensor:
    """Return the output z of a layer under the epsilon rule, where nobody looks on and relevance comes as G alone."""
    if not linear_map.merges:
        # The values of a sum may be infinite, those of its stacked operands are not.
        out: Tensor = EpsilonNode.apply(Share(run.passes, rule), linear_map.forward(*tensors), z)
        return out
    return EpsilonCall.guard(run, rule, linear_map, z, saving_hooks())


def _output(
    run: Run,
    call: Call,
    linear_map: LinearMap,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    function: Callable[..., Tensor] | None,
    *,
    alone: bool,
) -> Tensor:
    """Run the layer, whose parameters receive nothing in a relevance pass."""
    _, weight, bias = tensors
    if weight.requires_grad or (bias is not None and bias.requires_grad):
        function = function or call.over(tensors)
        out: Tensor = ParameterizedMapNode.apply(run.passes, function, linear_map.transpose, *tensors)
        return out
    z: Tensor = call.invoke()
    if not z.requires_grad:
        # A kernel without a derivative, as of quantised weights, leaves nothing to go back through.
        cuts.without_derivative(run, call, z, ruled=True)
    return unaliased(z) if alone else z


def _check_input(run: Run, call: Call, rule: InputRule, linear_map: LinearMap, a: Tensor) -> None:
    """Raise an error if a rule for input values cannot serve the layer."""
    try:
        rule.check(a, linear_map)
    except ValueError as error:
        raise ValueError(f"{run.name_of_running()}: {error}") from error.__cause__


def _dynamic(run: Run, call: Call, rule: Rule) -> Any:
    """A layer whose weight is computed from the input is a product of activations."""
    a, weight, bias = (call.argument(i, name) for i, name in enumerate(("input", "weight", "bias")))
    if bias is not None and run.carries(bias) and not run.carries(weight):
        # The bias adds like any other summand; the layer's own rule cannot tell the two apart.
        if not (isinstance(rule, Gradient) or (isinstance(rule, LinearRule) and rule.is_gradient)):
            report_operation(run, call, "its bias depends on the explained input")
        return run.shielded(call).invoke()
    carriers = [t for t in (a, weight) if run.carries(t)]
    shares = shares_of(run, carriers, Uniform())
    change = {id(t): ScaleNode.apply(run.passes, share, t) for t, share in zip(carriers, shares, strict=True)}
    out = run.shielded(call.replaced(change)).invoke()
    if bias is None:
        known = [facts.read(t, run) for t in carriers]
        facts.write(out, run, degree=sum(1 if each is None else each.degree for each in known))
    return out


_STATISTICS = ("running_mean", "running_var", "weight", "bias")


def batch_norm(run: Run, call: Call, rule: Rule, layer: facts.Executed | None) -> Any:
    """Run an evaluated BatchNorm; after a ruled layer, its output stands for both merged."""
    statistics = tuple(call.argument(i, name) for i, name in enumerate(_STATISTICS, 1))
    if statistics[0] is None or statistics[1] is None or any(run.carries(t) for t in statistics):
        # Without running statistics it is no evaluated BatchNorm, whatever it was told.
        report_operation(run, call, "its statistics are missing or depend on the explained input")
        return call.invoke()
    if layer is None:
        return run.observed(call, rule, _evaluated)
    source = call.dependent[0]
    if isinstance(layer, EpsilonCall):
        # The rule of both together goes back past that of the layer alone.
        out = layer.joined(_evaluated(run, call.replaced({id(source): layer.before}), rule), merged=True)
        if asked(source):
            serve_through(run, source, out)
        return out
    assert isinstance(layer, LayerCall)
    a = layer.tensors[0]
    if a is not None and not layer.intact:
        raise LRPError(
            f"The input of the layer before the BatchNorm in {run.name_of_running()}, of shape "
            f"{tuple(a.shape)}, was overwritten in place before its output was used, so "
            f"{layer.rule!r} cannot be set on both together. Write out of place there: x = f(x) in place of f_(x)."
        )
    merged = layer.merged_with(BatchNormCall(call.argument(7, "eps", 1e-5)), statistics)
    out = merged.guard(_evaluated(run, call, rule))
    if asked(source):
        serve_through(run, source, out)
    return out


def _evaluated(run: Run, call: Call, rule: Rule) -> Tensor:
    """Run an evaluated BatchNorm by itself: a factor and a shift for each channel."""
    if isinstance(rule, Identity | Pass):
        return through(run, call.dependent[0], call.invoke())
    if isinstance(rule, Constant):
        return plain(run, call, rule)  # type: ignore[no-any-return]
    tensors = (call.argument(0, "input"), *(call.argument(i, name) for i, name in enumerate(_STATISTICS, 1)))
    eps = call.argument(7, "eps", 1e-5)
    out: Tensor = BatchNormNode.apply(run.passes, call.over(tensors), eps, *tensors)
    return out
