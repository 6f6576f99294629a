"""Where the answer begins in a response that thinks first: told by the chat template, never by guess.

Two forms are in use. A *block* is a pair of tags around the thoughts at the beginning of the response. *Channels* (the harmony format of
gpt-oss) give every message of the response a name, and the one called `final` is the answer. A form counts only where the chat template
contains its tags; a model that merely writes `<think>` is taken at its word.
"""

import re
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_BLOCKS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<thought>", "</thought>"),
    ("<seed:think>", "</seed:think>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>", "<channel|>"),
)
_CHANNEL = "<|channel|>"
_FINAL = re.compile(r"<\|channel\|>\s*final\b.*?<\|message\|>(.*?)(?:<\|(?:end|return|start|call)\|>|\Z)", re.DOTALL)
_FIRST_CHANNEL = re.compile(r"\s*(?:<\|start\|>\s*assistant)?\s*<\|channel\|>")


def ends_inside(prompt_tail: str) -> bool:
    """Return whether a rendered prompt ends inside an open block, or inside a channel other than the final one."""
    last = prompt_tail.rfind(_CHANNEL)
    if last >= 0 and last > prompt_tail.rfind("<|end|>") and not prompt_tail[last + len(_CHANNEL) :].lstrip().startswith("final"):
        return True
    return any(prompt_tail.rfind(opening) > prompt_tail.rfind(closing) for opening, closing in _BLOCKS)


def answer_of_text(text: str, template: str, *, inside: bool = False) -> str | None:
    """Return the answer in a response given as text with its tags: None if it does not think, "" if the answer has not begun.

    `inside` says that the prompt left a block open, so that the response begins with thoughts.
    """
    if _has_channels(template) and (inside or _FIRST_CHANNEL.match(text)):
        found = _FINAL.search(text)
        return found[1].lstrip() if found else ""
    return next((a for o, c in _blocks(template) if (a := _in_block(text, o, c, inside=inside)) is not None), None)


def answer_of_tokens(tokenizer: PreTrainedTokenizerBase, template: str, ids: Sequence[int], *, inside: bool) -> str | None:
    """Return the answer in a response given as tokens, like `answer_of_text`.

    A tag that is one token is looked for among the tokens: it may be special, and then is not in the text without special tokens.
    """
    if _has_channels(template):
        answer = answer_of_text(str(tokenizer.decode(list(ids))), template, inside=inside)
        return None if answer is None else _without_specials(tokenizer, answer)
    text = _text(tokenizer, ids)
    for opening, closing in _blocks(template):
        first, last = (_token(tokenizer, tag) for tag in (opening, closing))
        if first is None or last is None:
            if (found := _in_block(text, opening, closing, inside=inside)) is not None:
                return found
            continue
        # White space may stand before the tag; anything else means that the block is not leading.
        head = ids[: ids.index(first)] if first in ids else None
        if not inside and (head is None or _text(tokenizer, head).strip()):
            continue
        return _text(tokenizer, ids[ids.index(last) + 1 :]).lstrip() if last in ids else ""
    return None


def _in_block(text: str, opening: str, closing: str, *, inside: bool) -> str | None:
    if not inside and not text.lstrip().startswith(opening):
        return None
    return text.partition(closing)[2].lstrip() if closing in text else ""


def _has_channels(template: str) -> bool:
    return _CHANNEL in template and "<|message|>" in template


def tags_in(template: str) -> list[str]:
    """Return the tags of thoughts that a chat template contains."""
    return [*(tag for pair in _blocks(template) for tag in pair), *([_CHANNEL] if _has_channels(template) else [])]


def _blocks(template: str) -> list[tuple[str, str]]:
    return [(opening, closing) for opening, closing in _BLOCKS if opening in template or closing in template]


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _without_specials(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    for special in tokenizer.all_special_tokens:
        text = text.replace(special, "")
    return text.strip()


def _token(tokenizer: PreTrainedTokenizerBase, tag: str) -> int | None:
    index = tokenizer.convert_tokens_to_ids(tag)
    return index if isinstance(index, int) and index != tokenizer.unk_token_id else None
