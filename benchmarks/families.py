"""Every causal and image-text-to-text family of the installed transformers as a tiny random network.

    from families import build, names
    network, kind = build("qwen3")

Configurations are shrunk by the names of their fields (`CAPS`), towers and text side alike, so that sizes stay consistent; layers are
chosen so that every kind of layer that the default configuration has is there. `CHANGES` is data for the families that need more.
Three families (gemma3n, fast_vlm, perception_lm) have towers of timm, which brings torchvision and pillow: pip install timm.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from family_changes import CHANGES
from torch import nn
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES as IMAGE_TEXT

Kind = Literal["causal", "image-text"]

LAYERS = 2
VOCABULARY = 320

# Largest size of a field, by its name; the first pattern that matches decides. Every width of a stream is 32, every head 8 wide.
CAPS: tuple[tuple[str, int], ...] = (
    (r"codebook_size|num_codebooks", 64),
    (r"rotary_dim", 8),
    (r"hidden_size_per_layer_input|.*(group_size|upsample_groups)", 8),
    (r".*(vocab|num_embeddings|codebook_size).*", VOCABULARY),
    (r".*(moe|expert|shared).*(intermediate|hidden|dim|latent).*", 24),
    (r".*(intermediate|ffn|inner|feed_forward|mlp|_ff$|dff$|projector_hidden).*(size|dim|ff|inner)?", 40),
    (r"d_ff|dim_ff|dff|n_inner|d_inner", 40),
    (r"mamba_(n|num)_heads|n_mamba_heads", 8),
    (r".*key_value_heads.*|.*kv_heads.*|linear_num_key_heads", 2),
    (r".*heads.*|n_head", 4),
    (r".*(head_dim|head_size|d_kv|kv_channels|dim_head|d_rel).*", 8),
    (r".*lora_rank|.*_rank|d_head|query_pre_attn_scalar", 8),
    (r"(.*_)?(state_size|d_state)", 8),
    (r".*(hidden_size|hidden_dim|d_model|n_embd|embed_dim|emb_dim|embedding_dim|embedding_size|projection_dim|output_dim).*", 32),
    (r".*(out_dim|input_dim|in_dim|lru_width|width_per_layer|_channels|channels_.*|output_proj_dims|text_hidden.*|d_ssm)", 32),
    (r"(.*_)?(num_(.*_)?layers|n_layers?|layers|depth|num_blocks)", LAYERS),
    (r".*(n_routed|num|num_local|moe_num)_experts", 4),
    (r"n_group|topk_group", 1),
    (r".*(experts_per_tok|top_k.*|topk.*|moe_k)", 2),
    (r"first_k_dense_replace|num_dense_layers|n_shared_experts|num_nextn_predict_layers|num_mtp_layers", 1),
    (r".*(sliding_window|window_size|_chunk_size|chunk_size)(_.*)?", 8),
    (r"max_.*position.*|n_positions|n_ctx|max_seq_len|context_length|.*_length", 256),
    (r"image_size|resolution|.*max_image_size|crop_size", 32),
    (r"num_position_embeddings|num_query_tokens|.*latents?|mm_tokens_per_image|image_seq_length|num_image_tokens", 16),
    (r"patch_size|num_patches", 8),
)

# Fields that the default configuration leaves open and some families need.
FILLED: dict[str, Any] = {"head_dim": 8}

_BASE = {f.name for f in dataclasses.fields(PreTrainedConfig)}


def names() -> tuple[str, ...]:
    """Return every family, by its `model_type`."""
    return tuple(sorted({*CAUSAL, *IMAGE_TEXT}))


def recipe(name: str) -> str:
    """Return a digest of what a family is built from: this file and its own changes."""
    source = Path(__file__).read_bytes() + repr(CHANGES.get(name)).encode()
    return hashlib.sha256(source).hexdigest()[:16]


def build(name: str, *, seed: int = 0) -> tuple[PreTrainedModel, Kind]:
    """Return the tiny network of a family with random float32 weights, norm gains and biases, and which kind of model it is.

    Raises whatever its configuration or its class raises.
    """
    kind: Kind = "image-text" if name in IMAGE_TEXT else "causal"
    config = CONFIG_MAPPING[name](**shrunk(CONFIG_MAPPING[name], CHANGES.get(name, {})))
    torch.manual_seed(seed)
    loader = AutoModelForImageTextToText if kind == "image-text" else AutoModelForCausalLM
    network = loader.from_config(config, dtype=torch.float32)
    draw(network)
    return network.eval(), kind


def draw(network: nn.Module) -> None:
    """Add noise to every parameter: initialisers leave gains at one, gates and biases at zero, and such weights hide mistakes."""
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.is_floating_point():
                parameter.copy_(torch.nan_to_num(parameter, 0.0, 0.0, 0.0).clamp(-10, 10))
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))


def shrunk(kind: type[PreTrainedConfig], changes: Mapping[str, Any], fields: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the arguments of a small configuration of this class: each field capped, sub-configurations likewise, then `changes`."""
    defaults = {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
    defaults |= dict(fields or {})
    own = {n: v for n, v in defaults.items() if n not in _BASE and n not in kind.sub_configs_defaults}
    default = vars(kind(**dict(fields or {})))
    small = dict(fields or {}) | {n: c for n, v in own.items() if (c := capped(n, v)) != v}
    small |= (
        _layers(own, default) | _heads(own) | _rotary(kind, own, default) | {n: v for n, v in FILLED.items() if n in own and own[n] is None}
    )
    for name, spec in kind.sub_configs_defaults.items():
        inner = changes.get(name, {})
        if inner is None or (spec.optional and name not in changes):
            continue
        wanted = inner.get("model_type", spec.model_type)
        below = (
            spec.config_class if issubclass(spec.config_class, PreTrainedConfig) and wanted == spec.model_type else CONFIG_MAPPING[wanted]
        )
        init = spec.init_kwargs if wanted == spec.model_type else {}
        small[name] = {"model_type": wanted} | shrunk(below, inner, init)
    return small | {n: v for n, v in changes.items() if n not in kind.sub_configs_defaults}


def capped(name: str, value: Any) -> Any:
    """Return a field's value cut to its cap: numbers and lists of numbers; tokens with a role move into the vocabulary."""
    if isinstance(value, list | tuple):
        return type(value)(capped(name, v) for v in value)
    if not isinstance(value, int) or isinstance(value, bool):
        return value
    if re.fullmatch(r".*(token_id|token_ids|token_index|_id)", name):
        return value if value < VOCABULARY else VOCABULARY - 1 - sum(map(ord, name)) % 64
    cap = next((cap for pattern, cap in CAPS if re.fullmatch(pattern, name)), None)
    return value if cap is None else min(value, cap)


def _layers(own: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Return number and kinds of layers: one of each combination that the default configuration has, two at least."""
    counter = next((n for n in own if re.fullmatch(r"num_hidden_layers|num_layers|n_layers?|decoder_layers|depth|layers", n)), "")
    full = default.get(counter)
    if not isinstance(full, int) or full <= LAYERS:
        return {}
    lists = {n: v for n in own if isinstance(v := default.get(n), list | tuple) and len(v) == full}
    rows = list(zip(*lists.values(), strict=True))
    chosen = [i for i, row in enumerate(rows) if row not in rows[:i]][:6]
    chosen = sorted({*chosen, full - 1, 0}) if len(chosen) < LAYERS else chosen
    chosen = chosen if lists else list(range(LAYERS))
    return {counter: len(chosen)} | {n: [capped(n, v[i]) for i in chosen] for n, v in lists.items()}


def _heads(own: Mapping[str, Any]) -> dict[str, Any]:
    """Return as many key-value heads as heads where the default configuration has that (latent attention needs it)."""
    alike = own.get("num_key_value_heads") is not None and own["num_key_value_heads"] == own.get("num_attention_heads")
    return {"num_key_value_heads": capped("num_attention_heads", own["num_attention_heads"])} if alike else {}


def _rotary(kind: type[PreTrainedConfig], own: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """Return rotary settings whose sections fill half a head of 8, where positions have several axes."""
    rope = default.get("rope_parameters") or {}
    several = "mrope_section" in rope or "mrope_section" in (getattr(kind, "ignore_keys_at_rope_validation", None) or ())
    if not several or "rope_parameters" not in own:
        return {}
    return {
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4} | rope | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
    }
