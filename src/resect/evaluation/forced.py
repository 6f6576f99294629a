"""Teacher forcing: the logits that predict given continuations of given prompts, and no others.

Prompts are padded on the left and continuations on the right, so all rows of a batch are scored in the same last columns: an integer
`logits_to_keep` is enough, and the head never runs on the rest.
"""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from resect.edit.rows import RowEdits
from resect.errors import UserError
from resect.models.batches import MAX_PADDING
from resect.models.forward import accepts, cache_argument
from resect.models.load import ChatModel
from resect.models.padding import heeds_padding
from resect.models.prefix import Prefix, shared_prefix

# Scored logits held at once: 2^26 float32 values are 256 MB, whatever the vocabulary.
_MAX_LOGITS = 1 << 26

Ids = tuple[int, ...]
Rows = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Scored:
    """One batch: `logprobs[r, j]` predicts token j of the continuation of row `rows[r]`; valid for j below its length."""

    rows: tuple[int, ...]
    logprobs: Float[Tensor, "prompt k vocab"]


@torch.no_grad()
def score(
    model: ChatModel,
    prefixes: Sequence[Ids],
    continuations: Sequence[Ids],
    *,
    batch_tokens: int = 8192,
    edits: RowEdits | None = None,
    share_prefix: bool = True,
) -> Iterator[Scored]:
    """Return, batch by batch, float32 log-probabilities over the full vocabulary at the positions that predict each continuation token.

    From the raw logits of a plain forward pass; the last continuation token is never fed in. Rows with an empty continuation are left out.
    `edits` are on the model with one plan a row. With `share_prefix` what all rows begin with is fed once, where that pays.

    Raises: UserError for an empty prefix, a row longer than the model's context, or logits without a distribution.
    """
    if len(prefixes) != len(continuations):
        raise UserError(f"Scoring needs one continuation per prompt, but got {len(continuations)} for {len(prefixes)} prompts.")
    for i, prefix in enumerate(prefixes):
        if not prefix:
            raise UserError(f"Prompt {i} has no tokens, so nothing can be predicted from it; remove it or add a beginning-of-text token.")
    model.check_length(max((len(p) + len(c) - 1 for p, c in zip(prefixes, continuations, strict=True) if c), default=0))
    vocab = int(model.network.config.get_text_config(decoder=True).vocab_size)
    asked = [(p, len(c)) for p, c in zip(prefixes, continuations, strict=True) if c]
    longest = max((k for _, k in asked), default=0)
    shared = shared_prefix(model, [p for p, _ in asked], new=longest) if share_prefix and edits is None else None
    for rows in _exact_plan(model, prefixes, continuations, batch_tokens=batch_tokens, vocab=vocab, edits=edits):
        if edits is not None:
            edits.place(rows)
        logits = _forward(model, [prefixes[i] for i in rows], [continuations[i] for i in rows], shared)
        logprobs = logits.float().log_softmax(dim=-1)
        # NaN comes of a logit that is NaN or +infinity, or of a row where all are -infinity.
        if bool(logprobs.isnan().any()):
            raise UserError(
                f"The logits of {model.name} hold NaN or infinity, so nothing can be scored; check the weights, the dtype and the edit."
            )
        yield Scored(rows, logprobs)


def _exact_plan(
    model: ChatModel, prefixes: Sequence[Ids], continuations: Sequence[Ids], *, batch_tokens: int, vocab: int, edits: RowEdits | None
) -> list[Rows]:
    """Return rows in batches that the model computes exactly: without padding where it does not heed it."""
    plan = list(_plan(prefixes, continuations, batch_tokens=batch_tokens, vocab=vocab))
    shapes = [{(len(prefixes[i]), len(continuations[i])) for i in rows} for rows in plan]
    width = max((max(p for p, _ in found) + max(c for _, c in found) - 1 for found in shapes if len(found) > 1), default=0)
    with nullcontext() if edits is None else edits.aside():
        exact = not width or heeds_padding(model, "both", tokens=width)
    return plan if exact else list(_plan(prefixes, continuations, batch_tokens=batch_tokens, vocab=vocab, max_padding=0))


def _plan(
    prefixes: Sequence[Ids], continuations: Sequence[Ids], *, batch_tokens: int, vocab: int, max_padding: int = MAX_PADDING
) -> Iterator[Rows]:
    """Return rows in batches, longest first, under the budgets for tokens (padding counted), for padding and for logits."""
    order = [i for i in range(len(prefixes)) if continuations[i]]
    # Without padding rows share a batch only if both of their parts have one length.
    order.sort(key=lambda i: (-len(prefixes[i]) - len(continuations[i]), 0 if max_padding else len(prefixes[i]), i))
    rows: list[int] = []
    left = right = real = 0
    for i in order:
        prefix, continuation = len(prefixes[i]), len(continuations[i])
        wider, longer = max(left, prefix), max(right, continuation)
        tokens, count = (len(rows) + 1) * (wider + longer - 1), len(rows) + 1
        padding = tokens - real - (prefix + continuation - 1)
        if rows and (tokens > batch_tokens or padding > max_padding or count * longer * vocab > _MAX_LOGITS):
            yield tuple(rows)
            rows, real, wider, longer = [], 0, prefix, continuation
        rows.append(i)
        left, right, real = wider, longer, real + prefix + continuation - 1
    if rows:
        yield tuple(rows)


def _forward(
    model: ChatModel, prefixes: Sequence[Ids], continuations: Sequence[Ids], shared: Prefix | None
) -> Float[Tensor, "prompt k vocab"]:
    fed = 0 if shared is None else len(shared)
    left, right = max(map(len, prefixes)) - fed, max(map(len, continuations))
    ids = torch.full((len(prefixes), left + right - 1), model.pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, (prefix, continuation) in enumerate(zip(prefixes, continuations, strict=True)):
        tokens = (*prefix[fed:], *continuation[:-1])
        start = left - len(prefix) + fed
        ids[row, start : start + len(tokens)] = torch.tensor(tokens)
        mask[row, start : start + len(tokens)] = 1
    positions = fed + (mask.cumsum(1) - 1).clamp(min=0)
    optional: dict[str, Any] = {
        "attention_mask": (mask if shared is None else shared.before(mask)).to(model.device),
        "position_ids": positions.to(model.device),
        "logits_to_keep": right,
    }
    options = {name: value for name, value in optional.items() if accepts(model.network, name)}
    if shared is not None:
        options[cache_argument(model.network)] = shared.passing(len(ids))
    return model.network(input_ids=ids.to(model.device), use_cache=shared is not None, **options).logits[:, -right:]
