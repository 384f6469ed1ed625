"""Random weights that leave nothing at a special value, and the same weights without anything additive."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from benchmarks.zoo.case import Case

#: Parameters and buffers that are added to activations, by the last parts of their names.
ADDITIVE = re.compile(
    r"""(^|[._])(
        bias | biases | bias_[ihkv\w]* | b_[io]h | beta | b[12] | shift | [qkv]_bias | in_proj_bias | running_mean
        | moving_mean
        | cls_?token\w* | class_token | class_embedding | dist_token | mask_token | reg_tokens? | register_tokens? | cls
        | distillation_token | global_token | group_token | xpath_\w*embeddings | positions_embed | embed_global
        | latent | query_tokens | prefix_tokens | bias_kv
        | (abs(olute)?_)?pos(ition(al)?)?_(embed(ding)?s?|encoding|embs?|ids_embed) | pos_?embed\d* | pos_?encoding
        | pos_embed(ding)?_?\w* | position_embeddings?\w* | embed_positions\w* | positional_embedding\w* | wpe
        | token_type_embeddings?\w* | word_type_embeddings | temporal_embedding\w* | time_embed | patch_pos_embed
        | token_projection | pixel_pos | patch_pos | \w*mean | pos_embd
        | affine_beta | offset | zero_point | pe | row_embed | col_embed | type_embed\w* | lang(uage)?_embeddings?
    )(\.(weights?|data|parametrizations\..*))?$""",
    re.VERBOSE,
)

#: Names that look additive and are not: rotations.
MULTIPLICATIVE = re.compile(r"rope|rotary|inv_freq|freqs")


#: Running statistics of normalisations.
STATISTIC = re.compile(r"(running|moving)_(mean|var|variance)$")


def perturb(case: Case) -> None:
    """Give every parameter and running statistic a value of no special meaning, and outputs in range.

    Matrices that are zero, or whose rows add up to little, are scaled to preserve the size of activations.
    """
    generator = torch.Generator().manual_seed(1)
    layers = {id(m.weight): m for m in case.model.modules() if isinstance(m, _ConvNd)}
    with torch.no_grad():
        for name, tensor in case.named(case.model):
            if STATISTIC.search(name):
                _perturb_statistic(name, tensor, generator)
            elif isinstance(tensor, nn.Parameter):
                _perturb_parameter(name, tensor, layers.get(id(tensor)), generator)


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator).to(like)


def _perturb_parameter(name: str, p: Tensor, layer: _ConvNd | None, generator: torch.Generator) -> None:
    if not p.is_floating_point() or p.numel() == 0:
        return
    spread = float(p.std()) if p.numel() > 1 else 0.0
    size = float(p.abs().mean())
    if ADDITIVE.search(name) and not MULTIPLICATIVE.search(name):
        p.add_(0.1 * _normal(p, generator))
    elif p.dim() >= 2 and min(p.shape[:2]) > 1 and p.shape.numel() > max(p.shape):
        wanted = math.sqrt(2.0 if layer is not None else 1.0) / math.sqrt(_fan_in(name, p, layer))
        if spread < 1e-4:
            p.copy_(wanted * _normal(p, generator))
        elif spread < wanted:
            p.mul_(wanted / spread)
    elif size < 0.2:
        # A gain that starts at or near zero would hide its branch.
        p.copy_(0.5 + 0.1 * _normal(p, generator)) if layer is None else p.add_(0.1 * _normal(p, generator))
    else:
        p.mul_(1.0 + 0.1 * _normal(p, generator))


def _fan_in(name: str, p: Tensor, layer: _ConvNd | None) -> int:
    if isinstance(layer, _ConvTransposeNd):
        return max(1, p.shape[0] // layer.groups)
    if layer is not None:
        return p[0].numel()
    if name.endswith("kernel"):
        return p.numel() // p.shape[-1]
    return p.shape[-1]


def _perturb_statistic(name: str, statistic: Tensor, generator: torch.Generator) -> None:
    if name.endswith("mean"):
        statistic.add_(0.1 * _normal(statistic, generator))
    else:
        statistic.mul_(0.5 + torch.rand(statistic.shape, generator=generator).to(statistic))


def additive(case: Case) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers that are added to activations, with their names."""
    more = re.compile(case.additive) if case.additive else None
    for name, tensor in case.named(case.model):
        if not tensor.is_floating_point():
            continue
        known = ADDITIVE.search(name) and not MULTIPLICATIVE.search(name)
        if known or (more is not None and more.search(name)):
            yield name, tensor


def remove_additive(case: Case) -> None:
    """Set everything that is added to activations to zero: biases, shifts, running means, position embeddings."""
    with torch.no_grad():
        for _, tensor in additive(case):
            tensor.zero_()
