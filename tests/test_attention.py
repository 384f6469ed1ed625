"""Attention in all its forms has the relevance of softmax(q k^T) v written out with explicit shares."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lrphooks import composites
from references.operations import agrees, gradient_times_input, shared
from references.operations import values as v
from small_networks import equal, relevance, weighting

PRESETS = {"AttnLRP": composites.AttnLRP(0), "CPLRP": composites.CPLRP(0)}


def reference(q, k, v, mask=None, scale=None, *, constant=False, carries=(True, True, True)):
    """Attention with what the convention calls constant detached; values before it as torch defines them.

    AttnLRP gives the weights and the values half each, the weights hand theirs to the scores by the Jacobian of
    softmax, and the scores half each to query and key. CP-LRP gives everything to the values. What does not depend
    on the input has no share.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    if constant:
        scores = (q @ k.mT).detach() * scale
    elif carries[0] and carries[1]:
        scores = shared(torch.matmul)(q, k.mT) * scale
    else:
        scores = q @ k.mT * scale
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else scores + mask
    p = scores.softmax(-1)
    if constant:
        return p.detach() @ v
    return shared(torch.matmul)(p, v) if (carries[0] or carries[1]) and carries[2] else p @ v


Q, K, V = v(2, 2, 4, 3), v(2, 2, 5, 3, seed=1, domain="nonzero"), v(2, 2, 5, 6, seed=2, domain="nonzero")
KEEP = torch.ones(4, 5, dtype=torch.bool)
KEEP[0, 1:] = KEEP[2, ::2] = False
ADDED = v(4, 5, seed=9, domain="nonzero")
GROUPED_Q = v(2, 4, 4, 3, seed=4, domain="nonzero")
SDPA = {
    "plain": {},
    "scale": {"scale": 0.9},
    "mask of bools": {"attn_mask": KEEP},
    "mask to add": {"attn_mask": ADDED},
    "causal": {"is_causal": True},
    "no dropout": {"dropout_p": 0.0},
    "grouped": {"enable_gqa": True},
}


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("name", SDPA)
def test_fused_attention_equals_its_definition(name, preset):
    options = SDPA[name]
    mask = options.get("attn_mask")
    if options.get("is_causal"):
        mask = torch.ones(4, 5, dtype=torch.bool).tril()
    q = GROUPED_Q if name == "grouped" else Q

    def surrogate(q, k, v):
        if name == "grouped":
            k, v = (t.repeat_interleave(2, 1) for t in (k, v))
        return reference(q, k, v, mask, options.get("scale"), constant=preset == "CPLRP")

    def fused(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, **options)

    def by_keyword(q, k, v):
        return F.scaled_dot_product_attention(value=v, key=k, query=q, **options)

    def aten(q, k, v):
        return torch.ops.aten.scaled_dot_product_attention(q, k, v, **options)

    for function in (fused, by_keyword, aten):
        agrees(function, surrogate, (q, K, V), PRESETS[preset])


def explicit(q, k, v):
    return (q @ k.transpose(-2, -1) / math.sqrt(3)).softmax(-1) @ v


def by_baddbmm(q, k, v):
    scores = torch.baddbmm(ADDED.expand(4, 4, 5), q.flatten(0, 1), k.flatten(0, 1).mT, beta=0.0, alpha=1 / math.sqrt(3))
    return torch.bmm(scores.softmax(-1), v.flatten(0, 1))


def by_einsum(q, k, v):
    scores = torch.einsum("bhid,bhjd->bhij", q * 3**-0.5, k)
    return torch.einsum("bhij,bhjd->bhid", F.softmax(scores, dim=-1), v)


def row_by_row(q, k, v):
    rows = [F.scaled_dot_product_attention(q[:, :, i : i + 1], k, v) for i in range(q.shape[2])]
    return torch.cat(rows, 2)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("function", [explicit, by_baddbmm, by_einsum, row_by_row])
def test_attention_written_out_equals_the_fused_one(function, preset):
    agrees(function, lambda *qkv: reference(*qkv, constant=preset == "CPLRP"), (Q, K, V), PRESETS[preset])


CARRIES = [(a, b, c) for a in (True, False) for b in (True, False) for c in (True, False) if a or b or c]


@pytest.mark.parametrize(("carries", "preset"), [(c, p) for c in CARRIES for p in PRESETS if c[2] or p == "AttnLRP"])
def test_only_what_depends_on_the_input_has_a_share(carries, preset):
    """Learned queries, a memory of the encoder that is fixed, and so on."""
    fixed = (Q, K, V)
    operands = tuple(t for t, c in zip(fixed, carries, strict=True) if c)

    def place(function):
        def call(*given):
            rest = iter(given)
            return function(*(next(rest) if c else t for t, c in zip(fixed, carries, strict=True)))

        return call

    constant = preset == "CPLRP"
    surrogate = place(lambda *qkv: reference(*qkv, constant=constant, carries=carries))
    for function in (F.scaled_dot_product_attention, explicit):
        agrees(place(function), surrogate, operands, PRESETS[preset])


@pytest.mark.parametrize("preset", PRESETS)
def test_one_tensor_for_query_key_and_value(preset):
    constant = preset == "CPLRP"
    same = v(2, 2, 4, 3, domain="nonzero")
    agrees(
        lambda a: F.scaled_dot_product_attention(a, a, a),
        lambda a: reference(a, a, a, constant=constant),
        (same,),
        PRESETS[preset],
    )


# --- modules ---


class Heads(nn.Module):
    """nn.MultiheadAttention written out with surrogates, from the module's own parameters."""

    def __init__(self, module, *, constant, causal=None, padding=None, carries=(True, True, True), average=True):
        super().__init__()
        self.module, self.constant, self.carries = module, constant, carries
        self.mask, self.padding, self.average = causal, padding, average

    def forward(self, query, key, value):
        m = self.module
        if m.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        size = m.embed_dim
        if m._qkv_same_embed_dim:
            weights = m.in_proj_weight.split(size)
        else:
            weights = (m.q_proj_weight, m.k_proj_weight, m.v_proj_weight)
        biases = (0, 0, 0) if m.in_proj_bias is None else m.in_proj_bias.split(size)
        q, k, v = (t @ w.T + b for t, w, b in zip((query, key, value), weights, biases, strict=True))
        n = q.shape[1]
        if m.bias_k is not None:
            k, v = torch.cat((k, m.bias_k.expand(1, n, size))), torch.cat((v, m.bias_v.expand(1, n, size)))
        q, k, v = (t.reshape(len(t), n, m.num_heads, -1).permute(1, 2, 0, 3) for t in (q, k, v))
        if m.add_zero_attn:
            k, v = (torch.cat((t, torch.zeros_like(t[:, :, :1])), 2) for t in (k, v))
        added = torch.zeros(n, 1, q.shape[2], k.shape[2], dtype=torch.float64)
        for mask in (self.mask, None if self.padding is None else self.padding[:, None, None]):
            if mask is not None:
                extra = k.shape[2] - mask.shape[-1]
                hidden = F.pad(mask.float().masked_fill(mask, -math.inf).double(), (0, extra))
                added = added + hidden
        out = reference(q, k, v, added, constant=self.constant, carries=self.carries)
        out = out.permute(2, 0, 1, 3).flatten(2) @ m.out_proj.weight.T
        out = out if m.out_proj.bias is None else out + m.out_proj.bias
        return out.transpose(0, 1) if m.batch_first else out


CAUSAL = torch.ones(3, 3, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False, False, True], [False, False, False]])
FLAGS = {
    "plain": {},
    "batch first": {"batch_first": True},
    "no bias": {"bias": False},
    "bias_kv": {"add_bias_kv": True},
    "zero_attn": {"add_zero_attn": True, "batch_first": True},
    "kdim, vdim": {"kdim": 4, "vdim": 6},
    "both added": {"add_bias_kv": True, "add_zero_attn": True},
    "dropout, evaluated": {"dropout": 0.3},
}
CALLS = {
    "weights": {},
    "no weights": {"need_weights": False},
    "each head": {"average_attn_weights": False},
    "causal": {"attn_mask": CAUSAL},
    "causal hint": {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
    "padding": {"key_padding_mask": PADDING},
    "both masks": {"attn_mask": CAUSAL, "key_padding_mask": PADDING, "need_weights": False},
}


class SelfAttention(nn.Module):
    """Attention of x to itself, or to linear maps of it where the sizes differ."""

    def __init__(self, inner, attend, sizes):
        super().__init__()
        self.inner, self.attend = inner, attend
        self.maps = nn.ModuleList(nn.Linear(8, s, bias=False) if s != 8 else nn.Identity() for s in sizes)

    def forward(self, x):
        return self.attend(self.inner, *(m(x) for m in self.maps))


#: Beside keys of its own making, torch reads the hint as another mask than the one that it stands for.
MODULES = [
    (f, c) for f in FLAGS for c in CALLS if c != "causal hint" or f not in ("bias_kv", "zero_attn", "both added")
]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize(("flags", "call"), MODULES)
def test_multihead_attention(flags, call, preset):
    torch.manual_seed(1)
    module = nn.MultiheadAttention(8, 2, **FLAGS[flags]).double().eval()
    for p in module.parameters():
        p.data = torch.randn_like(p) * 0.4
    options = CALLS[call]
    sizes = (8, FLAGS[flags].get("kdim", 8), FLAGS[flags].get("vdim", 8))
    model = SelfAttention(module, lambda m, *qkv: m(*qkv, **options)[0], sizes).double()
    heads = Heads(
        module,
        constant=preset == "CPLRP",
        causal=options.get("attn_mask"),
        padding=options.get("key_padding_mask"),
    )
    twin = SelfAttention(heads, lambda m, *qkv: m(*qkv), sizes).double()
    twin.maps = model.maps
    x = torch.randn(2, 3, 8, dtype=torch.float64) if module.batch_first else torch.randn(3, 2, 8, dtype=torch.float64)
    out = twin(x)
    torch.testing.assert_close(out, model(x), rtol=1e-10, atol=1e-12)
    expected = gradient_times_input(lambda x: (twin(x) * weighting(out)).reshape(-1), x)
    equal(relevance(PRESETS[preset], model, x), expected, 1e-10)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_layers(activation, norm_first, preset):
    """An encoder layer and a decoder layer, evaluated, equal the same written out with surrogates."""
    torch.manual_seed(2)
    options = {"batch_first": True, "norm_first": norm_first, "activation": activation}
    encoder = nn.TransformerEncoderLayer(8, 2, 12, **options).double().eval()
    decoder = nn.TransformerDecoderLayer(8, 2, 12, **options).double().eval()
    constant = preset == "CPLRP"

    def norm(n, a):
        mean = a.mean(-1, keepdim=True)
        deviation = (a.var(-1, keepdim=True, correction=0) + n.eps).sqrt().detach()
        return (a - mean) / deviation * n.weight + n.bias

    def act(a):
        return a.relu() if activation == "relu" else a * (F.gelu(a) / a).detach()

    def feed(m, a):
        return act(a @ m.linear1.weight.T + m.linear1.bias) @ m.linear2.weight.T + m.linear2.bias

    def layer(a, parts):
        for n, part in parts:
            a = a + part(norm(n, a)) if norm_first else norm(n, a + part(a))
        return a

    def attention(m, memory=None):
        heads = Heads(m, constant=constant)
        return lambda a: heads(a, *([a, a] if memory is None else [memory, memory]))

    def written(x):
        memory = layer(x, [(encoder.norm1, attention(encoder.self_attn)), (encoder.norm2, lambda a: feed(encoder, a))])
        return layer(
            x[:, :2],
            [
                (decoder.norm1, attention(decoder.self_attn)),
                (decoder.norm2, attention(decoder.multihead_attn, memory)),
                (decoder.norm3, lambda a: feed(decoder, a)),
            ],
        )

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.decoder = encoder, decoder

        def forward(self, x):
            return self.decoder(x[:, :2], self.encoder(x))

    model, x = Both(), torch.randn(2, 3, 8, dtype=torch.float64)
    out = written(x)
    torch.testing.assert_close(out, model(x), rtol=1e-9, atol=1e-11)
    expected = gradient_times_input(lambda x: (written(x) * weighting(out)).reshape(-1), x)
    equal(relevance(PRESETS[preset], model, x), expected, 1e-9)


def test_fused_attention_conserves_with_constant_weights():
    torch.manual_seed(0)
    module = nn.MultiheadAttention(8, 2, bias=False, batch_first=True).double()
    model = SelfAttention(module, lambda m, *qkv: m(*qkv, need_weights=False)[0], (8, 8, 8))
    x = torch.randn(2, 3, 8, dtype=torch.float64)
    seed = weighting(model(x))
    found = relevance(PRESETS["CPLRP"], model, x).sum()
    torch.testing.assert_close(found, (model(x) * seed).sum().detach(), rtol=1e-10, atol=1e-12)
