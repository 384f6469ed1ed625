"""How relevance goes back along a sequence through one recurrent layer, by the conventions for its operations.

Gates are constants, signals take all, and tanh hands on what it receives, so with the modified gradient G every cell
is linear in what comes back to it. All its coefficients follow from the inputs and outputs of the layer, which are
known: they are computed for all steps at once, and little is left to be done step by step.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial, reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from lrphooks.engine.epsilon_node import share_of
from lrphooks.engine.rule_node import by_weight
from lrphooks.engine.ruled_layer import modified_weight
from lrphooks.engine.unrolled import State
from lrphooks.layers.layer import Factor, Layer, WeightForm
from lrphooks.layers.linear_map import Dense
from lrphooks.rules.base import Rule
from lrphooks.rules.linear import Epsilon
from lrphooks.rules.linear_rule import LinearRule


@dataclass(frozen=True, slots=True)
class Way:
    """One way back through a linear map: ``inside * weight^T (share * G)``, with shares and insides of all steps."""

    share: Tensor
    weight: Tensor
    inside: Tensor | None = None

    def back(self, gradient: Tensor) -> Tensor:
        """Return what goes back at all steps."""
        found = torch.matmul(gradient * self.share, self.weight)
        return found if self.inside is None else found * self.inside


@dataclass(frozen=True, slots=True)
class Recurrence:
    """The coefficients of one layer in one direction, for all steps.

    u is the modified gradient of what the step computed and the next one begins with: h, or c of an LSTM, which shows
    ``h = shown * c``. The input receives ``to_input`` of u, the state before ``to_state`` of u (as h) and
    ``kept * u``.
    """

    to_input: list[Way]
    to_state: list[Way]
    kept: Tensor | None = None
    shown: Tensor | None = None

    def back(self, outputs: Tensor | None, last: tuple[Tensor | None, ...]) -> tuple[Tensor, State]:
        """Return u of all steps and G of the first state, from G of the outputs and of the last state."""
        shares = [way.share for way in self.to_state]
        ways = [(way.weight, None if way.inside is None else way.inside.unbind(0)) for way in self.to_state]
        shown = None if self.shown is None else self.shown.unbind(0)
        # All that u is multiplied by in one product, since most of the time of a step goes into calling operations.
        factors = torch.stack(shares if self.kept is None else [*shares, self.kept], 1).unbind(0)
        zero = torch.zeros_like(shares[0][:1])
        # G of the first state and of each output. What comes back to it is added there, and u takes its place.
        received = torch.cat((zero, zero.expand_as(shares[0]) if outputs is None else outputs))
        arriving = received.unbind(0)
        h, rest = (zero[0] if given is None else given for given in (*last, None)[:2])
        h = torch.add(arriving[-1], h, out=_spent(arriving[-1]))
        overwrites = torch.is_inference_mode_enabled()
        room = torch.empty_like(factors[0]) if overwrites else None
        parts = () if room is None else room.unbind(0)
        passed = []
        for t in reversed(range(len(factors))):
            u = h
            if shown is not None:
                u = torch.addcmul(rest, h, shown[t], out=h if overwrites else None)
            elif self.kept is not None:
                u = torch.add(h, rest, out=h if overwrites else None)
            passed.append(u)
            products = torch.mul(u, factors[t], out=room)
            parts = parts if overwrites else products.unbind(0)
            h, rest = arriving[t], parts[-1]
            for part, (weight, inside) in zip(parts, ways, strict=False):
                out = h if overwrites else None
                if inside is None:
                    h = torch.addmm(h, part, weight, out=out)
                else:
                    h = torch.addcmul(h, torch.mm(part, weight), inside[t], out=out)
        whole = received[1:] if overwrites else torch.stack(passed[::-1])
        if self.kept is None:
            return whole, (h,)
        return whole, (h + rest,) if shown is None else (h, rest)

    def input(self, passed: Tensor) -> Tensor:
        """Return G of the inputs of all steps from u of all steps."""
        return _back(self.to_input, passed)


def _back(ways: list[Way], gradient: Tensor) -> Tensor:
    return reduce(torch.add, [way.back(gradient) for way in ways])


#: Makes the recurrence of a layer from its rule, inputs, first state, outputs and weights.
Maker = Callable[[Rule, Tensor, State, Tensor, tuple[Tensor | None, ...]], Recurrence]


def _lstm(rule: Rule, x: Tensor, state: State, h: Tensor, weights: tuple[Tensor | None, ...]) -> Recurrence:
    joint = _joint(*_maps(x, state, h, weights))
    i, f, g, o = joint.values().chunk(4, -1)
    # Each in memory of its own: where they lie in one, every operation on a part takes longer.
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.contiguous(), o.sigmoid()
    share = _times(i, _tanh_share(g))
    cells = _summed(share * g, f, state[1])
    to_input, to_state = joint.rows(2, 4).ways(rule, share, g)
    return Recurrence(to_input, to_state, kept=f, shown=_times(o, _tanh_share(cells)))


def _summed(new: Tensor, kept: Tensor, c: Tensor) -> Tensor:
    """Return the cells of all steps: what is new in each, and what is kept of the one before."""
    cells = []
    for fresh, share in zip(new.unbind(0), kept.unbind(0), strict=True):
        c = torch.addcmul(fresh, c, share, out=_spent(fresh))
        cells.append(c)
    return new if torch.is_inference_mode_enabled() else torch.stack(cells)


def _gru(rule: Rule, x: Tensor, state: State, h: Tensor, weights: tuple[Tensor | None, ...]) -> Recurrence:
    maps = _maps(x, state, h, weights)
    reset, update = _joint(*maps).rows(0, 3, 2).values().chunk(2, -1)
    of_input, of_state = (each.rows(2, 3) for each in maps)
    new, old, reset = of_input.values(), of_state.values(), reset.sigmoid()
    share = _times((-update).sigmoid(), _tanh_share(new + old * reset))
    (to_input,), (to_state,) = of_input.ways(rule, share, new), of_state.ways(rule, share * reset, old)
    return Recurrence(to_input, to_state, kept=update.sigmoid())


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
    tanh = size.tanh()
    return torch.div(tanh, size, out=_spent(tanh))


def _times(x: Tensor, factor: Tensor) -> Tensor:
    """Return the product of a tensor that nobody else needs and a factor."""
    return torch.mul(x, factor, out=_spent(x))


def _spent(x: Tensor) -> Tensor | None:
    """Return a tensor that nobody else needs, if a result may overwrite it: in inference mode."""
    return x if torch.is_inference_mode_enabled() else None


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

    def rows(self, first: int, of: int, count: int = 1) -> _Map:
        """Return the map to some of equal parts of the outputs."""
        size = self.weights[0].shape[0] // of
        rows = slice(first * size, (first + count) * size)
        bias = None if self.bias is None else self.bias[rows]
        return _Map(self.operands, tuple(w[rows] for w in self.weights), bias, self.steps)

    def values(self) -> Tensor:
        """Return the values."""
        a, weight = self._whole()
        return self._in_steps(F.linear(a, weight, self.bias))

    def _whole(self) -> tuple[Tensor, Tensor]:
        """Return the operands as one, and their weights."""
        if len(self.operands) == 1:
            return self.operands[0], self.weights[0]
        return torch.cat(self.operands, 1), torch.cat(self.weights, 1)

    def ways(self, rule: Rule, gradient: Tensor, z: Tensor) -> list[list[Way]]:
        """Return the ways back to each operand under a rule, for what arrives at the values z times ``gradient``.

        Differentiable where grad mode is on: then relevance itself is to be differentiated.
        """
        if not isinstance(rule, LinearRule) or rule.is_gradient:
            return [[Way(gradient, weight)] for weight in self.weights]
        if isinstance(rule, Epsilon):
            share = share_of(gradient, z, rule)
            return [[Way(share, weight)] for weight in self.weights]
        parts = by_weight(gradient, self._factors(rule, z))
        shares = {form: part if scale == 1.0 else part * scale for form, (part, scale) in parts.items()}
        pairs = zip(map(self._in_steps, self.operands), self.weights, strict=True)
        return [[way for form in shares for way in _by(form, shares[form], a, w, rule.raise_by)] for a, w in pairs]

    def _factors(self, rule: LinearRule, z: Tensor) -> tuple[Factor, ...]:
        a, weight = self._whole()
        modified = cache(partial(modified_weight, weight))
        a = self._in_steps(a)
        layer = Layer(Dense(), a, z, weight, self.bias, input_nonnegative=False, relu_follows=False, modified=modified)
        if not torch.is_grad_enabled():
            return rule.factors(layer)
        return tuple(factor for term in rule.terms(layer) for factor in Factor.of(layer, term))

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
