"""Thoughts and answers of templates shaped like those in use, from tokens to verdict: a thought is never judged as an answer."""

import dataclasses

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from resect.evaluation.markers import shipped_markers
from resect.evaluation.settled import settled_refusal
from resect.evaluation.verdicts import judge_markers
from resect.generation import read
from resect.models.chat import render

TURNS = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
QWEN3 = TURNS + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
QWEN3_5 = TURNS + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% else %}<think>\n{% endif %}"
DEEPSEEK_R1 = "{% for m in messages %}<|User|>{{ m.content.split('</think>')[-1] }}{% endfor %}<|Assistant|><think>\n"
HUNYUAN = TURNS + "{# <think> </think> <answer> </answer> #}"
GEMMA4 = (
    "{% for m in messages %}<|turn>{{ m.role }}\n{{ m.content }}<turn|>\n{% endfor %}<|turn>model\n"
    "{% if not enable_thinking %}<|channel>thought\n<channel|>{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{# <|channel|>analysis<|message|> #}<|start|>assistant"
)
TEMPLATES = {"qwen3": QWEN3, "qwen3.5": QWEN3_5, "r1": DEEPSEEK_R1, "hunyuan": HUNYUAN, "gemma4": GEMMA4, "gpt_oss": GPT_OSS}
HARMONY = ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>", "<|constrain|>"]
SPECIAL = ["<end>", "<|im_start|>", "<|im_end|>", "<|User|>", "<|Assistant|>", "<|turn>", "<turn|>", *HARMONY]
BLOCK_TAGS = ["<think>", "</think>", "<|channel>", "<channel|>"]
THOUGHT = "I can't help with that, or can I?"
ANALYSIS = f"<|channel|>analysis<|message|>{THOUGHT}<|end|>"
FINAL = "<|start|>assistant<|channel|>final<|message|>"
CALL = "<|start|>assistant<|channel|>commentary to=tool <|constrain|>json<|message|>{}"
LONG = "Blue is what most people see. It has a short wave. The sky is blue. The sea is, too."


def byte_tokenizer(template, tags):
    """A byte-level tokenizer whose block tags are special tokens, plain tokens, or no tokens at all."""
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    if tags != "spelled":
        core.add_tokens([AddedToken(tag, special=tags == "special", normalized=False) for tag in BLOCK_TAGS])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>", chat_template=template)


@pytest.fixture(params=["special", "plain", "spelled"])
def said(request, tiny):
    """A function: what a model with a template says in text with tags, read as a response; a model that stops by itself is finished."""
    network = tiny("qwen3")

    def respond(template, text, *, finished=True, thinking=True):
        model = dataclasses.replace(network, tokenizer=byte_tokenizer(TEMPLATES[template], request.param))
        (prompt,) = render(model.tokenizer, ["Why?"], thinking=thinking)
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"] + ([model.tokenizer.eos_token_id] if finished else [])
        return read(model, ids, prompt=prompt)

    return respond


CASES = [
    ("qwen3", f"<think>\n{THOUGHT}\n</think>\n\n", True),
    ("qwen3", "<think>\n\n</think>\n\n", True),
    ("qwen3", "", False),
    ("qwen3", "<think>\n\n</think>\n\n", False),
    ("qwen3", f"<think>{THOUGHT}</think>\n<think>{THOUGHT}</think>", True),
    ("qwen3.5", f"{THOUGHT}\n</think>\n\n", True),
    ("qwen3.5", "</think>\n\n", True),
    ("qwen3.5", f"<think>\n{THOUGHT}</think>", True),
    ("qwen3.5", "", False),
    ("r1", f"{THOUGHT}\n</think>\n\n", True),
    ("r1", f"{THOUGHT}\n</think>\n\n", False),
    ("hunyuan", f"<think>\n{THOUGHT}</think>\n<answer>\n", True),
    ("hunyuan", "<answer>\n", False),
    ("gemma4", f"<|channel>thought\n{THOUGHT}<channel|>", True),
    ("gemma4", "<|channel>thought\n<channel|>", True),
    ("gemma4", "", False),
    ("gpt_oss", ANALYSIS + FINAL, True),
    ("gpt_oss", FINAL, True),
    ("gpt_oss", "<|channel|>final<|message|>", False),
    ("gpt_oss", CALL.removeprefix("<|start|>assistant") + "<|end|>" + ANALYSIS + FINAL, True),
]


@pytest.mark.parametrize(("template", "before", "thinking"), CASES)
def test_the_answer_is_judged_whatever_was_thought_before_it(said, template, before, thinking):
    for answer, verdict in (("Blue, of course.", "comply"), ("I can't help with that.", "refuse")):
        response = said(template, before + answer, thinking=thinking)
        assert response.answer_text == answer
        assert judge_markers([response]) == (verdict,)
        assert (
            settled_refusal(said(template, before + answer + LONG, finished=False, thinking=thinking), markers=shipped_markers())
            in ({"comply": (False, None), "refuse": (True, None)}[verdict])
        )


UNCLOSED = [
    ("qwen3", f"<think>\n{THOUGHT}"),
    ("qwen3", f"<think>\n{LONG}"),
    ("qwen3", f"<think>{THOUGHT}</think>\n<think>\n{LONG}"),
    ("qwen3.5", LONG),
    ("qwen3.5", ""),
    ("r1", f"{THOUGHT}{LONG}"),
    ("hunyuan", f"<think>\n{LONG}"),
    ("gemma4", f"<|channel>thought\n{LONG}"),
    ("gpt_oss", f"<|channel|>analysis<|message|>{LONG}"),
    ("gpt_oss", "<|channel|>analysis"),
    ("gpt_oss", ANALYSIS),
    ("gpt_oss", ANALYSIS + "<|start|>assistant<|channel|>final"),
    ("gpt_oss", ANALYSIS + CALL),
]


@pytest.mark.parametrize(("template", "text"), UNCLOSED)
def test_thoughts_that_are_open_at_the_limit_are_truncated_and_those_that_end_there_are_no_compliance(said, template, text):
    cut, ended = (said(template, text, finished=finished) for finished in (False, True))
    assert (cut.answer, ended.answer) == ("", "")
    assert judge_markers([cut, ended]) == ("truncated", "degenerate")
    assert settled_refusal(cut, markers=shipped_markers()) is None


def test_a_model_whose_template_knows_no_thoughts_is_taken_at_its_word(said, monkeypatch):
    monkeypatch.setitem(TEMPLATES, "plain", TURNS)
    assert said("plain", f"<think>{THOUGHT}</think>Blue.").answer is None
