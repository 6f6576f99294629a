"""The tokens that all prompts of a call begin with (the template's opening, a system prompt, examples): fed once, for all rows.

Of these tokens later ones see keys and values only, where the cache of a network holds nothing else. The columns of a row are then the
prefix, padding, and the rest of its prompt; whether a network computes for them what it computes for the whole prompt is found out by
numbers (`heeds_padding`).
"""

import copy
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer

from resect.models.batches import MAX_PADDING
from resect.models.caches import can_drop_tokens
from resect.models.forward import accepts, cache_argument, has_cache
from resect.models.load import ChatModel
from resect.models.padding import heeds_padding

Ids = tuple[int, ...]

LEAST_ON_ACCELERATOR = 1024
"""Tokens that must be spared for another pass to pay where a pass waits for the weights to be read; a guess, never measured."""

_other: WeakSet[nn.Module] = WeakSet()
"""Networks whose cache holds more than the keys and values of all tokens, or less."""
_begun: WeakKeyDictionary[Any, tuple[bool, Ids]] = WeakKeyDictionary()
"""Caches that were begun with a prefix: whether they keep what is fed after it, and the prefix."""


class Prefix:
    """The first tokens of all prompts, with their keys and values in the network as it was when they were fed."""

    def __init__(self, ids: Ids, cache: Any) -> None:
        self.ids, self._cache = ids, cache

    def __len__(self) -> int:
        return len(self.ids)

    def growing(self, rows: int) -> Any:
        """Return a cache for so many rows that begins with the prefix and grows by what is fed."""
        return self._begin(rows, DynamicLayer)

    def passing(self, rows: int) -> Any:
        """Return a cache for one pass of so many rows: what is fed sees the prefix, and is not kept."""
        return self._begin(rows, _PassingLayer)

    def before(self, mask: Tensor) -> Tensor:
        """Return the mask [row, token] of what is left of the prompts, with the columns of the prefix before it."""
        return torch.cat([mask.new_ones(len(mask), len(self)), mask], dim=1)

    def _begin(self, rows: int, kind: type[DynamicLayer]) -> Any:
        begun = copy.copy(self._cache)
        begun.layers = [_for_rows(layer, rows, kind) for layer in self._cache.layers]
        _begun[begun] = (kind is DynamicLayer, self.ids)
        return begun


@torch.no_grad()
def shared_prefix(model: ChatModel, prompts: Sequence[Ids], *, new: int = 0) -> Prefix | None:
    """Return the first tokens that all prompts share, fed to the network as it is now; None where that would not pay or not be exact.

    Every prompt keeps one token at least. `new` is how many tokens will be fed after the prompts, at most.
    """
    ids, least = common(prompts), MAX_PADDING if model.device.type == "cpu" else LEAST_ON_ACCELERATOR
    if (len(prompts) - 1) * len(ids) <= least or not has_cache(model.network) or model.network in _other:
        return None
    inputs = {"input_ids": torch.tensor([ids]), "position_ids": torch.arange(len(ids))[None]}
    inputs = {name: value.to(model.device) for name, value in inputs.items() if accepts(model.network, name)}
    options = {"logits_to_keep": 1} if accepts(model.network, "logits_to_keep") else {}
    cache = model.network(**inputs, use_cache=True, **options).get(cache_argument(model.network))
    if not can_drop_tokens(cache):
        _other.add(model.network)
        return None
    exact = heeds_padding(model, "prefix", tokens=max(map(len, prompts)) + new)
    return Prefix(ids, cache) if exact else None


def common(prompts: Sequence[Ids]) -> Ids:
    """Return the longest beginning that all prompts share and that leaves a token of each."""
    if not prompts:
        return ()
    # In order, so whatever lies between the first and the last begins as these two do.
    first, last, most = min(prompts), max(prompts), min(map(len, prompts)) - 1
    return first[: next((i for i in range(most) if first[i] != last[i]), most)]


def begun_with(cache: Any) -> tuple[bool, Ids] | None:
    """Return what tells apart the caches that hold a prefix and nothing else yet; None for all others."""
    known = _begun.get(cache) if hasattr(cache, "layers") else None
    return known if known is not None and cache.get_seq_length() == len(known[1]) else None


class _PassingLayer(DynamicLayer):
    """Keys and values of the prefix; what comes after sees them, and leaves nothing."""

    keys: Any
    values: Any

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Return the keys and values of the prefix with the new ones after them."""
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def _for_rows(layer: Any, rows: int, kind: type[DynamicLayer]) -> Any:
    if not layer.is_initialized:
        return copy.copy(layer)  # a block that reads the keys and values of another
    made = kind()
    vars(made).update(vars(layer))
    made.keys, made.values = (states.expand(rows, -1, -1, -1) for states in (layer.keys, layer.values))
    return made
