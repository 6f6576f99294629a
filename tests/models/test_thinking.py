import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from resect.models.thinking import answer_of_text, answer_of_tokens, ends_inside

HARMONY = "<|start|>assistant<|channel|>final<|message|>{{ m.content }}<|return|>"
FORMS = [
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>", "<channel|>"),
]
THOUGHTS = "<|channel|>analysis<|message|> I can't say that <|end|>"
ANSWER = "<|start|>assistant<|channel|>final<|message|>"


@pytest.mark.parametrize(("opening", "closing"), FORMS)
def test_a_leading_block_counts_where_the_template_has_its_tags(opening, closing):
    template = f"{{# {opening} {closing} #}}"
    assert answer_of_text(f"\n{opening}no{closing}\n\nyes", template) == "yes"
    assert answer_of_text(f"{opening}no", template) == ""
    assert answer_of_text(f"yes {opening}no{closing}", template) is None
    assert answer_of_text(f"{opening}no{closing}yes", "plain") is None
    assert answer_of_text(f"no{closing}yes", template, inside=True) == "yes"
    assert answer_of_text("no", template, inside=True) == ""
    assert ends_inside(f"<turn>{opening}\n")
    assert not ends_inside(f"<turn>{opening}{closing}")


def test_the_final_channel_is_the_answer():
    assert answer_of_text(THOUGHTS + ANSWER + "Blue.<|return|>", HARMONY) == "Blue."
    assert answer_of_text(ANSWER + "Blue.", HARMONY) == "Blue."
    assert answer_of_text(THOUGHTS + "<|channel|>commentary<|message|>a tool<|call|>", HARMONY) == ""
    assert answer_of_text("<|channel|>analysis<|message|>the final word is", HARMONY) == ""
    assert answer_of_text("<|channel|>final <|constrain|>json<|message|>{}", HARMONY) == "{}"
    assert answer_of_text("Blue.", HARMONY) is None
    assert answer_of_text(THOUGHTS + ANSWER + "Blue.", "plain") is None
    assert answer_of_text("still thinking<|end|>" + ANSWER + "Blue.", HARMONY, inside=True) == "Blue."


@pytest.mark.parametrize(
    ("tail", "inside"),
    [
        ("<|end|><|start|>assistant", False),
        ("<|end|><|start|>assistant<|channel|>analysis<|message|>", True),
        ("<|end|><|start|>assistant<|channel|>final<|message|>", False),
        ("<|end|><|start|>assistant<|channel|>analysis<|message|><|end|><|start|>assistant", False),
    ],
)
def test_a_prompt_may_open_a_channel(tail, inside):
    assert ends_inside(tail) is inside


SPECIALS = ["<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|return|>", "<|eot|>"]
WORDS = ["<unk>", *SPECIALS, "analysis", "final", "assistant", "sorry", "blue"]


def tokenizer():
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", extra_special_tokens=SPECIALS)


def answer(text, *, inside=False):
    ids = [WORDS.index(word) for word in text.split()]
    return answer_of_tokens(tokenizer(), HARMONY, ids, inside=inside)


def test_channel_tags_are_special_tokens():
    thoughts = "<|channel|> analysis <|message|> sorry <|end|>"
    final = "<|start|> assistant <|channel|> final <|message|> blue"
    assert answer(f"{thoughts} {final} <|return|>") == "blue"
    assert answer(f"{thoughts} {final} <|eot|>") == "blue"
    assert answer(f"{thoughts} {final}") == "blue"
    assert answer(thoughts) == ""
    assert answer("sorry blue <|return|>") is None
