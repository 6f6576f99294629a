"""Whether a network computes for a padded prompt what it computes for the prompt alone: found out by numbers, where padding is needed.

Masks and positions are given in every pass, but not every architecture heeds them: compressed attention cuts its chunks from the left edge,
some recurrent states take padding in, some indexers choose among as many tokens as the batch is wide. No name tells which.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import pairwise
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from resect.models.batches import Batch, Side, batches, padded_width
from resect.models.chat import Rendered
from resect.models.forward import Call, accepts, cache_argument, first_tensor, float_state, rerun, stand_in, streams, with_first_tensor
from resect.models.load import ChatModel
from resect.models.writers import ordinary_tokens

Use = Literal["left", "right", "both", "decoding", "prefix"]
"""Where padding stands: `decoding` on the left, with a cache of keys and values, `prefix` after the first tokens, fed before the rest."""

TOLERANCE = 1e-4
"""Relative, in float32: of the tiny networks of benchmarks/families.py rows alone and padded differ by at most 1.1e-5 where the mask is
heeded, and by 0.9 % or more where it is not."""

_LEAST = 64  # tokens of the longest prompt: widths below are proven along with it
_STEPS = 2  # tokens that are fed one by one where decoding is tried
_TINY = torch.finfo(torch.float32).tiny
_HALF = (torch.float16, torch.bfloat16)

log = logging.getLogger(__name__)
_found: WeakKeyDictionary[nn.Module, dict[tuple[Use, int], bool]] = WeakKeyDictionary()


class _Enough(Exception):
    """Raised when the last block has run, where nothing after it is needed."""


def model_batches(
    model: ChatModel,
    rendered: Sequence[Rendered],
    *,
    batch_tokens: int = 8192,
    max_padding: int | None = None,
    side: Side = "left",
    new: int = 0,
) -> Iterator[Batch]:
    """Return `batches` of the prompts that the model computes exactly: of one length each where it does not heed padding on that side.

    `new` is how many tokens will be decoded after the prompts, at most. Raises what `batches` raises.
    """
    width = padded_width(rendered, batch_tokens=batch_tokens, max_padding=max_padding)
    if width and not heeds_padding(model, "decoding" if new else side, tokens=width + new):
        max_padding = 0
    return batches(rendered, batch_tokens=batch_tokens, max_padding=max_padding, pad_id=model.pad_id, side=side)


def heeds_padding(model: ChatModel, use: Use, *, tokens: int) -> bool:
    """Return whether a padded prompt has the rows after the last block that it has alone, in batches of up to `tokens` tokens a row.

    For `prefix` a prompt alone is fed whole, and of those in a batch the first tokens, which they share, before the others.

    Measured on three prompts of random ordinary tokens, two of them padded to the length of the third, in float32 whatever the dtype of
    the checkpoint, and remembered for the network. The longest has `tokens` tokens, rounded up to a power of two, since some architectures
    fail on long prompts only. A network that fails, or cannot take padding at all, is named in a warning.
    """
    if use in ("both", "decoding", "prefix") and not heeds_padding(model, "left", tokens=tokens):
        return False
    longest = max(_LEAST, 1 << (tokens - 1).bit_length())
    longest = min(longest, model.context or longest)
    known = _found.setdefault(model.network, {})
    tried = {length: heeded for (other, length), heeded in known.items() if other == use}
    # Whoever fails on short prompts fails on long ones, and whoever heeds padding on long prompts does on short ones.
    if any(length <= longest and not heeded for length, heeded in tried.items()):
        return False
    if any(length >= longest and heeded for length, heeded in tried.items()):
        return True
    error = _error(model, use, longest)
    if math.isnan(error):
        return True  # a broken network, or a broken edit of one: the passes that count refuse it by name
    known[use, longest] = error <= TOLERANCE
    if error > TOLERANCE:
        log.warning(
            "%s computes other values for a prompt that is padded (%s) than for the prompt alone (%s), so %s: exact, but slower.",
            model.name,
            {"decoding": "on the left, decoding", "both": "on both sides", "prefix": "after its first tokens"}.get(use, f"on the {use}"),
            f"{error:.1%} off at {longest} tokens" if error < float("inf") else "the padded pass fails",
            "what its prompts share is fed with each" if use == "prefix" else "its batches hold prompts of equal length only",
        )
    return known[use, longest]


@torch.no_grad()
def _error(model: ChatModel, use: Use, longest: int) -> float:
    """Return the largest relative error of a padded row, infinity where padding cannot be computed or gives what is not finite.

    NaN where not even a prompt alone gives what is finite.
    """
    prompts = _prompts(model, [max(_STEPS + 1, n * longest // 3) for n in (3, 2, 1)])
    shared = len(prompts[-1]) // 2 if use == "prefix" else 0
    prompts = [torch.cat([prompts[0][:shared], prompt[shared:]]) for prompt in prompts]
    try:
        alone = [_rows(model, [prompt], use)[0] for prompt in prompts[1:]]
        padded = _rows(model, prompts, use, shared=shared)[1:]
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError):
        return float("inf")
    if not all(bool(rows.isfinite().all()) for rows in alone):
        return math.nan
    error = max(float(((a - b).norm(dim=-1) / a.norm(dim=-1).clamp(min=_TINY)).max()) for a, b in zip(alone, padded, strict=True))
    return error if math.isfinite(error) else float("inf")


def _prompts(model: ChatModel, lengths: Sequence[int]) -> list[Tensor]:
    allowed = ordinary_tokens(model)
    picks = torch.randint(len(allowed), (sum(lengths),), generator=torch.Generator().manual_seed(0))
    return list(allowed[picks].split(list(lengths)))


def _rows(model: ChatModel, prompts: Sequence[Tensor], use: Use, *, shared: int = 0) -> list[Float[Tensor, "token width"]]:
    """Return the stream after the last block at the tokens of each prompt, in one batch as wide as the first, which is the longest.

    The first `shared` tokens stand before the padding, and are fed first.
    """
    width = len(prompts[0])
    # Share of the padding that stands before the rest of the prompt.
    before = {"left": 1.0, "decoding": 1.0, "prefix": 1.0, "right": 0.0, "both": 0.5}[use]
    starts = [int(before * (width - len(p))) for p in prompts]
    places = [torch.arange(len(p)) + start * (torch.arange(len(p)) >= shared) for p, start in zip(prompts, starts, strict=True)]
    ids = torch.full((len(prompts), width), model.pad_id)
    mask = torch.zeros_like(ids)
    for row, (place, prompt) in enumerate(zip(places, prompts, strict=True)):
        ids[row, place], mask[row, place] = prompt, 1
    positions = (mask.cumsum(1) - 1) * mask
    steps = range(width - _STEPS, width) if use == "decoding" else [shared] if shared else []
    inputs = (ids.to(model.device), mask.to(model.device), positions.to(model.device))
    found = _fed(model, *inputs, [*steps, width], cached=bool(steps))
    return [rows[place] for rows, place in zip(found, places, strict=True)]


def _fed(
    model: ChatModel, ids: Tensor, mask: Tensor, positions: Tensor, ends: Sequence[int], *, cached: bool
) -> Float[Tensor, "row token width"]:
    """Run the network over the columns up to each end in turn, with a cache in between; masks are as capture and decoding give them."""
    network, past, rows = model.network, None, []
    padded = bool((mask == 0).any())
    with _watched(model, through=cached) as kept:
        for start, end in pairwise([0, *ends]):
            optional: dict[str, Any] = {"position_ids": positions[:, start:end], "logits_to_keep": 1}
            optional["attention_mask"] = mask[:, :end] if padded or not cached else None
            options = {name: value for name, value in optional.items() if value is not None and accepts(network, name)}
            if past is not None:
                options[cache_argument(network)] = past
            with suppress(_Enough):
                output = network(input_ids=ids[:, start:end], use_cache=cached, **options)
                past = output.get(cache_argument(network))
            rows.append(streams(kept.pop(), model.d_model, (len(ids), end - start)).movedim(0, 2).flatten(2))
    return torch.cat(rows, dim=1)


@contextmanager
def _watched(model: ChatModel, *, through: bool) -> Iterator[list[Tensor]]:
    """Keep what the last block puts out; blocks in half precision compute in float32, one at a time, inside the `with` block.

    Passes end there by `_Enough` unless they are to go `through`.

    In half precision rounding alone moves a row by up to a sixth where experts are chosen, which is as much as a mask ignored.
    """
    network, last, kept = model.network, model.blocks[-1], []
    half = network.dtype in _HALF

    def standing_in(block: nn.Module, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            with stand_in(block, own):
                output = rerun(block, Call(args, kwargs), state=float_state(block)) if half else own(*args, **kwargs)
            if block is not last:
                return output
            kept.append(first_tensor(output).clone())
            if not through:
                raise _Enough
            return with_first_tensor(output, kept[-1].to(network.dtype))

        return forward

    with ExitStack() as stack:
        for block in dict.fromkeys(model.blocks if half else (last,)):
            stack.enter_context(stand_in(block, standing_in(block, block.forward)))
        yield kept
