"""Length-sorted batches under a token budget, padded on a stated side."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from resect.errors import UserError, unknown_name
from resect.models.chat import Rendered

Side = Literal["left", "right"]

MAX_PADDING = 128
"""Tokens of padding that are dearer than another pass, where nothing is decoded.

Measured on the cases of benchmarks/capture.py, one thread: a pass costs as much as some 130 tokens of it in the shipped organism and some
30 in a network of 32 million parameters; limits from 64 to 128 are the fastest in both, the larger takes two thirds of one batch's time.
"""


@dataclass(frozen=True, eq=False)
class Batch:
    """Padded prompts; `rows` are their indices in the sequence that was batched."""

    rows: tuple[int, ...]
    input_ids: Int[Tensor, "prompt token"]
    attention_mask: Int[Tensor, "prompt token"]
    position_ids: Int[Tensor, "prompt token"]
    lengths: Int[Tensor, " prompt"]
    side: Side

    @property
    def starts(self) -> Int[Tensor, " prompt"]:
        """Column of each prompt's first token: add an index into `Rendered.ids` to get its column."""
        width = self.input_ids.shape[1]
        return width - self.lengths if self.side == "left" else torch.zeros_like(self.lengths)

    def to(self, device: torch.device | str) -> "Batch":
        """Return the same batch with its tensors on `device`."""
        names = ("input_ids", "attention_mask", "position_ids", "lengths")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})


def batches(
    rendered: Sequence[Rendered],
    *,
    batch_tokens: int = 8192,
    max_padding: int | None = None,
    pad_id: int = 0,
    side: Side = "left",
) -> Iterator[Batch]:
    """Return the prompts in batches of at most `batch_tokens` tokens, padding counted, longest prompts first.

    A prompt longer than the budget is a batch of its own. With `max_padding` a batch holds at most so many tokens of padding, too. The
    order depends on lengths and indices only, so it is the same in every run. Padding is masked and has position 0; the value of `pad_id`
    therefore never changes a result.

    Raises:
        UserError: for a budget below 1, an unknown side or a prompt without tokens.
    """
    if batch_tokens < 1:
        raise UserError(f"The token budget of a batch must be at least 1, got {batch_tokens}; 8192 is a good start.")
    if side not in ("left", "right"):
        raise unknown_name("padding side", side, ["left", "right"])
    empty = [i for i, r in enumerate(rendered) if not r.ids]
    if empty:
        raise UserError(f"Prompt {empty[0]} has no tokens, and a model needs at least one; remove it from the set.")
    return (
        _collate([rendered[i].ids for i in rows], rows=rows, pad_id=pad_id, side=side)
        for rows in _plan(rendered, batch_tokens, max_padding)
    )


def padded_width(rendered: Sequence[Rendered], *, batch_tokens: int, max_padding: int | None) -> int:
    """Return the width of the widest of `batches` that holds padding, 0 if none does."""
    lengths = ([len(rendered[i].ids) for i in rows] for rows in _plan(rendered, batch_tokens, max_padding))
    return max((max(found) for found in lengths if min(found) < max(found)), default=0)


def _plan(rendered: Sequence[Rendered], batch_tokens: int, max_padding: int | None) -> Iterator[tuple[int, ...]]:
    order = sorted(range(len(rendered)), key=lambda i: (-len(rendered[i].ids), i))
    rows: list[int] = []
    width = padding = 0
    for i in order:
        length = len(rendered[i].ids)
        # Sorted: the first prompt of a batch is its longest, so it fixes the width.
        full = (len(rows) + 1) * width > batch_tokens
        if rows and (full or (max_padding is not None and padding + width - length > max_padding)):
            yield tuple(rows)
            rows, padding = [], 0
        width = width if rows else length
        rows.append(i)
        padding += width - length
    if rows:
        yield tuple(rows)


def _collate(ids: Sequence[Sequence[int]], *, rows: tuple[int, ...], pad_id: int, side: Side) -> Batch:
    width = max(len(row) for row in ids)
    input_ids = torch.full((len(ids), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(input_ids)
    for k, row in enumerate(ids):
        span = slice(width - len(row), width) if side == "left" else slice(0, len(row))
        input_ids[k, span] = torch.tensor(row, dtype=torch.long)
        mask[k, span] = 1
    positions = (mask.cumsum(1) - 1) * mask
    return Batch(rows, input_ids, mask, positions, mask.sum(1), side)
