"""Tiny random models of many architectures; a test with a `family` argument runs once for each."""

import os

import pytest
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from resect.models.load import wrap

TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
TEXT = {"vocab_size": 260, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
TEXT |= {"num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256}
TEXT |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4}}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
HYBRID = {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2, "linear_num_value_heads": 4}
HYBRID |= {"linear_key_head_dim": 8, "linear_value_head_dim": 8} | MROPE
VISION = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32, "num_position_embeddings": 16}
VISION |= {"patch_size": 4}
PIXTRAL = {"model_type": "pixtral", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
PIXTRAL |= {"patch_size": 4, "image_size": 16}
SIGLIP = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "patch_size": 4, "image_size": 16}
GEMMA = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]}
GEMMA3N = {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 260, "laurel_rank": 8}
GEMMA3N |= {"activation_sparsity_pattern": [0.5, 0.0]}
DEEPSEEK = {"q_lora_rank": 8, "o_lora_rank": 8, "index_n_heads": 4, "index_head_dim": 8, "index_topk": 2, "sliding_window": 8}
DEEPSEEK |= {"num_key_value_heads": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
DEEPSEEK |= {"layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"], "mlp_layer_types": ["moe", "moe"]}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
LATENT |= {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "n_shared_experts": 1, "n_group": 1}
LATENT |= {"topk_group": 1, "first_k_dense_replace": 1}
FLAT = HYBRID | EXPERTS | {"shared_expert_intermediate_size": 16, "hc_lowrank": 8, "layer_types": ["linear_attention", "indexed_attention"]}
FLAT |= {"indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 8, "indexer_compress_ratio": 4}


@pytest.fixture(scope="session", autouse=True)
def _no_cache_of_the_user(tmp_path_factory):
    """Nothing of the test run goes to the user's own cache, whichever fixture starts it."""
    before = os.environ.get("RESECT_CACHE")
    os.environ["RESECT_CACHE"] = str(tmp_path_factory.mktemp("session_cache"))
    yield
    os.environ.pop("RESECT_CACHE")
    if before is not None:
        os.environ["RESECT_CACHE"] = before


@pytest.fixture(autouse=True)
def cache_place(tmp_path_factory, monkeypatch):
    """A cache of its own for each test: what another test computed must not stand in for what this one tests."""
    place = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("RESECT_CACHE", str(place))
    return place


FAMILIES = (
    "qwen3",
    "llama",
    "ministral3",
    "mistral3",
    "gemma2",
    "gemma3",
    "gemma3_vl",
    "olmo2",
    "phi",
    "gpt2",
    "bloom",
    "gpt_neox",
    "granite",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "qwen3_vl",
    "qwen3_5",
    "qwen3_5_vl",
    "qwen3_5_moe",
)


def byte_tokenizer():
    special = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>"]
    letters = {c: i + len(special) for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    core = Tokenizer(models.BPE(vocab={s: i for i, s in enumerate(special)} | letters, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>"],
        chat_template=TEMPLATE,
    )


def tiny_config(family):
    t = transformers
    configs = {
        "qwen3": lambda: t.Qwen3Config(**TEXT),
        "llama": lambda: t.LlamaConfig(**TEXT),
        "ministral3": lambda: t.Ministral3Config(**TEXT),
        "mistral3": lambda: t.Mistral3Config(
            text_config=TEXT | {"model_type": "ministral3"}, vision_config=PIXTRAL, image_token_index=5, spatial_merge_size=1
        ),
        "gemma2": lambda: t.Gemma2Config(**TEXT | GEMMA, query_pre_attn_scalar=8),
        "gemma3": lambda: t.Gemma3TextConfig(**TEXT | GEMMA, query_pre_attn_scalar=8),
        "gemma3_vl": lambda: t.Gemma3Config(text_config=TEXT | GEMMA, vision_config=SIGLIP, mm_tokens_per_image=4, image_token_index=5),
        "olmo2": lambda: t.Olmo2Config(**TEXT),
        "phi": lambda: t.PhiConfig(**TEXT),
        "gpt2": lambda: t.GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2),
        "bloom": lambda: t.BloomConfig(vocab_size=260, hidden_size=32, n_layer=2, n_head=4, bos_token_id=1, eos_token_id=2),
        "gpt_neox": lambda: t.GPTNeoXConfig(**TEXT),
        "granite": lambda: t.GraniteConfig(**TEXT, residual_multiplier=0.22),
        "mixtral": lambda: t.MixtralConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2),
        "qwen2_moe": lambda: t.Qwen2MoeConfig(**TEXT | EXPERTS, shared_expert_intermediate_size=16),
        "qwen3_moe": lambda: t.Qwen3MoeConfig(**TEXT | EXPERTS),
        "gpt_oss": lambda: t.GptOssConfig(**TEXT, num_local_experts=4, num_experts_per_tok=2, sliding_window=8),
        "qwen3_vl": lambda: t.Qwen3VLConfig(text_config=TEXT | MROPE, vision_config=VISION | {"deepstack_visual_indexes": [0, 1]}),
        "qwen3_5": lambda: t.Qwen3_5TextConfig(**TEXT | HYBRID),
        "qwen3_5_vl": lambda: t.Qwen3_5Config(text_config=TEXT | HYBRID, vision_config=VISION),
        "gemma3n": lambda: t.Gemma3nTextConfig(**TEXT | GEMMA | GEMMA3N),
        "deepseek_v3": lambda: t.DeepseekV3Config(**TEXT | LATENT),
        "deepseek_v4": lambda: t.DeepseekV4Config(**TEXT | DEEPSEEK),
        "qwen4_exp": lambda: t.Qwen4ExpTextConfig(**TEXT | FLAT),
        "qwen3_5_moe": lambda: t.Qwen3_5MoeTextConfig(**TEXT | HYBRID | EXPERTS, shared_expert_intermediate_size=16),
    }
    return configs[family]()


@pytest.fixture(scope="session")
def tiny():
    """A function: family name and optional seed to a new `ChatModel` with random weights, norm gains and biases."""

    def build(family, *, seed=0):
        torch.manual_seed(seed)
        config = tiny_config(family)
        vision = type(config) in transformers.AutoModelForImageTextToText._model_mapping
        loader = transformers.AutoModelForImageTextToText if vision else transformers.AutoModelForCausalLM
        network = loader.from_config(config, dtype=torch.float32)
        # Initialisers leave norm gains at one and biases at zero, and such weights hide mistakes.
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter) * (0.3 if parameter.ndim == 1 else 0.1))
        return wrap(network, byte_tokenizer(), name=family)

    return build


def pytest_generate_tests(metafunc):
    if "family" in metafunc.fixturenames:
        metafunc.parametrize("family", FAMILIES)
