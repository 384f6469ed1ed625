"""Relevance through fused attention may be differentiated: as finite differences, and as attention written out."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from lrphooks import Composite, LRPError, composites
from lrphooks.engine.attention_node import twice_differentiable
from lrphooks.matching import AnyLinear
from lrphooks.rules import Epsilon, Gradient
from small_networks import weighting
from test_derivatives import check, explained

KEEP = torch.ones(4, 4, dtype=torch.bool)
KEEP[0, 1:] = KEEP[2, ::2] = False
NONE_FOR_ONE = KEEP.clone()
NONE_FOR_ONE[1] = False
ADDED = torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

FORMS = {
    "plain": {},
    "scale": {"scale": 0.9},
    "mask of bools": {"attn_mask": KEEP},
    "mask to add": {"attn_mask": ADDED},
    "nothing to attend to": {"attn_mask": NONE_FOR_ONE},
    "causal": {"is_causal": True},
    "no dropout": {"dropout_p": 0.0},
    "grouped": {"enable_gqa": True},
}


def fused(q, k, v, **options):
    return F.scaled_dot_product_attention(q, k, v, **options)


def by_position(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, **options):
    return F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p, is_causal, **options)


def without_batch(q, k, v, attn_mask=None, **options):
    """Each example by itself, so that queries, keys and values have three dimensions."""
    masks = [None] * len(q) if attn_mask is None else attn_mask.expand(len(q), *attn_mask.shape[-3:])
    masks = [m if m is None or m.dim() < 3 else m[0] for m in masks]
    return torch.stack([fused(*t, attn_mask=m, **options) for *t, m in zip(q, k, v, masks, strict=True)])


def without_heads(q, k, v, attn_mask=None, **options):
    """As one head of an example each, in two dimensions."""
    mask = None if attn_mask is None else attn_mask.expand(*q.shape[:2], *attn_mask.shape[-2:])
    k, v = (t.expand(-1, q.shape[1], -1, -1) for t in (k, v))
    options.pop("enable_gqa", None)
    places = [(i, j) for i in range(q.shape[0]) for j in range(q.shape[1])]
    out = [fused(q[p], k[p], v[p], attn_mask=None if mask is None else mask[p], **options) for p in places]
    return torch.stack(out).view(q.shape)


def checkpointed(q, k, v, **options):
    return checkpoint(lambda *t: fused(*t, **options), q, k, v, use_reentrant=False)


def written(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    if enable_gqa:
        k, v = (t.repeat_interleave(q.shape[1] // t.shape[1], 1) for t in (k, v))
    scores = q @ k.mT * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        boolean = attn_mask.dtype == torch.bool
        scores = scores.masked_fill(~attn_mask, -math.inf) if boolean else scores + attn_mask
    # Where a query may attend to nothing, torch gives 0.
    empty = scores.isneginf().all(-1, keepdim=True)
    return scores.masked_fill(empty, 0).softmax(-1).masked_fill(empty, 0) @ v


class Attending(nn.Module):
    """Queries, keys and values by a linear layer each, with two heads, or one for keys and values."""

    def __init__(self, attend, options):
        super().__init__()
        torch.manual_seed(0)
        width = 3 if options.get("enable_gqa") else 6
        self.q, self.k, self.v = nn.Linear(6, 6), nn.Linear(6, width), nn.Linear(6, width)
        self.head, self.attend, self.options = nn.Linear(6, 3), attend, options
        self.double()

    def forward(self, x):
        q, k, v = (layer(x).unflatten(-1, (-1, 3)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.head(self.attend(q, k, v, **self.options).transpose(1, 2).flatten(2)).sum(1)


def x_of(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


LEAF = x_of(2, 4, 6).requires_grad_()

COMPOSITES = {
    "AttnLRP": composites.AttnLRP(0.25),
    "CPLRP": composites.CPLRP(0.25),
    "gradient": Composite([(F.scaled_dot_product_attention, Gradient()), (AnyLinear, Epsilon(0.25))]),
}


def derivatives(composite, model, x):
    leaf = x.clone().requires_grad_()
    found = explained(composite, model, leaf, create_graph=True)
    wanted = [leaf, *model.parameters()]
    return torch.autograd.grad(found.pow(3).sum(), wanted, allow_unused=True, materialize_grads=True)


@pytest.mark.parametrize("preset", COMPOSITES)
@pytest.mark.parametrize(
    "attend", [fused, by_position, without_batch, without_heads, checkpointed], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("form", FORMS)
def test_second_derivatives_of_fused_attention(form, attend, preset):
    check(COMPOSITES[preset], Attending(attend, FORMS[form]), x_of(2, 4, 6))


@pytest.mark.parametrize("preset", ["AttnLRP", "CPLRP"])
@pytest.mark.parametrize("form", FORMS)
def test_they_are_those_of_attention_that_is_written_out(form, preset):
    x = x_of(2, 4, 6)
    found, expected = (derivatives(COMPOSITES[preset], Attending(f, FORMS[form]), x) for f in (fused, written))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_third_derivatives():
    def third(attend):
        model, leaf = Attending(attend, {}), x_of(2, 4, 6).requires_grad_()
        with COMPOSITES["AttnLRP"].context(model):
            output = model(leaf)
            (first,) = torch.autograd.grad(output, leaf, weighting(output), create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf, create_graph=True)
        return torch.autograd.grad(second.square().sum(), leaf)[0]

    torch.testing.assert_close(third(fused), third(written), rtol=1e-8, atol=1e-10)


class Whole(nn.Module):
    """Attention of torch's own module, in the forms that it hands to the fused kernel."""

    def __init__(self, **options):
        super().__init__()
        torch.manual_seed(0)
        self.attention, self.head = nn.MultiheadAttention(6, 2, batch_first=True), nn.Linear(6, 3)
        self.options = options
        self.double()

    def forward(self, x):
        return self.head(self.attention(x, x, x, **self.options)[0].mean(1))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"key_padding_mask": torch.tensor([[False, False, False, True], [False] * 4])},
        {"attn_mask": ~torch.ones(4, 4, dtype=torch.bool).tril(), "is_causal": True},
        {"attn_mask": ADDED[0, 0]},
    ],
    ids=["plain", "padding", "causal", "mask"],
)
def test_multihead_attention(options):
    """Whether its weights are asked for, which torch computes by products, or not."""
    check(composites.AttnLRP(0.25), Whole(need_weights=False, **options), x_of(2, 4, 6))
    with_weights, without = (
        derivatives(COMPOSITES["AttnLRP"], Whole(need_weights=need, **options), x_of(2, 4, 6)) for need in (True, False)
    )
    for one, other in zip(with_weights, without, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("layer", ["encoder", "decoder"])
def test_transformer_layers(layer):
    class Layered(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            make = nn.TransformerEncoderLayer if layer == "encoder" else nn.TransformerDecoderLayer
            self.layer, self.head = make(6, 2, 8, activation=F.gelu, batch_first=True), nn.Linear(6, 3)
            self.double().eval()

        def forward(self, x):
            return self.head(self.layer(*[x] * (1 if layer == "encoder" else 2)).mean(1))

    check(composites.AttnLRP(0.25), Layered(), x_of(2, 4, 6), tol=1e-5)


def test_attention_under_the_rule_of_a_module():
    composite = Composite([(nn.MultiheadAttention, Gradient()), (AnyLinear, Epsilon(0.25))])
    found, expected = (derivatives(composite, Whole(need_weights=need), x_of(2, 4, 6)) for need in (False, True))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("backend", [SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], ids=lambda b: b.name)
def test_the_kernel_that_the_model_asks_for(backend):
    """It computes the value, bit for bit, and the derivative by operations is the same for each."""

    def asking(*tensors, **options):
        with sdpa_kernel(backend):
            return fused(*tensors, **options)

    x = x_of(2, 4, 6)
    model = Attending(asking, {})
    with COMPOSITES["AttnLRP"].context(model):
        output = model(x.clone().requires_grad_())
    assert torch.equal(output, model(x.clone().requires_grad_()))
    check(COMPOSITES["AttnLRP"], model, x)


def test_an_output_that_the_model_overwrites_is_an_error_as_without_lrphooks():
    def in_place(*tensors):
        return fused(*tensors).add_(2)

    model = Attending(in_place, {})
    for run in (lambda: model(x_of(2, 4, 6)).sum().backward(), lambda: explained(COMPOSITES["AttnLRP"], model, LEAF)):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            run()


def test_dropped_weights_cannot_be_had_again():
    """As flash attention on a GPU drops some; here the kernel has been told of none, and the node of some."""
    q, k, v = (x_of(2, 2, 4, 3).requires_grad_() for _ in range(3))
    out = twice_differentiable(F.scaled_dot_product_attention(q, k, v), (q, k, v, None), 0.5, causal=False)
    torch.autograd.grad(out.sum(), q, retain_graph=True)
    with pytest.raises(LRPError, match=r"dropout_p=0\.5 cannot be differentiated.*model\.eval\(\).*SDPBackend\.MATH"):
        torch.autograd.grad(out.sum(), q, create_graph=True)
