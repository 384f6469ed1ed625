"""How relevance goes back along a sequence through one recurrent layer, by the conventions for its operations.

Gates are constants, signals take all, and tanh hands on what it receives, so with the modified gradient G every cell
is linear in what comes back to it. All its coefficients follow from the inputs and outputs of the layer, which are
known: they are computed for all steps at once, and little is left to be done step by step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial, reduce

import torch
from torch import Tensor

from lrphooks.engine.layer_call import modified_weight
from lrphooks.engine.rule_node import by_weight
from lrphooks.engine.unrolled import State
from lrphooks.layers.layer import Factor, Layer, WeightForm
from lrphooks.layers.linear_map import Dense
from lrphooks.rules.base import Rule
from lrphooks.rules.factors import share_of_sizes
from lrphooks.rules.linear import LinearRule


@dataclass(frozen=True, slots=True)
class Way:
    """One way back through a linear map: ``inside * weight^T (share * G)``, with shares and insides of all steps."""

    share: Tensor
    weight: Tensor
    inside: Tensor | None = None

    def over(self, steps: int | slice) -> Way:
        """Return the way of some of the steps."""
        return Way(self.share[steps], self.weight, None if self.inside is None else self.inside[steps])

    def times(self, factor: Tensor) -> Way:
        """Return the way whose results are multiplied by a factor."""
        return Way(self.share, self.weight, factor if self.inside is None else factor * self.inside)

    def back(self, gradient: Tensor) -> Tensor:
        """Return what goes back at all steps."""
        found = torch.matmul(gradient * self.share, self.weight)
        return found if self.inside is None else found * self.inside

    def steps(self) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Return share, weight and inside of each step."""
        shares = self.share.unbind(0)
        insides = (None,) * len(shares) if self.inside is None else self.inside.unbind(0)
        return [(share, self.weight, inside) for share, inside in zip(shares, insides, strict=True)]


@dataclass(frozen=True, slots=True)
class Recurrence:
    """The coefficients of one layer in one direction, for all steps.

    u is the modified gradient of what the step computed and the next one begins with: h, or c of an LSTM, which shows
    ``h = shown * c``. The input receives ``to_input`` of u, the state before ``to_state`` of u (as h) and
    ``kept * u``.
    """

    to_input: list[Way]
    to_state: list[Way]
    kept: Sequence[Tensor] | None = None
    shown: Tensor | None = None

    def back(self, outputs: Tensor | None, last: tuple[Tensor | None, ...]) -> tuple[Tensor, State]:
        """Return u of all steps and G of the first state, from G of the outputs and of the last state."""
        like, shown = self.to_state[0].share, self.shown
        zero = like.new_zeros(()).expand(like.shape[1:])
        u, c = (zero if given is None else given for given in (*last, None)[:2])
        ways = [way.over(slice(1, None)) for way in self.to_state]
        if shown is not None:
            # What goes back to h goes straight on to c of the step before.
            ways = [way.times(shown[:-1]) for way in ways]
            u = c + u * shown[-1]
            outputs = None if outputs is None else outputs * shown
        arriving = [zero] * len(like) if outputs is None else outputs.unbind(0)
        u = u + arriving[-1]
        passed = [u]
        steps = list(zip(*(way.steps() for way in ways), strict=True))
        for t in reversed(range(len(steps))):
            before = arriving[t] if self.kept is None else torch.addcmul(arriving[t], u, self.kept[t + 1])
            for share, weight, inside in steps[t]:
                part = u * share
                if inside is None:
                    before = torch.addmm(before, part, weight)
                else:
                    before = torch.addcmul(before, torch.mm(part, weight), inside)
            u = before
            passed.append(u)
        return torch.stack(passed[::-1]), self._first(u)

    def _first(self, u: Tensor) -> State:
        """Return G of the first state from u of the first step."""
        h = _back([way.over(0) for way in self.to_state], u)
        if self.kept is None:
            return (h,)
        kept = u * self.kept[0]
        return (h + kept,) if self.shown is None else (h, kept)

    def input(self, passed: Tensor) -> Tensor:
        """Return G of the inputs of all steps from u of all steps."""
        return _back(self.to_input, passed)


def _back(ways: list[Way], gradient: Tensor) -> Tensor:
    return reduce(torch.add, [way.back(gradient) for way in ways])


#: Makes the recurrence of a layer from its rule, inputs, first state, outputs and weights.
Maker = Callable[[Rule, Tensor, State, Tensor, tuple[Tensor | None, ...]], Recurrence]


def _lstm(rule: Rule, x: Tensor, state: State, h: Tensor, weights: tuple[Tensor | None, ...]) -> Recurrence:
    i, f, g, o = _joint(*_maps(x, state, h, weights)).split(4)
    signal = g.values()
    share = i.values().sigmoid_() * _tanh_share(signal)
    forgets = f.values().sigmoid_().unbind(0)
    c, cells = state[1], []
    for forget, new in zip(forgets, (share * signal).unbind(0), strict=True):
        c = torch.addcmul(new, c, forget)
        cells.append(c)
    shown = o.values().sigmoid_() * _tanh_share(torch.stack(cells))
    to_input, to_state = g.ways(rule, share, signal)
    return Recurrence(to_input, to_state, kept=forgets, shown=shown)


def _gru(rule: Rule, x: Tensor, state: State, h: Tensor, weights: tuple[Tensor | None, ...]) -> Recurrence:
    maps = _maps(x, state, h, weights)
    r, u, _ = _joint(*maps).split(3)
    of_input, of_state = (each.split(3)[2] for each in maps)
    new, old, reset, update = of_input.values(), of_state.values(), r.values().sigmoid_(), u.values()
    share = (-update).sigmoid_() * _tanh_share(new + old * reset)
    (to_input,), (to_state,) = of_input.ways(rule, share, new), of_state.ways(rule, share * reset, old)
    return Recurrence(to_input, to_state, kept=update.sigmoid_().unbind(0))


def _rnn(share: Callable[[Tensor], Tensor]) -> Maker:
    def make(rule: Rule, x: Tensor, state: State, h: Tensor, weights: tuple[Tensor | None, ...]) -> Recurrence:
        joint = _joint(*_maps(x, state, h, weights))
        z = joint.values()
        to_input, to_state = joint.ways(rule, share(z), z)
        return Recurrence(to_input, to_state)

    return make


def _tanh_share(x: Tensor) -> Tensor:
    """Return tanh(x) / x, and its limit 1 at 0."""
    size = x.abs().clamp(min=torch.finfo(x.dtype).tiny)
    return size.tanh() / size


def _relu_share(x: Tensor) -> Tensor:
    return (x > 0).to(x.dtype)


RECURRENCES: dict[str, Maker] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _rnn(_tanh_share),
    "rnn_relu": _rnn(_relu_share),
}


# --- linear maps ---


@dataclass(frozen=True, slots=True)
class _Map:
    """A linear map of some operands, one weight for each, at all steps: rows of operands, a row for each step."""

    operands: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    bias: Tensor | None
    steps: int

    def split(self, parts: int) -> list[_Map]:
        """Return the maps to equal parts of the outputs."""
        biases = (None,) * parts if self.bias is None else self.bias.chunk(parts)
        weights = zip(*(w.chunk(parts) for w in self.weights), strict=True)
        return [_Map(self.operands, *each, self.steps) for each in zip(weights, biases, strict=True)]

    def values(self) -> Tensor:
        """Return the values, in memory of their own."""
        z = self.bias
        for a, weight in zip(self.operands, self.weights, strict=True):
            z = torch.mm(a, weight.t()) if z is None else torch.addmm(z, a, weight.t())
        assert z is not None
        return self._in_steps(z)

    def ways(self, rule: Rule, gradient: Tensor, z: Tensor) -> list[list[Way]]:
        """Return the ways back to each operand under a rule, for what arrives at the values z times ``gradient``.

        Differentiable where grad mode is on: then relevance itself is to be differentiated.
        """
        if not isinstance(rule, LinearRule) or rule.is_gradient:
            return [[Way(gradient, weight)] for weight in self.weights]
        parts = by_weight(gradient, self._factors(rule, z))
        shares = {form: part if scale == 1.0 else part * scale for form, (part, scale) in parts.items()}
        pairs = zip(map(self._in_steps, self.operands), self.weights, strict=True)
        return [[way for form in shares for way in _by(form, shares[form], a, w, rule.raise_by)] for a, w in pairs]

    def _factors(self, rule: LinearRule, z: Tensor) -> tuple[Factor, ...]:
        shift = rule.shift(z.dtype)
        if shift is not None and not torch.is_grad_enabled():
            sizes = z.abs()
            return (share_of_sizes(sizes, shift, out=sizes),)
        a, weight = self._in_steps(torch.cat(self.operands, 1)), torch.cat(self.weights, 1)
        modified = cache(partial(modified_weight, weight))
        layer = Layer(Dense(), a, z, weight, self.bias, input_nonnegative=False, relu_follows=False, modified=modified)
        if not torch.is_grad_enabled():
            return rule.factors(layer)
        return tuple(Factor.of(z, term) for term in rule.terms(layer))

    def _in_steps(self, rows: Tensor) -> Tensor:
        return rows.view(self.steps, rows.shape[0] // self.steps, rows.shape[1])


def _by(form: WeightForm, share: Tensor, a: Tensor, weight: Tensor, raise_by: float) -> list[Way]:
    """Return the ways to the operand a by a weight in a given form."""
    if form == "agreeing":
        negative = a < 0
        up, down = modified_weight(weight, "positive", 0.0), modified_weight(weight, "negative", 0.0)
        return [Way(share, up, (~negative).to(a.dtype)), Way(share, down, negative.to(a.dtype))]
    return [Way(share, modified_weight(weight, form, raise_by), a.sign() if form == "absolute" else None)]


def _maps(x: Tensor, state: State, h: Tensor, weights: tuple[Tensor | None, ...]) -> tuple[_Map, _Map]:
    """Return the map of the input and that of the hidden state before, each by itself."""
    w_ih, w_hh, b_ih, b_hh = weights
    assert w_ih is not None and w_hh is not None
    before = torch.cat((state[0].unsqueeze(0), h[:-1]))
    return _Map((x.flatten(0, 1),), (w_ih,), b_ih, len(x)), _Map((before.flatten(0, 1),), (w_hh,), b_hh, len(x))


def _joint(of_input: _Map, of_state: _Map) -> _Map:
    """Return one map of both."""
    bias = None if of_input.bias is None or of_state.bias is None else of_input.bias + of_state.bias
    operands, weights = of_input.operands + of_state.operands, of_input.weights + of_state.weights
    return _Map(operands, weights, bias, of_input.steps)
