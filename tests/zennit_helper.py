"""The only door to zennit: rules, relevance and module variants that zennit handles correctly."""

import torch

import torchvision_shim  # noqa: F401  (before zennit, which imports torchvision)

# isort: split
import zennit.rules
from torch import nn
from zennit.canonizers import SequentialMergeBatchNorm
from zennit.composites import LayerMapComposite
from zennit.core import Stabilizer
from zennit.layer import Sum
from zennit.types import Activation, AvgPool, BatchNorm, Linear


def rule(case):
    """zennit's hook for a RuleCase. Its w^2 rule counts the squared bias as a contribution, the paper's does not."""
    if case.name == "WSquare":
        case = type(case)(case.id, case.name, {**case.kwargs, "zero_params": "bias"})
    return case.build(zennit.rules, Stabilizer)


def everywhere(hook):
    """One hook on every linear layer, relevance unchanged through activations and merged BatchNorms."""
    return LayerMapComposite(
        [
            (Activation, zennit.rules.Pass()),
            (Sum, zennit.rules.Norm()),
            (AvgPool, zennit.rules.Norm()),
            (BatchNorm, zennit.rules.Pass()),
            (Linear, hook),
        ],
        canonizers=[SequentialMergeBatchNorm()],
    )


def relevance(composite, model, x, seed, gradient=False):
    """zennit's relevance of ``x``: it starts from relevance, output times seed (``gradient=True``: from the seed)."""
    x = x.detach().clone().requires_grad_()
    with composite.context(model) as modified:
        output = modified(x)
        (result,) = torch.autograd.grad(output, x, seed if gradient else seed * output.detach())
    return result.detach()


class Residual(nn.Module):
    """A residual sum that zennit sees: it doubles the relevance of ``body(x) + skip(x)`` written with a plus sign."""

    def __init__(self):
        super().__init__()
        self.sum = Sum()

    def forward(self, body, skip):
        """The sum of two tensors."""
        return self.sum(torch.stack([body, skip], dim=-1))


def preset(name, *, exact=False, **kwargs):
    """zennit's preset of this name, with its canonizers for BatchNorm and torchvision's residual sums.

    ``exact`` takes the stabilisers of sums and average pools away, which are no contributions of a linear map.
    """
    from zennit import composites
    from zennit.torchvision import ResNetCanonizer

    if name in ("GuidedBackprop", "DeconvNet"):
        return getattr(composites, name)(**kwargs)  # a residual sum and a BatchNorm have the right gradient
    if exact:
        kwargs["layer_map"] = [(Sum, zennit.rules.Norm(1e-14)), (AvgPool, zennit.rules.Norm(1e-14))]
    return getattr(composites, name)(canonizers=[ResNetCanonizer()], **kwargs)  # merges BatchNorms as well
