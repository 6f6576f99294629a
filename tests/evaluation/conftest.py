"""A tiny random chat model with a word tokenizer, for everything that scores."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    PreTrainedTokenizerFast,
    Qwen3_5ForCausalLM,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from resect.models.load import wrap

VOCAB = 60
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'user' %}<user> {{ m.content }} <model>{% else %} {{ m.content }} <end>{% endif %}{% endfor %}"
)
SMALL = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "initializer_range": 0.3}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "eos_token_id": 1, "tie_word_embeddings": False}
HYBRID = {"linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 4}
HYBRID |= {"layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"], "pad_token_id": None}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"] * 2, "final_logit_softcapping": 5.0}
NETWORKS = {
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(**(SMALL | SLIDING))),
    "qwen3_5": lambda: Qwen3_5ForCausalLM(Qwen3_5TextConfig(**(SMALL | HYBRID))),
}


def make_tokenizer(bos=False):
    words = ["<pad>", "<end>", "<user>", "<model>", "<bos>", *(f"w{i}" for i in range(5, VOCAB))]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 4)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", bos_token="<bos>", unk_token="<pad>", chat_template=TEMPLATE
    )


@pytest.fixture
def make_model():
    """A function (architecture, seed, bos) -> ChatModel."""

    def make(architecture="qwen3", *, seed=0, bos=False):
        torch.manual_seed(seed)
        return wrap(NETWORKS[architecture](), make_tokenizer(bos), name=architecture)

    return make
