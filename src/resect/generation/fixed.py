"""A cache of fixed length: no tensor of a decoding step changes its shape or its place, so that a step can be recorded and replayed.

The columns that hold no token yet are masked, and so is what has left a sliding window. The network gets the finished masks: making them
itself it would look into them, and a recorded step cannot. Whether a network decodes so what it decodes with a growing cache is found out
by trying, on a few tokens.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer, StaticLayer

from resect.generation.budget import out_of_memory
from resect.models.forward import accepts, cache_argument
from resect.models.load import ChatModel

_WORKED: WeakKeyDictionary[PreTrainedModel, str] = WeakKeyDictionary()
"""Networks whose trial went well, and the kind of attention that they had."""
_KINDS = {"full_attention", "sliding_attention"}


class FixedLayer(StaticLayer):
    """Keys and values of a block, with room for those to come; the next go to `column`, which all blocks of a cache share."""

    keys: Any
    values: Any

    def __init__(self, grown: Any, column: Tensor, *, seen: int, length: int) -> None:
        super().__init__(length)
        self.keys, self.values = (_with_room(states, seen, length) for states in (grown.keys, grown.values))
        self.column, self.is_initialized = column, True

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Put the keys and values of one token where they belong; return all."""
        column = self.column.to(self.keys.device)
        self.keys.index_copy_(2, column, key_states)
        self.values.index_copy_(2, column, value_states)
        return self.keys, self.values

    def get_seq_length(self) -> Any:
        """Return how many tokens each row has, padding included, on the device."""
        return self.column


class Fixed:
    """A cache whose layers are replaced by fixed ones, with room for `room` more tokens, and the masks of its steps.

    `mask` marks the columns that hold tokens or will, `column` is the next to be written.
    """

    def __init__(self, network: PreTrainedModel, past: Any, mask: Bool[Tensor, "sample token"], *, room: int) -> None:
        seen = mask.shape[1]
        windows = {getattr(layer, "sliding_window", None) for layer in past.layers}
        self._window = next((w for w in windows if w is not None), None)
        self._mixed = len(windows) > 1
        self._additive = _attention(network) == "eager"
        self._dtype = past.layers[0].keys.dtype
        self.column = torch.tensor([seen], device=mask.device)
        self._columns = torch.arange(seen + room, device=mask.device)
        self.mask = torch.nn.functional.pad(mask, (0, room), value=True)
        # One after another: a layer is there twice, never the whole cache.
        for i, layer in enumerate(past.layers):
            past.layers[i] = FixedLayer(layer, self.column, seen=seen, length=seen + room)

    def masks(self) -> Tensor | dict[str, Tensor]:
        """Return what a token in the next column sees: one mask [sample, 1, 1, token], or one for each kind of layers."""
        seen = self.mask & (self._columns <= self.column)
        if self._window is None:
            return self._finished(seen)
        near = self._finished(seen & (self._columns > self.column - self._window))
        return {"full_attention": self._finished(seen), "sliding_attention": near} if self._mixed else near

    def keep(self, rows: Tensor) -> None:
        """Keep these rows of the mask; those of the cache are the caller's."""
        self.mask = self.mask[rows]

    def _finished(self, seen: Bool[Tensor, "sample token"]) -> Tensor:
        mask = seen[:, None, None, :]
        if not self._additive:
            return mask
        return torch.zeros_like(mask, dtype=self._dtype).masked_fill_(~mask, torch.finfo(self._dtype).min)


def can_be_fixed(model: ChatModel, past: Any) -> bool:
    """Return whether a network with the cache `past` can decode with a fixed one.

    Every layer must hold keys and values and nothing else, of all tokens or of those in the one window, and the trial must give the same.
    """
    network, layers = model.network, list(getattr(past, "layers", ()))
    kinds = set(getattr(network.config.get_text_config(decoder=True), "layer_types", None) or ())
    windows = {layer.sliding_window for layer in layers if isinstance(layer, DynamicSlidingWindowLayer)}
    plain = bool(layers) and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) and layer.is_initialized for layer in layers)
    told = all(accepts(network, name) for name in ("attention_mask", "position_ids"))
    if not (plain and told and kinds <= _KINDS and len(windows) <= 1 and _attention(network) in ("eager", "sdpa")):
        return False
    if _WORKED.get(network) != _attention(network) and _same(network, rows=len(layers[0].keys), device=model.device):
        _WORKED[network] = _attention(network)
    return _WORKED.get(network) == _attention(network)


def _same(network: PreTrainedModel, *, rows: int, device: torch.device) -> bool:
    """Return whether two steps after a few tokens, some of them padding, have the same logits with a fixed cache as with a growing one.

    As many rows as the batch has, since edits may be on the network with one a row.
    """
    ids = torch.arange(8 * rows, device=device).view(rows, 8) % network.config.get_text_config(decoder=True).vocab_size
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[::2, :2] = False
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    name = cache_argument(network)

    def fed(past: Any, mask: Any, columns: slice) -> Any:
        known = {} if past is None else {name: past}
        return network(input_ids=ids[:, columns], position_ids=positions[:, columns], attention_mask=mask, use_cache=True, **known)

    growing, past = [], fed(None, mask[:, :6].long(), slice(0, 6))[name]
    for i in (6, 7):
        growing.append(fed(past, mask[:, : i + 1].long(), slice(i, i + 1)).logits)
    try:
        past, steps = fed(None, mask[:, :6].long(), slice(0, 6))[name], []
        fixed = Fixed(network, past, mask[:, :6], room=4)
        for i in (6, 7):
            steps.append(fed(past, fixed.masks(), slice(i, i + 1)).logits)
            fixed.column += 1
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        return False
    limit = torch.finfo(growing[0].dtype).eps ** 0.5
    return all(bool((a - b).abs().max() <= limit * a.abs().max()) for a, b in zip(growing, steps, strict=True))


def _attention(network: PreTrainedModel) -> str:
    return network.config.get_text_config(decoder=True)._attn_implementation or ""


def _with_room(states: Tensor, seen: int, length: int) -> Tensor:
    """Return states in the columns up to `seen`, zeros before and after: a window has forgotten what was before."""
    rows, heads, kept, width = states.shape
    wide = states.new_zeros(rows, heads, length, width)
    wide[:, :, seen - kept : seen] = states
    return wide
