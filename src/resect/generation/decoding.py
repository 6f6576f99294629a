"""One batch being decoded: a lean loop over the network's own cache, whose rows leave as they end."""

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from resect.errors import UserError
from resect.generation.drafts import Drafts
from resect.generation.fixed import Fixed, can_be_fixed
from resect.generation.graphs import Recorder
from resect.models.batches import Batch
from resect.models.caches import can_drop_rows, can_drop_tokens, drop_tokens
from resect.models.chat import Rendered
from resect.models.forward import accepts, cache_argument
from resect.models.load import ChatModel
from resect.models.prefix import Prefix

log = logging.getLogger(__name__)

Ids = tuple[int, ...]
Stop = Callable[[Rendered, Ids], bool]

# On an accelerator asking "has everybody finished?" waits for the device; every few steps is enough, surplus tokens are cut off.
_STEPS_BETWEEN_CHECKS = 8
# Logits of guesses held at once: 2^26 float32 values are 256 MB, whatever the vocabulary.
_MAX_LOGITS = 1 << 26


class Decoding:
    """The rows of a batch and how far they are.

    `tokens` and `counts` keep all rows of the batch, with one more column that takes what ended rows still produce. All else is about the
    rows that are left, `rows`: `next` was chosen and not fed yet, `position` is its place in the text, and `mask` marks the columns of
    the cache that hold tokens (None where all do: the network's causal path is faster than a mask of ones). `on_rows` is told which rows
    the batch has whenever they change. What a step changes it changes in place, so that it can be recorded.
    """

    def __init__(
        self, model: ChatModel, batch: Batch, prompts: Sequence[Rendered], *, steps: int, on_rows: Callable[[list[int]], None] | None
    ) -> None:
        ids = batch.input_ids
        self.model, self.prompts, self.steps, self.batch = model, prompts, steps, batch
        self.ends = torch.tensor(sorted(model.end_ids), device=ids.device, dtype=ids.dtype)
        self.tokens = ids.new_zeros((len(prompts), steps + 1))
        self.counts = ids.new_zeros(len(prompts))
        self.rows = torch.arange(len(prompts), device=ids.device)
        self.active = torch.ones_like(self.rows, dtype=torch.bool)
        self.mask: Bool[Tensor, "sample token"] | None = batch.attention_mask.bool() if bool((batch.attention_mask == 0).any()) else None
        self.position = batch.lengths.clone()
        self.next = self.rows.clone()
        self.broken = torch.zeros((), dtype=torch.bool, device=ids.device)
        self.past: Any = None
        self.fixed: Fixed | None = None
        self.on_rows = on_rows

    def run(
        self,
        prefix: Prefix | None = None,
        *,
        stop: Stop | None = None,
        drafts: Drafts | None = None,
        retire: bool = True,
        recorder: Recorder | None = None,
    ) -> None:
        """Decode until every row has ended; with a recorder in a cache of fixed length, by steps as it makes them.

        A prefix is what all prompts begin with.
        """
        if self.on_rows is not None:
            self.on_rows(self.rows.tolist())
        self._prefill(prefix)
        if drafts is not None:
            self._guess(drafts, stop)
        left = self.steps - int(torch.where(self.active, self.counts[self.rows], self.steps).min())
        if recorder is not None and left:
            self._fix(left)
        every = 1 if stop is not None or self.tokens.device.type == "cpu" else _STEPS_BETWEEN_CHECKS
        # Local, since a record that the batch itself held would keep both in memory until they are found to be garbage.
        step, recorded_for = self._feed, 0
        for number in range(1, left + 1):
            if stop is not None:
                self._settle(stop, since=self.counts - 1)
            if number % every == 0 and not self._anybody_left(retire=retire):
                break
            if recorder is not None and self.fixed is not None and len(self.rows) != recorded_for:
                step, recorded_for = recorder(self._feed), len(self.rows)
            step()
        self._check()

    def ended(self) -> dict[int, Ids]:
        """Return the tokens of the rows that have ended, by their place in the batch."""
        over = torch.ones_like(self.counts, dtype=torch.bool)
        over[self.rows] = ~self.active
        rows, counts = self.tokens.tolist(), self.counts.tolist()
        return {i: tuple(rows[i][: counts[i]]) for i, done in enumerate(over.tolist()) if done}

    def _prefill(self, prefix: Prefix | None) -> None:
        """Feed the prompts, without the prefix that is fed already, and choose each row's first token."""
        ids, positions = self.batch.input_ids, self.batch.position_ids
        if prefix is not None:
            # Padding stands on the left, so leaving out the first columns leaves each row its last tokens.
            ids, positions = ids[:, len(prefix) :], positions[:, len(prefix) :]
            self.past, self.mask = prefix.growing(len(ids)), prefix.before(positions >= len(prefix))
        self._take(self._best(ids, positions, kept=1)[:, -1], self.active)
        if self.mask is not None and bool(self.mask.all()):
            self.mask = None
        self._check()

    def _fix(self, room: int) -> None:
        """Go on in a cache of fixed length, where the network can."""
        if not can_be_fixed(self.model, self.past):
            note_once(f"{self.model.name} cannot decode in a cache of fixed length, so static_cache and graphs do nothing for it.")
            return
        mask = self.mask if self.mask is not None else self.rows.new_ones(len(self.rows), self.past.get_seq_length(), dtype=torch.bool)
        self.fixed, self.mask = Fixed(self.model.network, self.past, mask, room=room), None

    def _feed(self) -> None:
        """Feed the token that each row chose last, and choose the next."""
        if self.mask is not None:
            self.mask = torch.nn.functional.pad(self.mask, (0, 1), value=True)
        chosen = self._best(self.next[:, None], self.position[:, None], kept=1)[:, -1]
        self.position += 1
        if self.fixed is not None:
            self.fixed.column += 1
        self._take(chosen, self.active)

    def _guess(self, drafts: Drafts, stop: Stop | None) -> None:
        """Feed guesses as long as they pay."""
        if stop is not None:
            self._settle(stop, since=self.counts - 1)
        while self._anybody_left(retire=True) and can_drop_tokens(self.past):
            rows, counts, tokens = self.rows.tolist(), self.counts.tolist(), self.tokens.tolist()
            # The last token of a response is chosen, never fed.
            known = [tuple(tokens[i][: counts[i]]) for i in rows]
            guesses = [drafts.guess(self.prompts[i], new)[: self.steps - len(new)] for i, new in zip(rows, known, strict=True)]
            if stop is not None:
                guesses = [_needed(stop, self.prompts[i], new, g) for i, new, g in zip(rows, known, guesses, strict=True)]
            vocab = int(self.model.network.config.get_text_config(decoder=True).vocab_size)
            width = drafts.width(guesses, most=max(0, _MAX_LOGITS // (vocab * len(rows)) - 1))
            if not width:
                return
            before, asked, guesses = self.counts.clone(), self.rows, [g[:width] for g in guesses]
            accepted = self._verify(guesses, width)
            drafts.record(offered=sum(map(len, guesses)), accepted=int(accepted.sum()))
            if stop is not None:
                # Of a guess only the last token can satisfy it; `_needed` has asked about the others.
                self._settle(stop, since=before.index_add(0, asked, (accepted - 1).clamp(min=0)))

    def _verify(self, guesses: Sequence[Ids], width: int) -> Int[Tensor, " sample"]:
        """Feed each row's last token with its guess, take what greedy decoding would have chosen; return how many were guessed rightly."""
        device = self.tokens.device
        lengths = torch.tensor([len(g) for g in guesses], device=device)
        filled = [(*g, *[self.model.pad_id] * (width - len(g))) for g in guesses]
        ids = torch.cat([self.next[:, None], torch.tensor(filled, device=device, dtype=self.next.dtype)], dim=1)
        steps = torch.arange(width + 1, device=device)
        before = self.mask if self.mask is not None else ids.new_ones(len(ids), self.past.get_seq_length(), dtype=torch.bool)
        self.mask = torch.cat([before, steps <= lengths[:, None]], dim=1)
        best = self._best(ids, self.position[:, None] + steps, kept=width + 1)
        right = (ids[:, 1:] == best[:, :-1]) & (steps[1:] <= lengths[:, None])
        accepted = right.long().cumprod(dim=1).sum(dim=1)
        for step in range(int(accepted.max()) + 1):
            self._take(best[:, step], self.active & (step <= accepted))
        self.position += 1 + accepted
        # Nobody reads the cache of a batch that has ended.
        if bool(self.active.any()):
            self.mask = drop_tokens(self.past, torch.cat([before, steps <= accepted[:, None]], dim=1))
            if bool(self.mask.all()):
                self.mask = None
        return accepted

    def _best(self, ids: Int[Tensor, "sample token"], positions: Int[Tensor, "sample token"], *, kept: int) -> Int[Tensor, "sample width"]:
        """Return the likeliest tokens after the last `kept`, and note whether there is a likeliest: NaN is the largest of all to argmax."""
        logits = self._logits(ids, positions, kept=kept)
        best = logits.argmax(dim=-1)
        self.broken |= ~logits.gather(-1, best[..., None]).isfinite().all()
        return best

    def _check(self) -> None:
        if bool(self.broken):
            raise UserError(
                f"The logits of {self.model.name} hold NaN or infinity, so no token is the likeliest; check the weights, the dtype and the "
                "edit."
            )

    def _logits(self, ids: Int[Tensor, "sample token"], positions: Int[Tensor, "sample token"], *, kept: int) -> Tensor:
        """Return the logits of the last `kept` tokens, in float32 as in `generate`, so that ties in half precision fall the same way."""
        network = self.model.network
        mask = self.fixed.masks() if self.fixed is not None else None if self.mask is None else self.mask.long()
        optional = {"attention_mask": mask, "position_ids": positions, "logits_to_keep": kept}
        options = {name: value for name, value in optional.items() if value is not None and accepts(network, name)}
        name = cache_argument(network)
        if self.past is not None:
            options[name] = self.past
        output = network(input_ids=ids, use_cache=True, **options)
        self.past = output.get(name)
        if self.past is None:
            raise UserError(f"{type(network).__name__} returns no cache of keys and values, so its responses cannot be decoded here.")
        return output.logits[:, -kept:].float().to(self.tokens.device)

    def _take(self, chosen: Int[Tensor, " sample"], where: Bool[Tensor, " sample"]) -> None:
        """Append a token to the marked rows; a row ends with an end-of-turn token or its last step."""
        counts = self.counts[self.rows]
        self.tokens[self.rows, torch.where(where, counts, self.steps)] = chosen
        self.counts[self.rows] = counts + where
        self.next.copy_(torch.where(where, chosen, self.next))
        over = (chosen[:, None] == self.ends).any(dim=1) | (counts + 1 >= self.steps)
        self.active &= ~(where & over)

    def _settle(self, stop: Stop, *, since: Int[Tensor, " prompt"]) -> None:
        """Cut the rows where one of their newest tokens satisfies `stop`; a token that ended the row itself is not asked about."""
        tokens, counts, before, live = self.tokens.tolist(), self.counts.tolist(), since.tolist(), self.active.tolist()
        for place, row in enumerate(self.rows.tolist()):
            asked = range(before[row] + 1, counts[row] + live[place])
            cut = next((n for n in asked if stop(self.prompts[row], tuple(tokens[row][:n]))), None)
            if cut is not None:
                self.counts[row], self.active[place] = cut, False

    def _anybody_left(self, *, retire: bool) -> bool:
        """Take ended rows out once they are at least half of the batch; return whether any row is left to decode."""
        live = int(self.active.sum())
        if retire and live and 2 * live <= len(self.rows) and can_drop_rows(self.past):
            keep = self.active.nonzero().flatten()
            self.past.reorder_cache(keep)
            self.rows, self.position, self.active, self.next = (x[keep] for x in (self.rows, self.position, self.active, self.next))
            self.mask = None if self.mask is None else self.mask[keep]
            if self.fixed is not None:
                self.fixed.keep(keep)
            if self.on_rows is not None:
                self.on_rows(self.rows.tolist())
        return live > 0


def _needed(stop: Stop, prompt: Rendered, new: Ids, guess: Ids) -> Ids:
    """Return a guess up to the token that would end the row by `stop`: what follows would be fed in vain."""
    return next((guess[:n] for n in range(1, len(guess)) if stop(prompt, new + guess[:n])), guess)


@functools.cache
def note_once(text: str) -> None:
    """Log once."""
    log.warning(text)
