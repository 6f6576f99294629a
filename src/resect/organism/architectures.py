"""Tiny networks of real Hugging Face architectures: one small builder each, all about a million parameters."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import transformers
from transformers import PreTrainedModel

from resect.errors import unknown_name


@dataclass(frozen=True)
class Size:
    """Depth and widths shared by all architectures (counts of layers, features and heads)."""

    layers: int = 6
    width: int = 128
    hidden: int = 256
    heads: int = 4
    positions: int = 256


def build(architecture: str, *, vocabulary: int, special: Mapping[str, int], size: Size | None = None) -> PreTrainedModel:
    """Return a freshly initialised float32 network; the caller seeds torch.

    `special` holds `pad_token_id`, `bos_token_id` and `eos_token_id`.

    Raises:
        UserError: if the architecture is not one of `ARCHITECTURES`.
    """
    if architecture not in ARCHITECTURES:
        raise unknown_name("architecture", architecture, ARCHITECTURES)
    size = size or Size()
    common = {
        "vocab_size": vocabulary,
        "hidden_size": size.width,
        "intermediate_size": size.hidden,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads // 2,
        "head_dim": size.width // size.heads,
        "max_position_embeddings": size.positions,
        "tie_word_embeddings": True,
        **special,
    }
    return ARCHITECTURES[architecture](common, size)


def _qwen3(common: dict[str, Any], _size: Size) -> PreTrainedModel:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**common))


def _gemma3(common: dict[str, Any], size: Size) -> PreTrainedModel:
    """Norms before and after each writer, two attention kinds; the window is longer than any prompt."""
    kinds = ["full_attention" if layer % 3 == 2 else "sliding_attention" for layer in range(size.layers)]
    config = transformers.Gemma3TextConfig(**common, layer_types=kinds, sliding_window=64, query_pre_attn_scalar=size.width // size.heads)
    return transformers.Gemma3ForCausalLM(config)


def _ministral3(common: dict[str, Any], size: Size) -> PreTrainedModel:
    """YaRN with factor 1: the context is as long as the one trained on."""
    rope = {
        "rope_type": "yarn",
        "rope_theta": 10_000.0,
        "factor": 1.0,
        "original_max_position_embeddings": size.positions,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "llama_4_scaling_beta": 0.1,
    }
    return transformers.Ministral3ForCausalLM(transformers.Ministral3Config(**common, rope_parameters=rope))


def _qwen3_moe(common: dict[str, Any], size: Size) -> PreTrainedModel:
    """Four experts a layer, two used per token."""
    config = transformers.Qwen3MoeConfig(
        **common,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=size.hidden // 2,
        norm_topk_prob=True,
        decoder_sparse_step=1,
        mlp_only_layers=[],
    )
    return transformers.Qwen3MoeForCausalLM(config)


def _qwen3_5(common: dict[str, Any], size: Size) -> PreTrainedModel:
    """Two linear-attention layers to each full-attention layer."""
    kinds = ["full_attention" if layer % 3 == 2 else "linear_attention" for layer in range(size.layers)]
    config = transformers.Qwen3_5TextConfig(
        **common,
        layer_types=kinds,
        linear_key_head_dim=size.width // size.heads,
        linear_value_head_dim=size.width // size.heads,
        linear_num_key_heads=size.heads // 2,
        linear_num_value_heads=size.heads,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 1.0},
    )
    return transformers.Qwen3_5ForCausalLM(config)


ARCHITECTURES: Mapping[str, Callable[[dict[str, Any], Size], PreTrainedModel]] = MappingProxyType(
    {"qwen3": _qwen3, "gemma3": _gemma3, "ministral3": _ministral3, "qwen3_moe": _qwen3_moe, "qwen3_5": _qwen3_5}
)
