"""The rules, layers and inputs that the numerical tests combine, in terms that any implementation can be built from."""

import functools
from dataclasses import dataclass, field

import torch
from torch import nn

from references import dense
from references.dense import Shift


@dataclass(frozen=True)
class RuleCase:
    """One rule with its arguments; ``kwargs`` may hold a ``Shift``, which stands for a stabiliser."""

    id: str
    name: str
    kwargs: dict = field(default_factory=dict)

    def reference(self):
        """The dense reference ``f(dense_map, a, R)``."""
        if self.name == "ZBox":
            kwargs = {k: v.numpy() if isinstance(v, torch.Tensor) else v for k, v in self.kwargs.items()}
            return functools.partial(dense.zbox, **kwargs)
        return functools.partial(getattr(dense, self.name.lower()), **self.kwargs)

    def build(self, namespace, stabilizer):
        """The same rule from another implementation: a module of rules and its stabiliser class."""
        kwargs = {
            k: stabilizer(epsilon=v.epsilon, clip=v.clip, norm_scale=v.norm_scale, dim=v.dim)
            if isinstance(v, Shift)
            else v
            for k, v in self.kwargs.items()
        }
        return getattr(namespace, self.name)(**kwargs)

    @property
    def by_input(self):
        """Whether relevance is a multiple of the input, so that none is left where the input is zero."""
        return self.name not in ("ZBox", "WSquare", "Flat")


RULES = [
    RuleCase("epsilon", "Epsilon"),
    RuleCase("epsilon0", "Epsilon", {"epsilon": 0.0}),
    RuleCase("gamma", "Gamma"),
    RuleCase("gamma1", "Gamma", {"gamma": 1.5}),
    RuleCase("zplus", "ZPlus"),
    RuleCase("alpha2beta1", "AlphaBeta", {"alpha": 2.0, "beta": 1.0}),
    RuleCase("alpha1beta0", "AlphaBeta", {"alpha": 1.0, "beta": 0.0}),
    RuleCase("zbox", "ZBox", {"low": -3.5, "high": 4.0}),
    RuleCase("wsquare", "WSquare"),
    RuleCase("flat", "Flat"),
]

_BIG = {"shift": Shift(0.3), "clip": Shift(0.4, clip=True), "norm": Shift(0.2, norm_scale=True)}
_BIG["normclip"] = Shift(0.5, clip=True, norm_scale=True)
_BIG["dim"] = Shift(0.2, norm_scale=True, dim=(1,))
STABILIZED = [
    RuleCase(f"{name}-{how}", name, {**kwargs, ("epsilon" if name == "Epsilon" else "stabilizer"): stabilizer})
    for how, stabilizer in _BIG.items()
    for name, kwargs in (
        ("Epsilon", {}),
        ("Gamma", {"gamma": 0.5}),
        ("ZPlus", {}),
        ("AlphaBeta", {"alpha": 2.5, "beta": 1.5}),
        ("ZBox", {"low": -3.5, "high": 4.0}),
        ("WSquare", {}),
        ("Flat", {}),
    )
]

# layer and shape of one sample
LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "linear-nobias": (lambda: nn.Linear(6, 5, bias=False), (6,)),
    "linear-tokens": (lambda: nn.Linear(4, 3), (3, 4)),
    "conv1d": (lambda: nn.Conv1d(2, 3, 3), (2, 6)),
    "conv1d-options": (lambda: nn.Conv1d(4, 4, 3, stride=2, padding=2, dilation=2, groups=2), (4, 8)),
    "conv2d": (lambda: nn.Conv2d(2, 3, 3), (2, 5, 4)),
    "conv2d-nobias-stride": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), (3, 5, 4)),
    "conv2d-gap": (lambda: nn.Conv2d(2, 2, 2, stride=3), (2, 6, 7)),  # pixels that no output sees
    "conv2d-dilation-groups": (lambda: nn.Conv2d(4, 6, 3, padding=2, dilation=2, groups=2), (4, 4, 5)),
    "conv2d-depthwise": (lambda: nn.Conv2d(3, 6, 3, padding=1, groups=3), (3, 4, 4)),
    "conv2d-same": (lambda: nn.Conv2d(2, 3, (2, 4), padding="same", dilation=(1, 2)), (2, 4, 6)),
    "conv2d-pointwise": (lambda: nn.Conv2d(3, 4, 1), (3, 3, 3)),
    "conv3d": (lambda: nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=(0, 1, 1)), (2, 3, 3, 3)),
    "conv3d-groups": (lambda: nn.Conv3d(2, 4, 2, dilation=(1, 2, 1), groups=2, bias=False), (2, 3, 4, 3)),
    "convtranspose1d": (lambda: nn.ConvTranspose1d(4, 4, 3, stride=3, output_padding=1, groups=2), (4, 3)),
    "convtranspose2d": (lambda: nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1), (3, 3, 2)),
    "convtranspose2d-options": (
        lambda: nn.ConvTranspose2d(4, 4, (3, 2), stride=(1, 2), dilation=(2, 1), groups=2, bias=False),
        (4, 2, 3),
    ),
    "convtranspose3d": (lambda: nn.ConvTranspose3d(2, 2, 2, stride=(2, 1, 2), padding=(0, 1, 0)), (2, 2, 3, 2)),
}
SIGNS = ("nonnegative", "signed")


def layer(name, seed=0):
    """A layer in float64 with normally distributed weights and bias, and the shape of one sample."""
    make, shape = LAYERS[name]
    torch.manual_seed(seed)
    return randomize(make()), shape


def randomize(module, seed=None):
    """Give every layer generic weights of both signs, in float64 and evaluation mode: biases, scales, statistics."""
    if seed is not None:
        torch.manual_seed(seed)
    module = module.double().eval()
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, dense.LINEAR_MAPS):
                fan = part.weight[0].numel() ** 0.5
                part.weight.copy_(torch.randn_like(part.weight) / fan)
                if part.bias is not None:
                    part.bias.copy_(0.5 * torch.randn_like(part.bias))
            elif isinstance(part, dense.BATCH_NORMS):
                part.running_mean.copy_(0.5 * torch.randn_like(part.running_mean))
                part.running_var.copy_(0.3 + torch.rand_like(part.running_var))
                if part.affine:
                    # both signs: a negative scale swaps the positive and the negative part of the merged weight
                    part.weight.copy_(0.5 + torch.rand_like(part.weight))
                    part.weight[::2] *= -1
                    part.bias.copy_(0.5 * torch.randn_like(part.bias))
    return module


def sample(shape, sign, batch=2, seed=1):
    """A batch of inputs: ``nonnegative`` or ``signed``."""
    x = torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return x.abs() if sign == "nonnegative" else x


def generic(shape, seed=2):
    """A seed of both signs for an output of this shape, away from zero."""
    values = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return values + 0.2 * values.sign()
