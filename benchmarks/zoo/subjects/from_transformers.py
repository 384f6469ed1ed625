"""transformers: small random configurations of model types, with eager and fused attention.

Explained through ``inputs_embeds`` (of encoder and decoder), ``pixel_values``, ``input_features`` or ``input_values``.
Sizes are set by the names that configurations share; what a type needs beside is in ``SPECIAL``.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo.case import Case, Subject
from benchmarks.zoo.subjects import shim as _shim  # noqa: F401  (before transformers, which imports torchvision)

# isort: split
import transformers
from transformers import MODEL_MAPPING, AutoModel, PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from lrphooks.rules import Gradient, Identity, Rule

#: Types that build at a small size; written by ``transformers_types``.
PATH = Path(__file__).with_name("transformers_types.json")
ATTENTION = ("eager", "sdpa")
#: Mixtures of experts run in one grouped product, or in a loop, which knows double precision too.
LOOP = "looped experts"
#: Types that put images between words, on words alone.
WORDS = "words alone"
ROWS, STEPS = 2, 7

#: Sizes by the names that configurations share.
SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "embedding_size", "emb_dim", "model_dim",
         "word_embed_proj_dim", "projection_dim", "hidden_dim", "attention_hidden_size", "state_hidden_size",
         "vision_embed_dim", "output_dim", "d_embed", "decoder_hidden_size", "mask_feature_size", "feature_size",
         "out_hidden_size", "fusion_hidden_size", "reassemble_hidden_size"), 32,
    ),
    **dict.fromkeys(
        ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers", "depth",
         "num_encoder_layers", "num_decoder_layers", "decoder_num_hidden_layers", "vision_num_hidden_layers"), 2,
    ),
    **dict.fromkeys(
        ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
         "decoder_attention_heads", "num_attention_heads_per_layer", "decoder_num_attention_heads"), 4,
    ),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_head_kv", "decoder_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "d_kv", "d_head", "attention_head_dim"), 8),
    **dict.fromkeys(
        ("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner", "hidden_dim_ff",
         "mlp_dim", "ffn_hidden_size", "dim_feedforward", "d_inner", "decoder_intermediate_size",
         "shared_expert_intermediate_size"), 64,
    ),
    **dict.fromkeys(("moe_intermediate_size", "expert_dim", "lru_width"), 32),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_top_k", "moe_k"), 2),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "text_vocab_size"), 99),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 1),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_source_positions", "max_target_positions",
         "max_seq_len", "context_length"), 64,
    ),
    "image_size": 32, "patch_size": 8, "num_mel_bins": 16, "num_codebook_vectors": 16, "n_groups": 1,
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "time_step_rank": 4, "state_size": 8,
    "embed_dims": 32, "num_queries": 5, "bypass_layers": (), "q_lora_rank": 16, "kv_lora_rank": 16,
    "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "hidden_size_per_layer_input": 8,
}  # fmt: skip

EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")

#: Types that compare an image with words: their product, not their sum.
TWO_TOWERS = frozenset(
    {"align", "aimv2", "altclip", "blip", "chinese_clip", "clip", "clipseg", "clvp", "flava", "groupvit", "metaclip_2",
     "owlv2", "owlvit", "siglip", "siglip2", "vision-text-dual-encoder", "xclip"}
)  # fmt: skip
TOKENS = r"(word_embeddings|embed_tokens|token_embedding|wte)\.weight$"
#: Parameters of single types that add to activations.
ADDED: dict[str, str] = dict.fromkeys(("inkling2_text", "inkling2_loop_text"), r"static_weight$")

#: Rules for the autograd functions of single types, as lrphooks asks for them. BLOOM's is a GELU; that of YOSO is
#: attention in one piece, whose inputs have no rule but the gradient that it defines.
ENTRIES: dict[str, dict[str, Rule]] = {
    "bloom": {"GeLUFunction": Identity()},
    "yoso": {"YosoCumulation": Gradient()},
}

#: What some types need beside, or instead.
SPECIAL: dict[str, dict[str, Any]] = {
    "albert": {"embedding_size": 16},
    "convnext": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": 64, "patch_size": 4},
    "convnextv2": {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 2, 1], "image_size": 64, "patch_size": 4},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "deberta": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "dinat": {"depths": [1, 1], "num_heads": [2, 4], "embed_dim": 16},
    "bamba": {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_n_groups": 1, "mamba_d_state": 8},
    "codegen": {"rotary_dim": 4},
    "deepseek_v2": {"num_key_value_heads": 4},
    "deepseek_v3": {"num_key_value_heads": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_chunk_size": 4},
    "funnel": {"block_sizes": [1, 1], "d_head": 8, "n_head": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "window_size": 4},
    "gptj": {"rotary_dim": 4},
    "electra": {"embedding_size": 16},
    "gemma3": {"mm_tokens_per_image": 4},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4},
    "longformer": {"attention_window": 4},
    "mamba": {"intermediate_size": 64, "conv_kernel": 4},
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 4},
    "modernbert": {"global_attn_every_n_layers": 2, "local_attention": 4},
    "rwkv": {"attention_hidden_size": 32, "intermediate_size": 64},
    "segformer": {
        "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 3, 4], "depths": [1, 1, 1, 1], "image_size": 64,
    },
    "swin": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2},
    "swinv2": {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4, "patch_size": 2},
    "textnet": {"image_size": [64, 64]},
    "wav2vec2": {"conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2)},
    "hubert": {"conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2)},
    "wavlm": {"conv_dim": (16, 16, 16), "conv_kernel": (10, 3, 2), "conv_stride": (5, 2, 2)},
    "whisper": {"max_source_positions": 20},
    "xlnet": {"d_model": 32, "n_head": 4, "d_inner": 64},
}  # fmt: skip


def subjects() -> list[Subject]:
    """Return each type with each kind of attention that it has."""
    transformers.logging.set_verbosity_error()
    types: dict[str, list[str]] = json.loads(PATH.read_text(encoding="utf-8"))
    return [
        Subject("transformers", f"{name}, {kind}", partial(build, name, kind))
        for name, kinds in types.items()
        for kind in kinds
    ]


def build(name: str, kind: str) -> Case:
    """Return a small random model of a type, with a kind of attention and of experts."""
    attention, *options = kind.split(", ")
    keywords = {"experts_implementation": "eager"} if LOOP in options else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = small(CONFIG_MAPPING[name], SPECIAL.get(name, {}))
        model = AutoModel.from_config(config, attn_implementation=attention, **keywords)
    inputs = {"inputs_embeds": _embeddings(model)} if WORDS in options else _inputs(model)
    explained = tuple(key for key, value in inputs.items() if value.is_floating_point())
    # Where images and words go into one stream, the words' embeddings are added to it.
    tokens = ADDED.get(name, "") if "input_ids" not in inputs or name in TWO_TOWERS else TOKENS
    module = sys.modules[type(model).__module__]
    entries = tuple((getattr(module, function), rule) for function, rule in ENTRIES.get(name, {}).items())
    return Case(model, keywords=inputs, explained=explained, outputs=_tensor, additive=tokens, entries=entries)


def kinds(name: str) -> list[str]:
    """Return the kinds of attention and experts to try for a type."""
    if type(default := CONFIG_MAPPING[name]()) not in MODEL_MAPPING:
        return []
    experts = any(getattr(default, key, None) for key in EXPERTS)
    words = hasattr(default, "vision_config") and name not in TWO_TOWERS
    options = [LOOP] * experts + [WORDS] * words
    return [*ATTENTION, *(f"{attention}, {option}" for option in options for attention in ATTENTION)]


def small(kind: type[PretrainedConfig], special: dict[str, Any]) -> PretrainedConfig:
    """Return a configuration of a type with small sizes, in its parts as well."""
    default = kind()
    known = default.to_dict()
    chosen: dict[str, Any] = {}
    for key, size in SIZES.items():
        if isinstance(known.get(key), int | float) and not isinstance(known[key], bool):
            chosen[key] = min(size, known[key]) if isinstance(size, int) else size
    for key, part in (getattr(kind, "sub_configs", None) or {}).items():
        inner = getattr(default, key, None)
        if inner is not None and isinstance(inner, PretrainedConfig):
            given = {"model_type": inner.model_type} if part.__name__ == "AutoConfig" else {}
            chosen[key] = {**small(type(inner), {}).to_dict(), **given}
    chosen.update(use_cache=False, **special)
    layers = chosen.get("num_hidden_layers")
    if isinstance(known.get("layer_types"), list) and "layer_types" not in special and layers:
        # Keep one of each kind.
        chosen["layer_types"] = (list(dict.fromkeys(known["layer_types"])) * layers)[:layers]
    return kind(**chosen)


def _inputs(model: nn.Module) -> dict[str, Tensor]:
    config, accepted = model.config, inspect.signature(model.forward).parameters
    main = model.main_input_name
    if main == "pixel_values":
        return _images(config)
    if main == "input_values":
        return {"input_values": torch.randn(ROWS, 400)}
    inputs: dict[str, Tensor] = {}
    if main == "input_features":
        bins = getattr(config, "num_mel_bins", None) or getattr(config, "input_feat_per_channel", 16)
        steps = 2 * getattr(config, "max_source_positions", 20) if config.model_type == "whisper" else 40
        shape = (ROWS, bins, steps) if config.model_type == "whisper" else (ROWS, steps, bins)
        inputs["input_features"] = torch.randn(shape)
    elif "pixel_values" in accepted and "input_ids" in accepted and hasattr(config, "vision_config"):
        return {**_images(config.vision_config), "input_ids": torch.randint(3, 90, (ROWS, STEPS))}
    elif "inputs_embeds" in accepted:
        inputs["inputs_embeds"] = _embeddings(model)
    if "decoder_inputs_embeds" in accepted:
        inputs["decoder_inputs_embeds"] = _embeddings(model)
    if not inputs:
        raise TypeError(f"no input that carries relevance: {main}")
    return inputs


def _embeddings(model: nn.Module) -> Tensor:
    weight = model.get_input_embeddings().weight
    return torch.randn(ROWS, STEPS, weight.shape[1])


def _images(config: Any) -> dict[str, Tensor]:
    size = getattr(config, "image_size", 64)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return {"pixel_values": torch.randn(ROWS, getattr(config, "num_channels", 3), height, width)}


def _tensor(output: Any) -> Any:
    for name in ("logits_per_image", "logits", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output[0]
