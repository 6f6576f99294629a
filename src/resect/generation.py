"""Greedy responses, exactly those of plain greedy decoding, in a lean loop over the network's own cache.

Decoding is always the argmax of the raw logits: temperature, penalties and other processors of a generation config are ignored, since
they would make two arms differ for reasons other than the edit.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from resect.errors import UserError
from resect.models.batches import Batch, batches
from resect.models.chat import Rendered, chat_template
from resect.models.forward import accepts, cache_argument
from resect.models.load import ChatModel
from resect.models.thinking import answer_of_tokens

Stop = Callable[[tuple[int, ...]], bool]

# On an accelerator asking "has everybody finished?" waits for the device; every few steps is enough, surplus tokens are cut off.
_STEPS_BETWEEN_CHECKS = 8


@dataclass(frozen=True)
class Response:
    """One greedy response.

    `ids` are the new tokens, the end-of-turn token included when there is one (`finished`). `text` is their text without special
    tokens. `answer` is the text after a leading thinking block, None if there is no such block; a block that never closed leaves "".
    """

    ids: tuple[int, ...]
    text: str
    finished: bool
    answer: str | None = None

    @property
    def answer_text(self) -> str:
        """The text without a leading thinking block."""
        return self.text if self.answer is None else self.answer


@torch.no_grad()
def respond(
    model: ChatModel,
    rendered: Sequence[Rendered],
    *,
    max_new_tokens: int,
    batch_tokens: int = 8192,
    stop: Stop | None = None,
) -> tuple[Response, ...]:
    """Return the greedy response to each prompt, in the order given.

    Token for token what `network.generate(do_sample=False)` gives for the prompt alone; where two logits tie within rounding, padding
    and batch size may decide. `batch_tokens` counts prompt tokens, padding included. A row ends at an end-of-turn token, after
    `max_new_tokens`, or when `stop` returns true for its tokens so far (asked after every token; such a row is not `finished`).

    Raises:
        UserError: for max_new_tokens below 1, an architecture without a cache of keys and values, or NaN logits.
    """
    if max_new_tokens < 1:
        raise UserError(f"The number of new tokens must be at least 1, got {max_new_tokens}; 64 shows whether a model refuses.")
    found: dict[int, tuple[int, ...]] = {}
    for batch in batches(rendered, batch_tokens=batch_tokens, pad_id=model.pad_id, side="left"):
        found.update(zip(batch.rows, _decode(model, batch.to(model.device), max_new_tokens, stop), strict=True))
    return tuple(read(model, found[i], prompt=prompt) for i, prompt in enumerate(rendered))


def read(model: ChatModel, ids: Sequence[int], *, prompt: Rendered) -> Response:
    """Return new tokens as a `Response`: text, whether the turn ended, and the answer after a leading thinking block."""
    tokens = tuple(ids)
    finished = bool(tokens) and tokens[-1] in model.end_ids
    text = _text(model.tokenizer, tokens)
    answer = answer_of_tokens(model.tokenizer, chat_template(model.tokenizer), tokens, inside=prompt.in_thinking)
    return Response(tokens, text, finished, answer)


def _decode(model: ChatModel, batch: Batch, steps: int, stop: Stop | None) -> list[tuple[int, ...]]:
    """Return the new tokens of each row of the batch."""
    state = _State.of(model, batch, steps)
    every = 1 if stop is not None or batch.input_ids.device.type == "cpu" else _STEPS_BETWEEN_CHECKS
    state.advance(model, batch.input_ids, step=0)
    for step in range(1, steps):
        if stop is not None:
            state.settle(stop, step=step)
        if step % every == 0 and not state.retire():
            break
        state.positions += 1
        state.advance(model, state.next[:, None], step=step)
    return [tuple(row[:count]) for row, count in zip(state.tokens.tolist(), state.counts.tolist(), strict=True)]


@dataclass
class _State:
    """A batch being decoded. `tokens` and `counts` keep all its rows; the rest only those in `rows`, which shrink."""

    tokens: Int[Tensor, "prompt k"]
    counts: Int[Tensor, " prompt"]
    ends: Int[Tensor, " _"]
    rows: Int[Tensor, " sample"]
    positions: Int[Tensor, "sample token"]
    mask: Int[Tensor, "sample _"] | None
    active: Bool[Tensor, " sample"]
    next: Int[Tensor, " sample"]
    width: int
    past: Any = None

    @classmethod
    def of(cls, model: ChatModel, batch: Batch, steps: int) -> "_State":
        """Return the state before the first forward pass."""
        ids, rows = batch.input_ids, torch.arange(len(batch.rows), device=batch.input_ids.device)
        # Rows of one length need no mask, and the network's causal path is faster than a mask of ones.
        padded = bool((batch.attention_mask == 0).any())
        mask = torch.nn.functional.pad(batch.attention_mask, (0, steps), value=1) if padded else None
        ends = torch.tensor(sorted(model.end_ids), device=ids.device, dtype=ids.dtype)
        active = torch.ones_like(rows, dtype=torch.bool)
        tokens = ids.new_zeros((len(rows), steps))
        return cls(tokens, torch.zeros_like(rows), ends, rows, batch.position_ids, mask, active, rows, ids.shape[1])

    def advance(self, model: ChatModel, input_ids: Int[Tensor, "sample token"], *, step: int) -> None:
        """Run the network on the new tokens and note each row's greedy next one."""
        mask = None if self.mask is None else self.mask[:, : self.width + step]
        optional = {"attention_mask": mask, "position_ids": self.positions, "logits_to_keep": 1}
        options = {name: value for name, value in optional.items() if value is not None and accepts(model.network, name)}
        if self.past is not None:
            options[cache_argument(model.network)] = self.past
        output = model.network(input_ids=input_ids, use_cache=True, **options)
        self.past = _cache(model, output)
        # float32 as in `generate`, so that ties in half precision fall the same way.
        logits = output.logits[:, -1].float()
        self.next = logits.argmax(dim=-1)
        if step == 0:
            _check_numbers(model, logits)
            self.positions = self.positions[:, -1:]
        self.tokens[self.rows, step] = self.next
        self.counts[self.rows] += self.active
        self.active &= torch.isin(self.next, self.ends, invert=True)

    def settle(self, stop: Stop, *, step: int) -> None:
        """End the rows whose tokens so far satisfy `stop`."""
        new = self.tokens[self.rows, :step].tolist()
        going = [live and not stop(tuple(row)) for row, live in zip(new, self.active.tolist(), strict=True)]
        self.active = torch.tensor(going, device=self.active.device)

    def retire(self) -> bool:
        """Drop ended rows once they are at least half of the batch; return whether any row is left to decode."""
        live = int(self.active.sum())
        if live and 2 * live <= len(self.rows) and hasattr(self.past, "reorder_cache"):
            keep = self.active.nonzero().flatten()
            self.past.reorder_cache(keep)
            self.rows, self.positions, self.active, self.next = (x[keep] for x in (self.rows, self.positions, self.active, self.next))
            self.mask = None if self.mask is None else self.mask[keep]
        return live > 0


def _cache(model: ChatModel, output: Any) -> Any:
    past = output.get(cache_argument(model.network))
    if past is None:
        raise UserError(f"{type(model.network).__name__} returns no cache of keys and values, so its responses cannot be decoded here.")
    return past


def _check_numbers(model: ChatModel, logits: Float[Tensor, "sample vocab"]) -> None:
    if bool(logits.isnan().any()):
        raise UserError(f"The logits of {model.name} hold NaN, so no token is the likeliest; check the weights, the dtype and the edit.")


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=True))
