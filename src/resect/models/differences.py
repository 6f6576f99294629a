"""What two models differ in besides their weights: what is measured between them is then no longer about weights alone."""

from collections.abc import Sequence

from resect.models.chat import SystemPrompt, as_text, system_prompt
from resect.models.load import ChatModel
from resect.prompts import Prompt

_PROBE = (Prompt("Hello"),)
_SHOWN = 40  # characters of a template's own system prompt that are shown


def differences(
    base: ChatModel, other: ChatModel, prompts: Sequence[Prompt] = (), *, system: str | None = None, thinking: bool = False
) -> dict[str, str]:
    """Return what is not the same of the two when asked these prompts (one of our own if there are none), each with a sentence.

    Names: chat template, system prompt, tokenizer, end of turn, dtype. Judged by what reaches the models: two templates that write the
    same are no difference.

    Raises:
        UserError: what `render` raises, such as a template that takes no system prompt where one is given.
    """
    if base is other:
        return {}
    found = {
        "chat template": _template(base, other, prompts or _PROBE, system=system, thinking=thinking),
        "system prompt": _system(base, other, thinking=thinking),
        "tokenizer": _tokenizer(base, other, prompts or _PROBE),
        "end of turn": _end(base, other),
        "dtype": _dtype(base, other),
    }
    return {name: sentence for name, sentence in found.items() if sentence}


def vocabularies(base: ChatModel, other: ChatModel) -> str:
    """Return in words how two vocabularies differ, "" if a token means the same in both."""
    ours, theirs = base.tokenizer.get_vocab(), other.tokenizer.get_vocab()
    sizes = [_size(model) for model in (other, base)]
    if ours == theirs and sizes[0] == sizes[1]:
        return ""
    return (
        f"{other.name} and {base.name} have different vocabularies ({sizes[0]} and {sizes[1]} tokens, "
        f"{len(ours.items() ^ theirs.items())} entries differ)"
    )


def _size(model: ChatModel) -> int:
    return int(model.network.config.get_text_config(decoder=True).vocab_size)


def _template(base: ChatModel, other: ChatModel, prompts: Sequence[Prompt], *, system: str | None, thinking: bool) -> str:
    ours, theirs = (as_text(m.tokenizer, prompts, system=system, thinking=thinking) for m in (base, other))
    changed = sum(a != b for a, b in zip(ours, theirs, strict=True))
    if not changed:
        return ""
    return (
        f"The chat template of {other.name} writes {changed} of {len(prompts)} prompts otherwise than that of {base.name}, so what differs "
        "between them, drift above all, mixes the template with the weights."
    )


def _system(base: ChatModel, other: ChatModel, *, thinking: bool) -> str:
    ours, theirs = (system_prompt(m.tokenizer, thinking=thinking) for m in (base, other))
    if ours == theirs:
        return ""
    return f"Of a system prompt {_does(other, theirs)}, and {_does(base, ours)}."


def _does(model: ChatModel, found: SystemPrompt) -> str:
    if not found.taken:
        return f"{model.name} takes none"
    own = f"has one of its own where none is given ({found.own[:_SHOWN]!r})" if found.own else "has none where none is given"
    return f"{model.name} {own}"


def _tokenizer(base: ChatModel, other: ChatModel, prompts: Sequence[Prompt]) -> str:
    if words := vocabularies(base, other):
        return f"{words}, so neither drift nor perplexity per token can be compared."
    texts = [p.text for p in prompts]
    ours, theirs = (m.tokenizer(texts, add_special_tokens=False)["input_ids"] for m in (base, other))
    changed = sum(a != b for a, b in zip(ours, theirs, strict=True))
    if not changed:
        return ""
    return (
        f"{other.name} and {base.name} share a vocabulary but cut {changed} of {len(texts)} prompts into other tokens, so what differs "
        "between them mixes the tokenizer with the weights."
    )


def _end(base: ChatModel, other: ChatModel) -> str:
    ours, theirs = ({str(m.tokenizer.convert_ids_to_tokens(i)) for i in m.end_ids} for m in (base, other))
    if ours == theirs:
        return ""
    told = [f"{model.name} at {', '.join(sorted(ends)) or 'none'}" for model, ends in ((other, theirs), (base, ours))]
    return f"Responses end at other tokens, {' and '.join(told)}, so their lengths differ for reasons other than the weights."


def _dtype(base: ChatModel, other: ChatModel) -> str:
    ours, theirs = (str(m.network.dtype).removeprefix("torch.") for m in (base, other))
    if ours == theirs:
        return ""
    return f"{other.name} runs in {theirs} and {base.name} in {ours}, so rounding is a part of the drift; --dtype makes them equal."
