"""Full next-token distributions: after the prompt, and along a given response."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from resect.edit.rows import RowEdits
from resect.errors import UserError
from resect.evaluation.forced import score
from resect.generation import Response
from resect.models.chat import Rendered
from resect.models.load import ChatModel


@dataclass(frozen=True, eq=False)
class TokenLogprobs:
    """Float32 log-probability rows of several prompts: prompt i owns `rows[offsets[i] : offsets[i + 1]]`, one row per scored token."""

    rows: Float[Tensor, "token vocab"]
    offsets: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> tuple[int, ...]:
        """Number of scored tokens of each prompt."""
        return tuple(b - a for a, b in pairwise(self.offsets))

    def of(self, prompt: int) -> Float[Tensor, "token vocab"]:
        """Return the rows of one prompt."""
        return self.rows[self.offsets[prompt] : self.offsets[prompt + 1]]


def next_token_logprobs(
    model: ChatModel,
    rendered: Sequence[Rendered],
    *,
    batch_tokens: int = 8192,
    edits: RowEdits | None = None,
    share_prefix: bool = True,
) -> Float[Tensor, "prompt vocab"]:
    """Return log p(next token | prompt) over the full vocabulary, float32 on the CPU, from the raw logits.

    `edits` are on the model with one plan a prompt; `share_prefix` as in `score`.

    Raises: UserError when there are no prompts or the logits hold NaN.
    """
    # Any one token may stand for the continuation: it is never fed in.
    any_token = [(0,)] * len(rendered)
    return _collect(model, rendered, any_token, batch_tokens=batch_tokens, edits=edits, share_prefix=share_prefix).rows


def response_logprobs(
    model: ChatModel,
    rendered: Sequence[Rendered],
    responses: Sequence[Response],
    *,
    k: int,
    batch_tokens: int = 8192,
    share_prefix: bool = True,
) -> TokenLogprobs:
    """Return the distributions that predict the first k tokens of each response, the response itself being fed in (teacher forcing).

    A response shorter than k has as many rows as tokens (the end-of-turn token counts); the first row is that of `next_token_logprobs`.

    Raises: UserError for k below 1, no prompts, an empty response or NaN logits.
    """
    if k < 1:
        raise UserError(f"The number of teacher-forced tokens k must be at least 1, got {k}.")
    empty = [i for i, r in enumerate(responses) if not r.ids]
    if empty:
        raise UserError(f"Response {empty[0]} has no tokens, so nothing can be scored along it; leave its prompt out.")
    return _collect(model, rendered, [r.ids[:k] for r in responses], batch_tokens=batch_tokens, share_prefix=share_prefix)


def _collect(
    model: ChatModel,
    rendered: Sequence[Rendered],
    continuations: Sequence[tuple[int, ...]],
    *,
    batch_tokens: int,
    edits: RowEdits | None = None,
    share_prefix: bool,
) -> TokenLogprobs:
    if not rendered:
        raise UserError("Log-probabilities need at least one prompt, but got none; check that the filters leave some.")
    lengths = torch.tensor([0, *(len(c) for c in continuations)])
    offsets = tuple(lengths.cumsum(0).tolist())
    rows: Tensor | None = None
    prompts, options = [r.ids for r in rendered], {"batch_tokens": batch_tokens, "share_prefix": share_prefix}
    for batch in score(model, prompts, continuations, edits=edits, **options):
        if rows is None:
            rows = torch.empty(offsets[-1], batch.logprobs.shape[-1])
        for row, i in enumerate(batch.rows):
            rows[offsets[i] : offsets[i + 1]] = batch.logprobs[row, : len(continuations[i])].cpu()
    assert rows is not None
    return TokenLogprobs(rows, offsets)
