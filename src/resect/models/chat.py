"""Prompts to tokens through the model's own chat template."""

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from transformers import PreTrainedTokenizerBase

from resect.errors import UserError
from resect.models.thinking import ends_inside, tags_in
from resect.prompts import Prompt

log = logging.getLogger(__name__)

# Private-use characters: no template contains them, so they show where the texts go.
_MARK = "\ue0f0user\ue0f1"
_SYSTEM_MARK = "\ue0f0system\ue0f1"
_SWITCHES = ("enable_thinking", "thinking")
# Some templates print the date; today's would make every day's run different.
_TODAY = datetime(2024, 7, 26)


@dataclass(frozen=True, init=False)
class Rendered:
    """One prompt as the model sees it, the generation prompt included.

    `user_end` is the index in `ids` of the last token of the user's own text, None where it cannot be told. `in_thinking` is true
    if the prompt ends inside an open thinking block.
    """

    ids: tuple[int, ...]
    user_end: int | None
    in_thinking: bool

    def __init__(self, ids: Sequence[int], last_user: int | None = None, *, in_thinking: bool = False) -> None:
        object.__setattr__(self, "ids", tuple(ids))
        object.__setattr__(self, "user_end", last_user)
        object.__setattr__(self, "in_thinking", in_thinking)

    @property
    def last_user(self) -> int:
        """Index of the last token of the user's text.

        Raises:
            UserError: if the tokenizer gives no character offsets (a slow tokenizer).
        """
        if self.user_end is None:
            raise UserError(
                "Position 'last_user' needs a fast tokenizer (one with a tokenizer.json), and this tokenizer gives no character "
                "offsets for the prompt; use position 'last', 'mean' or a negative integer, or convert the tokenizer."
            )
        return self.user_end


@dataclass(frozen=True)
class SystemPrompt:
    """What a chat template does with a system prompt: whether it takes one, and what it says in its place where none is given."""

    taken: bool
    own: str


@dataclass(frozen=True)
class _Written:
    """One prompt as the template writes it, where in it the user's text stands, and whether it ends inside a thinking block."""

    text: str
    span: tuple[int, int]
    in_thinking: bool


@dataclass(frozen=True)
class _Frame:
    """What the template writes before and after the user's text, and the form in which it takes that text."""

    head: str
    tail: str
    parts: bool
    in_thinking: bool


def render(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Iterable[Prompt | str],
    *,
    system: str | None = None,
    thinking: bool = False,
) -> tuple[Rendered, ...]:
    """Return every prompt as token ids: system prompt (a prompt's own wins over `system`), user turn, generation prompt.

    Thinking is switched by the template's own variable where it has one. A template that opens a thinking block whatever it is told
    is left as it is: `Rendered.in_thinking` and `notes` say so. Special tokens spelled out in the user's text are encoded as text.
    Templates that print today's date get a fixed one (26 July 2024), so that runs can be repeated.

    Raises:
        UserError: no chat template, a template that takes no system prompt or leaves the user's text out, an empty prompt.
    """
    texts = _write(tokenizer, prompts, system=system, thinking=thinking)
    ids, ends = _encode(tokenizer, [t.text for t in texts], [t.span for t in texts])
    result = tuple(Rendered(row, end, in_thinking=t.in_thinking) for row, end, t in zip(ids, ends, texts, strict=True))
    if not thinking:
        for note in notes(result):
            log.warning(note)
    elif not _knows_thinking(chat_template(tokenizer)):
        log.warning("Thinking was asked for, and the chat template of %s knows none: nothing is switched.", _name(tokenizer))
    return result


def as_text(
    tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt | str], *, system: str | None = None, thinking: bool = False
) -> tuple[str, ...]:
    """Return every prompt as the template writes it, before it becomes tokens. Raises what `render` raises."""
    return tuple(one.text for one in _write(tokenizer, prompts, system=system, thinking=thinking))


def system_prompt(tokenizer: PreTrainedTokenizerBase, *, thinking: bool = False) -> SystemPrompt:
    """Return what the chat template does with a system prompt.

    Raises:
        UserError: no chat template, or one that leaves the user's text out.
    """
    variables = _variables(chat_template(tokenizer), thinking=thinking)
    # Line breaks around a system prompt of the template's own need not be those around a given one.
    without = _frame(tokenizer, None, variables).head.replace("\n", "")
    try:
        before, _, after = _frame(tokenizer, _SYSTEM_MARK, variables).head.replace("\n", "").partition(_SYSTEM_MARK)
    except UserError:
        return SystemPrompt(taken=False, own="")
    own = without[len(before) : len(without) - len(after)]
    return SystemPrompt(taken=True, own=own.strip() if without == before + own + after else "")


def notes(rendered: Iterable[Rendered]) -> tuple[str, ...]:
    """Return what a reader of the results should know about the rendering, one sentence each; empty if nothing."""
    count = sum(r.in_thinking for r in rendered)
    if not count:
        return ()
    return (f"{count} prompts end inside a thinking block that the chat template opens itself: the response begins with thoughts.",)


def chat_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the text of the tokenizer's chat template.

    Raises:
        UserError: if it has none, or several and none of them is the default.
    """
    if not getattr(tokenizer, "chat_template", None):
        where = tokenizer.name_or_path or "the model folder"
        raise UserError(
            f'The tokenizer of {where} has no chat template (no chat_template.jinja, nothing under "chat_template" in '
            "tokenizer_config.json); use the chat-tuned version, or add a chat_template.jinja: base models need one."
        )
    try:
        return tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(f"The tokenizer has several chat templates and none is called 'default': {_first_line(error)}") from error


def _write(
    tokenizer: PreTrainedTokenizerBase, prompts: Iterable[Prompt | str], *, system: str | None, thinking: bool
) -> tuple[_Written, ...]:
    variables = _variables(chat_template(tokenizer), thinking=thinking)
    items = [p if isinstance(p, Prompt) else Prompt(p) for p in prompts]
    systems = [p.system if p.system is not None else system for p in items]
    frames = {s: _frame(tokenizer, s, variables) for s in dict.fromkeys(systems)}
    return tuple(_write_one(tokenizer, p.text, frame=frames[s], system=s, variables=variables) for p, s in zip(items, systems, strict=True))


def _variables(template: str, *, thinking: bool) -> dict[str, Any]:
    used = {name: thinking for name in _SWITCHES if re.search(rf"\b{name}\b", template)}
    dates = {"date_string": _TODAY.strftime("%d %b %Y"), "strftime_now": _TODAY.strftime}
    return used | {name: value for name, value in dates.items() if name in template}


def _knows_thinking(template: str) -> bool:
    return bool(tags_in(template)) or any(name in template for name in _SWITCHES)


def _apply(tokenizer: PreTrainedTokenizerBase, text: str, *, system: str | None, parts: bool, variables: dict[str, Any]) -> str:
    def content(value: str) -> str | list[dict[str, str]]:
        return [{"type": "text", "text": value}] if parts else value

    messages = [{"role": "user", "content": content(text)}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": content(system)})
    rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **variables)
    assert isinstance(rendered, str)
    return rendered


def _frame(tokenizer: PreTrainedTokenizerBase, system: str | None, variables: dict[str, Any]) -> _Frame:
    """Find the frame with a marker in the place of the user's text; templates of vision models may want content in parts."""
    for parts in (False, True):
        rendered = _try(tokenizer, system, parts=parts, variables=variables)
        if isinstance(rendered, str) and _MARK in rendered:
            break
    else:
        raise _refused(tokenizer, system, rendered, variables=variables)
    head, _, tail = rendered.rpartition(_MARK)
    if system is not None and system.strip() not in head + tail:
        raise _no_system(tokenizer, "it leaves the system prompt out")
    return _Frame(head, tail, parts, ends_inside(tail))


def _try(
    tokenizer: PreTrainedTokenizerBase, system: str | None, *, parts: bool, variables: dict[str, Any], text: str = _MARK
) -> str | Exception:
    """Return the rendering, the marked one by default, or what the template raised (it is a program: it may add lists to strings)."""
    try:
        return _apply(tokenizer, text, system=system, parts=parts, variables=variables)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError) as error:
        return error


def _refused(tokenizer: PreTrainedTokenizerBase, system: str | None, got: str | Exception, *, variables: dict[str, Any]) -> UserError:
    if system is not None:
        plain = [_try(tokenizer, None, parts=parts, variables=variables) for parts in (False, True)]
        if any(isinstance(text, str) and _MARK in text for text in plain):
            return _no_system(tokenizer, _first_line(got) if isinstance(got, Exception) else "it leaves the user's text out")
    why = f"fails: {_first_line(got)}" if isinstance(got, Exception) else "leaves the user's text out"
    return UserError(f"The chat template of {_name(tokenizer)} {why}; correct chat_template.jinja or use another model.")


def _no_system(tokenizer: PreTrainedTokenizerBase, why: str) -> UserError:
    return UserError(
        f"The chat template of {_name(tokenizer)} takes no system prompt ({why}); leave the system prompt out, or write it at the "
        "front of each prompt's text."
    )


def _write_one(tokenizer: PreTrainedTokenizerBase, text: str, *, frame: _Frame, system: str | None, variables: dict[str, Any]) -> _Written:
    if not text.strip():
        raise UserError("A prompt is empty or blank, and there is nothing to send to the model; remove it from the set.")
    rendered = _try(tokenizer, system, parts=frame.parts, variables=variables, text=text)
    if isinstance(rendered, Exception):
        raise UserError(f"The chat template of {_name(tokenizer)} fails on the prompt {text[:40]!r}: {_first_line(rendered)}") from rendered
    low, high = len(frame.head), len(rendered) - len(frame.tail)
    # Templates may trim the text, so the span between head and tail is taken as it comes out; anything else is looked for.
    if rendered.startswith(frame.head) and rendered.endswith(frame.tail) and rendered[low:high].strip() == text.strip():
        return _Written(rendered, (low, high), frame.in_thinking)
    start = rendered.rfind(text.strip())
    if start < 0:
        raise UserError(
            f"The chat template of {_name(tokenizer)} changes the user's text, so its tokens cannot be told; correct the template."
        )
    return _Written(rendered, (start, start + len(text.strip())), frame.in_thinking)


def _encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], spans: list[tuple[int, int]]) -> tuple[list[list[int]], list[int | None]]:
    """Tokenise once, without special tokens: the template has written them, and a second BOS would be wrong."""
    if not texts:
        return [], []
    fast = bool(getattr(tokenizer, "is_fast", False))
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=fast, return_attention_mask=False, verbose=False)
    ids: list[list[int]] = [list(row) for row in encoded["input_ids"]]
    if not fast:
        return ids, [None] * len(ids)
    ends: list[int | None] = [_last_inside(offsets, span) for offsets, span in zip(encoded["offset_mapping"], spans, strict=True)]
    for k, (text, (low, high)) in enumerate(zip(texts, spans, strict=True)):
        if any(token in text[low:high] for token in tokenizer.all_special_tokens):
            ids[k], ends[k] = _encode_literally(tokenizer, text, (low, high))
    return ids, ends


def _encode_literally(tokenizer: PreTrainedTokenizerBase, text: str, span: tuple[int, int]) -> tuple[list[int], int]:
    """Encode in three pieces, so that a special token spelled out by the user stays text and cannot end the turn."""
    low, high = span
    head, tail = (tokenizer(piece, add_special_tokens=False)["input_ids"] for piece in (text[:low], text[high:]))
    own = tokenizer(text[low:high], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [*head, *own, *tail], len(head) + len(own) - 1


def _last_inside(offsets: Sequence[tuple[int, int]], span: tuple[int, int]) -> int | None:
    low, high = span
    return max((i for i, (start, end) in enumerate(offsets) if start < high and end > low and end > start), default=None)


def _name(tokenizer: PreTrainedTokenizerBase) -> str:
    return tokenizer.name_or_path or "this model"


def _first_line(error: object) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
