"""What an evaluation needs: weights, and what is held at once (benchmarks/evaluation_memory.py measures it)."""

from dataclasses import replace

import pytest
import torch
from transformers import LlamaConfig

from resect.models import memory
from resect.models.evaluation_memory import evaluation_stage
from resect.models.memory import Workload

SHAPE = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
WORK = Workload((20,) * 64, 640, 8, 0, 0, 0, 0, 16, 1 << 22, 0, 0)


def network(vocab):
    return memory.without_weights(LlamaConfig(**SHAPE, vocab_size=vocab), dtype=torch.float32)


def beside_weights(vocab, work=WORK):
    made = network(vocab)
    return evaluation_stage(made, work).device - memory.weight_bytes(made)


def test_weights_are_in_it_and_twice_the_prompts_need_no_more():
    assert evaluation_stage(network(50_000), WORK).device > memory.weight_bytes(network(50_000))
    assert beside_weights(50_000, replace(WORK, tokens=(20,) * 640)) == beside_weights(50_000)


def test_comparing_two_distributions_of_a_large_vocabulary_is_what_needs_most():
    """Both sides of one prompt, and six copies in float64 of a part of them."""
    vocab = 1_000_000
    assert beside_weights(vocab) >= 2 * 16 * vocab * 4 + 6 * 8 * (1 << 22)
    assert beside_weights(vocab) == pytest.approx(beside_weights(2 * vocab) / 2, rel=0.5)


def test_longer_answers_and_longer_responses_need_more():
    assert beside_weights(1_000_000, replace(WORK, forced=64)) > beside_weights(1_000_000)
    assert beside_weights(300, replace(WORK, new_tokens=2000)) > beside_weights(300)
