"""Where the answer begins in a response that thinks first: told by the chat template, never by guess.

Two forms are in use. *Blocks* are pairs of tags around the thoughts at the beginning of the response; some templates put tags around the
answer, too. *Channels* (the harmony format of gpt-oss) give every message of the response a name, and the one called `final` is the answer.
A form counts only where the chat template contains its tags; a model that merely writes `<think>` is taken at its word.
"""

import functools
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
_ANSWERS = (("<answer>", "</answer>"), ("<response>", "</response>"))
_CHANNEL = "<|channel|>"
_CHANNEL_TAGS = (_CHANNEL, "<|message|>", "<|start|>", "<|end|>", "<|return|>", "<|call|>")
_FINAL = re.compile(r"<\|channel\|>\s*final\b.*?<\|message\|>(.*?)(?:<\|(?:end|return|start|call)\|>|\Z)", re.DOTALL)
_FIRST_CHANNEL = re.compile(r"\s*(?:<\|start\|>\s*assistant)?\s*<\|channel\|>")


def ends_inside(prompt_tail: str) -> bool:
    """Return whether a rendered prompt ends inside an open block, or inside a channel other than the final one."""
    last = prompt_tail.rfind(_CHANNEL)
    if last >= 0 and last > prompt_tail.rfind("<|end|>") and not prompt_tail[last + len(_CHANNEL) :].lstrip().startswith("final"):
        return True
    return any(prompt_tail.rfind(opening) > prompt_tail.rfind(closing) for opening, closing in _BLOCKS)


def answer_of_text(text: str, template: str, *, inside: bool = False) -> str | None:
    """Return the answer in a response given as text with its tags: None if it has no tags, "" if the answer has not begun.

    `inside` says that the prompt left a block open, so that the response begins with thoughts.
    """
    if _has_channels(template) and (inside or _FIRST_CHANNEL.match(text)):
        found = _FINAL.search(text)
        return found[1].strip() if found else ""
    rest = _after_blocks(text.lstrip(), _blocks(template), inside=inside)
    for opening, closing in _ANSWERS:
        if opening in template and rest.startswith(opening):
            rest = rest.removeprefix(opening).partition(closing)[0].strip()
    return None if rest == text.lstrip() and not inside else rest


def _after_blocks(text: str, blocks: Sequence[tuple[str, str]], *, inside: bool) -> str:
    """Return what follows the leading blocks (a model may open one after another), "" if one is still open."""
    if inside:
        closing = min((closing for _, closing in blocks if closing in text), key=text.find, default=None)
        text = "" if closing is None else text.partition(closing)[2].lstrip()
    while block := next((pair for pair in blocks if text.startswith(pair[0])), None):
        text = text.partition(block[1])[2].lstrip()
    return text


def answer_of_tokens(tokenizer: PreTrainedTokenizerBase, template: str, ids: Sequence[int], *, inside: bool) -> str | None:
    """Return the answer in a response given as tokens, like `answer_of_text`."""
    tags = _all_tags(template)
    if not tags and not inside:
        return None
    return answer_of_text(_with_tags(tokenizer, ids, tags), template, inside=inside)


@functools.lru_cache(maxsize=16)
def _all_tags(template: str) -> tuple[str, ...]:
    """Return every tag that `answer_of_text` may look for under a chat template."""
    pairs = [*_blocks(template), *(pair for pair in _ANSWERS if pair[0] in template)]
    return (*(tag for pair in pairs for tag in pair), *(_CHANNEL_TAGS if _has_channels(template) else ()))


def _with_tags(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], tags: Sequence[str]) -> str:
    """Return the text of the tokens without special ones, but for the tags: those may be special, text, or spelled out in pieces."""
    known = {index: tag for tag in tags if (index := _token(tokenizer, tag)) is not None}
    parts: list[str] = []
    start = 0
    for i, index in enumerate(ids):
        if index in known:
            parts += [_text(tokenizer, ids[start:i]), known[index]]
            start = i + 1
    return "".join([*parts, _text(tokenizer, ids[start:])])


def _has_channels(template: str) -> bool:
    return _CHANNEL in template and "<|message|>" in template


def tags_in(template: str) -> list[str]:
    """Return the tags of thoughts that a chat template contains."""
    return [*(tag for pair in _blocks(template) for tag in pair), *([_CHANNEL] if _has_channels(template) else [])]


def _blocks(template: str) -> list[tuple[str, str]]:
    return [(opening, closing) for opening, closing in _BLOCKS if opening in template or closing in template]


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))


def _token(tokenizer: PreTrainedTokenizerBase, tag: str) -> int | None:
    index = tokenizer.convert_tokens_to_ids(tag)
    return index if isinstance(index, int) and index != tokenizer.unk_token_id else None
