"""Dense float64 reference of every LRP rule: turn a layer into its matrix and write the paper's sum out.

Nothing here is fast and nothing here is shared with the package: relevance itself is propagated (not a modified
gradient), with numpy, over explicit contributions ``c[n, j, i] = w[j, i] * a[n, i]`` of input *i* to output *j*.

Papers
    [Bach2015]        Bach et al., On Pixel-Wise Explanations for Non-Linear Classifier Decisions by Layer-Wise
                      Relevance Propagation, PLOS ONE 10(7), 2015.
    [Montavon2017]    Montavon et al., Explaining nonlinear classification decisions with deep Taylor decomposition,
                      Pattern Recognition 65, 2017.
    [Montavon2019]    Montavon et al., Layer-Wise Relevance Propagation: An Overview, in Explainable AI, LNCS 11700,
                      2019.
    [Lapuschkin2019]  Lapuschkin et al., Unmasking Clever Hans predictors, Nature Communications 10, 2019.
    [Andeol2021]      Andéol et al., Learning Domain Invariant Representations by Joint Wasserstein Distance
                      Minimization, 2021 (gamma rule for inputs of any sign).
"""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

LINEAR_MAPS = (
    nn.Linear,
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.Tanh, nn.Sigmoid, nn.GELU, nn.SiLU, nn.ELU)


@dataclass(frozen=True)
class Shift:
    """How a denominator is kept away from zero: a shift along its sign, or a clip; sign(0) = +1."""

    epsilon: float = 1e-6
    clip: bool = False
    norm_scale: bool = False
    dim: tuple | None = None

    def __call__(self, z):
        """Stabilise ``z``, an array with the batch first."""
        sign = np.where(z < 0, -1.0, 1.0)
        epsilon = self.epsilon
        if self.norm_scale:
            dim = tuple(range(1, z.ndim)) if self.dim is None else self.dim
            epsilon = epsilon * np.sqrt((z**2).mean(axis=dim, keepdims=True))
        if self.clip:
            return sign * np.maximum(np.abs(z), epsilon)
        return z + sign * epsilon


def shift(value):
    """A number or a Shift, as a Shift."""
    return value if isinstance(value, Shift) else Shift(value)


@dataclass(frozen=True)
class DenseMap:
    """A linear layer for one input shape: ``z = weight @ a + bias``; ``links`` marks the connections that exist."""

    weight: np.ndarray
    bias: np.ndarray
    links: np.ndarray
    in_shape: tuple
    out_shape: tuple

    @classmethod
    def of(cls, layer, in_shape):
        """Apply ``layer`` without its bias to every basis vector, and once more with all weights set to one."""
        if not isinstance(layer, LINEAR_MAPS):
            raise TypeError(f"no dense matrix for {layer}")
        in_shape = tuple(in_shape)
        size = int(np.prod(in_shape))
        twin = copy.deepcopy(layer).double()
        twin.bias = None
        basis = torch.eye(size, dtype=torch.float64).reshape(size, *in_shape)
        with torch.no_grad():
            columns = twin(basis)
            out_shape = tuple(columns.shape[1:])
            weight = columns.reshape(size, -1).T.numpy().copy()
            twin.weight.fill_(1.0)
            links = twin(basis).reshape(size, -1).T.numpy().copy()
        bias = np.zeros(out_shape)
        if layer.bias is not None:
            values = layer.bias.detach().double().numpy()
            bias = bias + (values if isinstance(layer, nn.Linear) else _per_channel(values, out_shape))
        assert set(np.unique(links)) <= {0.0, 1.0}, "a connection is used twice: no dense matrix for this padding mode"
        return cls(weight, bias.reshape(-1), links, in_shape, out_shape)

    def merged(self, norm):
        """This map followed by the evaluation-mode BatchNorm ``norm``, as one map."""
        mean, var = norm.running_mean.double().numpy(), norm.running_var.double().numpy()
        gain = np.ones_like(mean) if norm.weight is None else norm.weight.detach().double().numpy()
        offset = np.zeros_like(mean) if norm.bias is None else norm.bias.detach().double().numpy()
        scale = gain / np.sqrt(var + norm.eps)
        rows = (np.ones(self.out_shape) * _per_channel(scale, self.out_shape)).reshape(-1)
        add = (np.ones(self.out_shape) * _per_channel(offset - mean * scale, self.out_shape)).reshape(-1)
        return DenseMap(self.weight * rows[:, None], self.bias * rows + add, self.links, self.in_shape, self.out_shape)

    def forward(self, a):
        """The output for the batch ``a``."""
        z = a.reshape(len(a), -1) @ self.weight.T + self.bias
        return z.reshape(len(a), *self.out_shape)

    def contributions(self, a):
        """``c[n, j, i]``: what input *i* adds to output *j*, before the bias."""
        return a.reshape(len(a), 1, -1) * self.weight[None]


def _per_channel(values, shape):
    return values.reshape(len(values), *(1,) * (len(shape) - 1))


def _share(layer, shares, denominator, relevance, stabilizer):
    """R_i = sum_j shares_ij / stab(denominator_j) R_j, summed one output after the other."""
    n = len(relevance)
    stable = shift(stabilizer)(denominator.reshape(n, *layer.out_shape)).reshape(n, -1)
    relevance = relevance.reshape(n, -1)
    total = np.zeros((n, shares.shape[2]))
    for row in range(n):
        for j in range(shares.shape[1]):
            if shares[row, j].any():  # nothing contributed: nothing to give, and 0 / 0 without a stabiliser
                total[row] += shares[row, j] / stable[row, j] * relevance[row, j]
    return total.reshape(n, *layer.in_shape)


def epsilon(layer, a, relevance, epsilon=1e-6):
    """[Bach2015] eq. 58: R_i = sum_j c_ij / (z_j + eps sign z_j) R_j, z_j = sum_i c_ij + b_j."""
    c = layer.contributions(a)
    return _share(layer, c, c.sum(2) + layer.bias, relevance, epsilon)


def gamma(layer, a, relevance, gamma=0.25, stabilizer=1e-6):
    """[Andeol2021], for inputs of any sign; the gamma rule of [Montavon2019] where a >= 0 and z > 0.

    An output above zero shares by c + gamma c+, one below zero by c + gamma c-, one at zero gives nothing.
    """
    c = layer.contributions(a)
    z = c.sum(2) + layer.bias
    total = np.zeros((len(a), *layer.in_shape))
    flat = relevance.reshape(len(a), -1)
    for side, clamp in ((z > 0, lambda v: np.maximum(v, 0)), (z < 0, lambda v: np.minimum(v, 0))):
        shares = c + gamma * clamp(c)
        denominator = shares.sum(2) + layer.bias + gamma * clamp(layer.bias)
        total += _share(layer, shares, denominator, np.where(side, flat, 0.0), stabilizer)
    return total


def zplus(layer, a, relevance, stabilizer=1e-6):
    """The z+ rule of [Montavon2017], with the bias, any sign of input: R_i = sum_j c_ij+ / (sum_i c_ij+ + b_j+) R_j."""
    positive = np.maximum(layer.contributions(a), 0)
    return _share(layer, positive, positive.sum(2) + np.maximum(layer.bias, 0), relevance, stabilizer)


def alphabeta(layer, a, relevance, alpha=2.0, beta=1.0, stabilizer=1e-6):
    """[Bach2015] eq. 60: R_i = sum_j (alpha c_ij+ / z_j+ - beta c_ij- / z_j-) R_j, biases in z+ and z-."""
    c = layer.contributions(a)
    positive, negative = np.maximum(c, 0), np.minimum(c, 0)
    up = _share(layer, positive, positive.sum(2) + np.maximum(layer.bias, 0), relevance, stabilizer)
    down = _share(layer, negative, negative.sum(2) + np.minimum(layer.bias, 0), relevance, stabilizer)
    return alpha * up - beta * down


def zbox(layer, a, relevance, low, high, stabilizer=1e-6):
    """The z^B rule of [Montavon2017]: R_i = sum_j (c_ij - l_i w_ij+ - h_i w_ij-) / (sum_i of the same) R_j, no bias."""
    lows = np.broadcast_to(np.asarray(low, dtype=float), a.shape).reshape(len(a), 1, -1)
    highs = np.broadcast_to(np.asarray(high, dtype=float), a.shape).reshape(len(a), 1, -1)
    shares = (
        layer.contributions(a) - lows * np.maximum(layer.weight, 0)[None] - highs * np.minimum(layer.weight, 0)[None]
    )
    return _share(layer, shares, shares.sum(2), relevance, stabilizer)


def wsquare(layer, a, relevance, stabilizer=1e-6):
    """The w^2 rule of [Montavon2017]: R_i = sum_j w_ij^2 / (sum_i w_ij^2) R_j, no bias."""
    shares = np.repeat((layer.weight**2)[None], len(a), 0)
    return _share(layer, shares, shares.sum(2), relevance, stabilizer)


def flat(layer, a, relevance, stabilizer=1e-6):
    """The flat rule of [Lapuschkin2019]: every existing connection gets the same share, no bias."""
    shares = np.repeat(layer.links[None], len(a), 0)
    return _share(layer, shares, shares.sum(2), relevance, stabilizer)


def gradient(layer, a, relevance):
    """LRP-0 ([Bach2015] eq. 56): what the plain gradient times the input does; for a layer that no rule matches."""
    return epsilon(layer, a, relevance, 0.0)


def chain(model, rule, x, seed):
    """Relevance at the input of a Sequential of linear maps, activations and flattening.

    ``rule(name, layer)`` gives the reference rule ``f(dense_map, a, R)`` of a linear layer. A BatchNorm right after a
    linear map is merged into it, one anywhere else gets the plain gradient; activations pass relevance on unchanged.
    The seed is the gradient at the output, so that relevance starts as output times seed. Returns output, relevance.
    """
    a = x.detach().double().numpy()
    steps = []
    children = list(model.named_children())
    while children:
        name, layer = children.pop(0)
        if isinstance(layer, LINEAR_MAPS):
            dense = DenseMap.of(layer, a.shape[1:])
            if children and isinstance(children[0][1], BATCH_NORMS):
                dense = dense.merged(children.pop(0)[1])
            steps.append((rule(name, layer), dense, a))
            a = dense.forward(a)
        elif isinstance(layer, BATCH_NORMS):
            dense = identity(a.shape[1:]).merged(layer)
            steps.append((gradient, dense, a))
            a = dense.forward(a)
        elif isinstance(layer, ACTIVATIONS):
            a = layer(torch.from_numpy(a)).numpy()
        elif isinstance(layer, (nn.Flatten, nn.Identity, nn.Dropout)):
            shape = a.shape
            a = a.reshape(len(a), -1) if isinstance(layer, nn.Flatten) else a
            steps.append((None, None, np.empty(shape)))
        else:
            raise TypeError(f"the reference does not know {layer}")
    relevance = a * seed.detach().double().numpy()
    for step, dense, before in reversed(steps):
        relevance = relevance.reshape(before.shape) if step is None else step(dense, before, relevance)
    return a, relevance


def identity(shape):
    """The identity map of a shape."""
    eye = np.eye(int(np.prod(shape)))
    return DenseMap(eye, np.zeros(len(eye)), eye, tuple(shape), tuple(shape))
