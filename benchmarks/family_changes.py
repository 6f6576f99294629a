"""What single families need beyond the general shrinking: values for fields of their configurations, and nothing else."""

from typing import Any

_EXPERTS = {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}

_AXES = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
_PER_KIND = {kind: _AXES for kind in ("full_attention", "sliding_attention")}
_INDEXER = {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 4}
_TIMM = {"architecture": "test_vit", "model_args": {}}

CHANGES: dict[str, dict[str, Any]] = {
    "cohere_compass": {"text_config": {"rope_parameters": _PER_KIND}},
    "cohere_compass_text": {"rope_parameters": _PER_KIND},
    "deepseek_ocr2": {"text_config": {"mlp_layer_types": ["dense", "sparse"], "num_experts_per_tok": 2}},
    "diffusion_gemma": {"text_config": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 24}},
    "dots3_note": {"audio_config": {"adapter_input_size": 32, "downsample_hidden_size": 32}},
    "ernie4_5_vl_moe": {"text_config": {"head_dim": 16, "rope_parameters": _AXES | {"mrope_section": [2, 2, 4]}}},
    "glm5_next": {"text_config": {"index_topk": 16}},
    "molmo2": {"adapter_config": {"vision_feature_layer": [1, 0]}},
    "paddleocr_vl": {"text_config": {"rope_parameters": _AXES}},
    "qwen4_exp": {"text_config": _INDEXER},
    "qwen4_exp_text": _INDEXER,
    "zamba": {"num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"]},
    "apertus1p5": {
        "text_config": {"vocab_size": 448},
        "vision_config": {"codebook_size": 64},
        "audio_config": {"codebook_dim": 32, "codebook_size": 64},
        "image_token_offset": 320,
        "audio_token_offset": 384,
    },
    "fast_vlm": {"vision_config": _TIMM},
    "gemma3n": {"vision_config": _TIMM},
    "perception_lm": {"vision_config": _TIMM | {"model_args": {"embed_dim": 64, "img_size": [32, 32], "depth": 2}}},
    "chameleon": {"vocabulary_map": {"<image>": 7}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 40, "moe_num_experts": 4},
    },
    "deepseek_v2": _EXPERTS,
    "dots1": _EXPERTS,
    "emu3": {"vocabulary_map": {"<image>": 7}},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "granite4_vision": {
        "deepstack_layer_map": [[-1, 0]],
        "spatial_target_layers": [1],
        "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "num_hidden_layers": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "mistral_large4": {"text_config": {"kv_source_layers": [0, 1, 2, 3, 4, 5]}},
    "nemotron": {"num_key_value_heads": 2},
    "step3p7": {"text_config": {"sliding_window": 8}},
    "xmod": {"default_language": "en_XX"},
}
