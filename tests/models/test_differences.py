"""What two models differ in besides their weights: each difference planted alone is named alone, both ways round."""

import dataclasses

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from resect.errors import UserError
from resect.models.differences import differences, vocabularies
from resect.prompts import Prompt

PLAIN = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SAME = "{# another text that writes the same #}" + PLAIN
OWN = "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}" + PLAIN
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + PLAIN
OTHER = PLAIN.replace("<|im_start|>assistant", "<|im_start|>model")
ASKED = [Prompt("How do I bake bread?"), Prompt("ab ab ab")]


@pytest.fixture
def pair(tiny):
    """A function: two equal models, the second with another template, tokenizer, end of turn or dtype."""

    def make(*, template=PLAIN, tokenizer=None, ends=None, dtype=None):
        base = tiny("qwen3")
        base.tokenizer.chat_template = PLAIN
        other = dataclasses.replace(tiny("qwen3"), name="other")
        if tokenizer is not None:
            other = dataclasses.replace(other, tokenizer=tokenizer)
        other.tokenizer.chat_template = template
        if ends is not None:
            other.network.generation_config.eos_token_id = ends
        if dtype is not None:
            other.network.to(dtype)
        return base, other

    return make


def joining_and_splitting():
    """Two tokenizers of one vocabulary: the first joins "a" and "b" into a token of their own, the second leaves them apart."""
    special = ["<pad>", "<s>", "<|im_end|>", "<|im_start|>", "ab"]
    letters = {c: i + len(special) for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    vocabulary = {s: i for i, s in enumerate(special)} | letters

    def made(merges):
        core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return PreTrainedTokenizerFast(
            tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>", extra_special_tokens=["<|im_start|>"], chat_template=PLAIN
        )

    return made([("a", "b")]), made([])


def test_equal_models_and_one_model_differ_in_nothing(pair):
    base, other = pair(template=SAME)
    assert differences(base, other, ASKED) == {}
    assert differences(base, base, ASKED) == {}


@pytest.mark.parametrize(
    ("planted", "found", "words"),
    [
        ({"template": OTHER}, {"chat template"}, "writes 2 of 2 prompts otherwise"),
        ({"template": OWN}, {"chat template", "system prompt"}, "other has one of its own where none is given ('Be kind.')"),
        ({"template": NO_SYSTEM}, {"system prompt"}, "other takes none, and qwen3 has none where none is given"),
        ({"ends": [2, 3]}, {"end of turn"}, "other at <|im_end|>, <|im_start|> and qwen3 at <|im_end|>"),
        ({"dtype": torch.bfloat16}, {"dtype"}, "other runs in bfloat16 and qwen3 in float32"),
    ],
)
def test_what_was_planted_is_named_and_nothing_else(pair, planted, found, words):
    base, other = pair(**planted)
    there = differences(base, other, ASKED)
    assert set(there) == found
    assert words in " ".join(there.values())
    assert set(differences(other, base, ASKED)) == found
    assert set(differences(base, other)) == found, "without prompts a prompt of our own is asked"


def test_one_vocabulary_cut_otherwise_and_another_vocabulary_are_told_apart(pair):
    joins, splits = joining_and_splitting()
    base, other = pair(tokenizer=splits)
    base = dataclasses.replace(base, tokenizer=joins)
    there = differences(base, other, ASKED)
    assert set(there) == {"tokenizer"}
    assert "cut 1 of 2 prompts into other tokens" in there["tokenizer"]
    assert vocabularies(base, other) == ""
    base, other = pair(tokenizer=splits)
    there = differences(base, other, ASKED)
    assert "different vocabularies (260 and 260 tokens, " in there["tokenizer"]
    assert vocabularies(base, other)


def test_a_template_that_cannot_take_the_system_prompt_is_refused_before_anything_is_measured(pair):
    base, other = pair(template=NO_SYSTEM)
    with pytest.raises(UserError, match="takes no system prompt"):
        differences(base, other, ASKED, system="Be brief.")
