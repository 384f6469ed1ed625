"""The sum of relevance: Σ R = f(x) where no bias, no stabiliser and no rule absorbs any."""

import pytest
import torch
from torch import nn

from lrphooks import composites, lrp
from lrphooks.rules import AlphaBeta, Epsilon, Flat, Gamma, WSquare, ZBox, ZPlus
from small_networks import every_layer, network, on_first

EXACT = every_layer(Epsilon(0))


CONSERVING = {
    "LRP-0": EXACT,
    "ZPlus": every_layer(ZPlus(0)),
    "Gamma": every_layer(Gamma(0.5, 0)),
    "Flat first": on_first(Flat(0), Epsilon(0)),
    "WSquare first": on_first(WSquare(0), Epsilon(0)),
    "ZBox first": on_first(ZBox(-4.0, 4.0, 0), Epsilon(0)),
    "EpsilonPlusFlat": composites.EpsilonPlusFlat(0, 0),
    "EpsilonGammaBox": composites.EpsilonGammaBox(-4.0, 4.0, 0, 0.25, 0),
    "AttnLRP": composites.AttnLRP(0),
}


def without_biases(name):
    """Biases, shifts, position embeddings and running means are zero; inputs to ZPlus layers have positive parts."""
    model, x = network(name)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "bias" in key or key in ("position", "b1", "b2"):
                parameter.zero_()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.zero_()
    return model, x.clamp(-3.9, 3.9)


#: Where no ReLU follows, a unit without any positive contribution has nowhere to send its relevance under z-plus.
ABSORBING = {(name, rule) for name in ("residual", "strange") for rule in ("ZPlus", "EpsilonPlusFlat")}


@pytest.mark.parametrize(
    ("name", "rule"),
    [(n, r) for n in ("vgg", "residual", "strange", "gates") for r in CONSERVING if (n, r) not in ABSORBING],
)
def test_relevance_sums_to_the_output(name, rule):
    """Row by row, on networks without biases, with nothing to stabilise, in float64."""
    model, x = without_biases(name)
    composite = CONSERVING[rule]
    for target in range(3):
        output = model(x)[:, target].detach()
        found = lrp(model, x, target, composite)
        torch.testing.assert_close(found.sum((1, 2, 3)), output, rtol=1e-9, atol=1e-12)


def test_attention_conserves_with_constant_weights():
    model, x = without_biases("tokens")
    found = lrp(model, x, 1, composites.CPLRP(0))
    torch.testing.assert_close(found.sum((1, 2, 3)), model(x)[:, 1].detach(), rtol=1e-9, atol=1e-12)


def test_alpha_beta_conserves_where_there_are_contributions_of_both_signs():
    torch.manual_seed(0)
    model = nn.Linear(12, 3, bias=False).double()
    x = torch.randn(4, 12, dtype=torch.float64)
    for rule in (AlphaBeta(2, 1, 0), AlphaBeta(2.3, 1.3, 0), AlphaBeta(1, 0, 0)):
        torch.testing.assert_close(lrp(model, x, 1, every_layer(rule)).sum(1), model(x)[:, 1].detach())
