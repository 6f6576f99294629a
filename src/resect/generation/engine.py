"""The engine: prompts in, greedy responses out, in batches that fit into memory."""

import functools
from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch

from resect.edit.rows import RowEdits
from resect.errors import UserError
from resect.generation.budget import fitting, out_of_memory
from resect.generation.decoding import Decoding, Ids, Stop, note_once
from resect.generation.drafts import Drafts
from resect.generation.graphs import CudaGraph, Recorder, as_it_is, can_be_recorded
from resect.generation.response import Response, read
from resect.generation.shortcuts import Shortcuts
from resect.models.batches import Batch
from resect.models.chat import Rendered
from resect.models.load import ChatModel
from resect.models.padding import heeds_padding, model_batches
from resect.models.prefix import shared_prefix


@torch.no_grad()
def respond(
    model: ChatModel,
    rendered: Sequence[Rendered],
    *,
    max_new_tokens: int,
    batch_tokens: int = 8192,
    stop: Stop | None = None,
    drafts: Drafts | None = None,
    edits: RowEdits | None = None,
    shortcuts: Shortcuts = Shortcuts(),  # noqa: B008  a frozen value
) -> tuple[Response, ...]:
    """Return the greedy response to each prompt, in the order given.

    Token for token what `network.generate(do_sample=False)` gives for the prompt alone; where two logits tie within rounding, padding
    and batch size may decide. Where the network does not heed padding, prompts of a batch have one length, and drafts are for lone ones. A
    row ends at an end-of-turn token, after `max_new_tokens`, or when `stop` returns true for its prompt and tokens so far (not `finished`).

    Args:
        model: the model, with whatever hooks are on it.
        rendered: the prompts.
        max_new_tokens: longest response.
        batch_tokens: most prompt tokens in a batch, padding included; fewer where memory is short.
        stop: when a row may end early, asked after every token.
        drafts: known responses, used as guesses; the new ones are added to them.
        edits: edits that are on the model with one plan a prompt, in the order of the prompts.
        shortcuts: what may be done to save time.

    Raises:
        UserError: for max_new_tokens below 1, an architecture without a cache of keys and values, logits without a largest, a prompt that
            with its response is longer than the model's context, or one that does not fit into memory alone.
    """
    _check(model, rendered, max_new_tokens)
    guesses = drafts if shortcuts.drafts else None
    budget = fitting(model, rendered, batch_tokens=batch_tokens, new=max_new_tokens) if shortcuts.memory else batch_tokens
    prefix = shared_prefix(model, [r.ids for r in rendered], new=max_new_tokens) if shortcuts.prefix and edits is None else None
    found: dict[int, Ids] = {}
    while missing := [i for i in range(len(rendered)) if i not in found]:
        planned, together = _planned(model, [rendered[i] for i in missing], budget, max_new_tokens, guesses, edits)
        for batch in planned:
            rows = [missing[i] for i in batch.rows]
            moved = None if edits is None else lambda left, rows=rows, edits=edits: edits.place([rows[i] for i in left])
            decoding = Decoding(model, batch.to(model.device), [rendered[i] for i in rows], steps=max_new_tokens, on_rows=moved)
            try:
                given = guesses if together or len(rows) == 1 else None
                decoding.run(prefix, stop=stop, drafts=given, retire=shortcuts.retire, recorder=_recorder(model, shortcuts))
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                budget = _halved(batch.input_ids.numel(), rows=len(rows), model=model, error=error)
                break
            finally:
                found |= {rows[i]: ids for i, ids in decoding.ended().items()}
    responses = tuple(read(model, found[i], prompt=prompt) for i, prompt in enumerate(rendered))
    _learn(drafts, rendered, responses)
    return responses


def _learn(drafts: Drafts | None, rendered: Sequence[Rendered], responses: Sequence[Response]) -> None:
    if drafts is not None:
        for prompt, response in zip(rendered, responses, strict=True):
            drafts.learn(prompt, response.ids)


def _planned(
    model: ChatModel, prompts: Sequence[Rendered], budget: int, new: int, guesses: Drafts | None, edits: RowEdits | None
) -> tuple[Iterator[Batch], bool]:
    """Return the batches, and whether rows of one may have guesses: these differ in length, and so does what is kept of them."""
    with nullcontext() if edits is None else edits.aside():
        planned = model_batches(model, prompts, batch_tokens=budget, new=new)
        known = guesses is not None and len(prompts) > 1 and guesses.knows(prompts)
        return planned, known and heeds_padding(model, "decoding", tokens=max(len(p.ids) for p in prompts) + new)


def _check(model: ChatModel, rendered: Sequence[Rendered], max_new_tokens: int) -> None:
    if max_new_tokens < 1:
        raise UserError(f"The number of new tokens must be at least 1, got {max_new_tokens}; 64 shows whether a model refuses.")
    if rendered:
        model.check_length(max(len(r.ids) for r in rendered) + max_new_tokens - 1)


def _recorder(model: ChatModel, shortcuts: Shortcuts) -> Recorder | None:
    """Return what makes the steps in a cache of fixed length; None where it may grow."""
    if shortcuts.graphs and not can_be_recorded(model.network):
        note_once(f"{model.name} is not on one CUDA device, so the shortcut graphs does nothing for it.")
    elif shortcuts.graphs:
        return functools.partial(CudaGraph, device=model.device)
    return as_it_is if shortcuts.static_cache else None


def _halved(tokens: int, *, rows: int, model: ChatModel, error: RuntimeError) -> int:
    """Return half the budget of a batch that did not fit."""
    if rows == 1:
        raise UserError(
            f"One prompt of {tokens} tokens does not fit into the memory that {model.name} leaves on {model.device}; use a shorter prompt, "
            "fewer new tokens or a smaller dtype."
        ) from error
    return max(1, tokens // 2)
