"""Recurrent layers cell by cell with explicit shares, from torch's documented equations and parameter names.

    [Arras2017]  Arras et al., Explaining Recurrent Neural Network Predictions in Sentiment Analysis, 2017 (LRP-all).
    [Arras2019]  Arras et al., Explaining and Interpreting LSTMs, 2019 (LRP-prop, LRP-abs, LRP-half, LRP-all).

As in references.operations, relevance is the gradient times input of a surrogate. LRP-0 on the linear maps.
"""

import torch

# --- the product of a signal s and a gate's pre-activation u, gate sigmoid(u) ---


def takes_all(s, u):
    """[Arras2017]: the signal receives everything, the gate is a constant."""
    return s * u.sigmoid().detach()


def _gate(u):
    """A gate that hands on what it receives as it is: R_u = R_gate."""
    return u * (u.sigmoid() / u).detach()


def half(s, u):
    """[Arras2019]: signal and gate receive the same; a signal that is constant has no share."""
    g = _gate(u)
    if not s.requires_grad:
        return s * g
    return (s * g.detach() + s.detach() * g) / 2


def proportional(s, u):
    """[Arras2019], LRP-abs: in proportion to the absolute values."""
    g = _gate(u)
    if not s.requires_grad:
        return s * g
    share = (s.abs() / (s.abs() + g.abs())).detach()
    return s * g.detach() * share + s.detach() * g * (1 - share)


def _tanh(a):
    """R_in = R_out."""
    return a * torch.where(a == 0, 1.0, a.tanh() / torch.where(a == 0, 1.0, a)).detach()


# --- cells: parameters p by torch's names, input x, states ---


def lstm(p, x, state, product):
    h, c = state
    z = x @ p["weight_ih"].T + h @ p["weight_hh"].T + p.get("bias_ih", 0) + p.get("bias_hh", 0)
    i, f, g, o = z.chunk(4, -1)
    c = product(c, f) + product(_tanh(g), i)
    h = product(_tanh(c), o)
    if "weight_hr" in p:
        h = h @ p["weight_hr"].T
    return h, c


def gru(p, x, state, product):
    (h,) = state
    ri, zi, ni = (x @ p["weight_ih"].T + p.get("bias_ih", 0)).chunk(3, -1)
    rh, zh, nh = (h @ p["weight_hh"].T + p.get("bias_hh", 0)).chunk(3, -1)
    n = _tanh(ni + product(nh, ri + rh))
    return (product(n, -(zi + zh)) + product(h, zi + zh),)


def rnn_tanh(p, x, state, product):
    return (_tanh(x @ p["weight_ih"].T + state[0] @ p["weight_hh"].T + p.get("bias_ih", 0) + p.get("bias_hh", 0)),)


def rnn_relu(p, x, state, product):
    z = x @ p["weight_ih"].T + state[0] @ p["weight_hh"].T + p.get("bias_ih", 0) + p.get("bias_hh", 0)
    return (z.relu(),)


CELLS = {"LSTM": lstm, "GRU": gru, "RNN_TANH": rnn_tanh, "RNN_RELU": rnn_relu}


def layers(module, sequences, state, product):
    """Run a module of torch.nn over sequences of shape (time, features), one at a time, each with its state.

    ``state`` has a tensor (layers * directions, batch, size) for each part; returns the outputs and the last states.
    """
    cell = CELLS[module.mode]
    directions = 2 if module.bidirectional else 1
    outputs, lasts = [], []
    for n, sequence in enumerate(sequences):
        steps, last = list(sequence), []
        for layer in range(module.num_layers):
            sides = []
            for direction in range(directions):
                suffix = f"_l{layer}" + "_reverse" * direction
                p = {k.removesuffix(suffix): v.detach() for k, v in module.named_parameters() if k.endswith(suffix)}
                now = tuple(s[layer * directions + direction, n] for s in state)
                side = []
                for x in reversed(steps) if direction else steps:
                    now = cell(p, x, now, product)
                    side.append(now[0])
                sides.append(side[::-1] if direction else side)
                last.append(now)
            steps = [torch.cat(parts) for parts in zip(*sides, strict=True)]
        outputs.append(torch.stack(steps))
        lasts.append(tuple(torch.stack(parts) for parts in zip(*last, strict=True)))
    return outputs, tuple(torch.stack(parts, 1) for parts in zip(*lasts, strict=True))
