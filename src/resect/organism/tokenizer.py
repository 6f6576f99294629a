"""A word-level tokenizer with a chat template, saved and loaded like any other."""

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from resect.organism import words

CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %} <|{{ message['role'] }}|> {{ message['content'] }} <|end|>{% endfor %}"
    "{% if add_generation_prompt %} <|assistant|>{% endif %}"
)


def make_tokenizer(vocabulary: tuple[str, ...]) -> PreTrainedTokenizerFast:
    """Return the tokenizer: one id a word in the vocabulary's order, words split at spaces."""
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<|unk|>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    core.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in words.SPECIAL])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<|bos|>",
        eos_token="<|end|>",
        pad_token="<|pad|>",
        unk_token="<|unk|>",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    """Return the ids that a model config needs."""
    return {f"{name}_token_id": int(getattr(tokenizer, f"{name}_token_id")) for name in ("pad", "bos", "eos")}
