"""What can be done with a cache of keys and values: rows taken out, and tokens that were fed in vain."""

from typing import Any

from jaxtyping import Bool, Int
from torch import Tensor
from transformers.cache_utils import DynamicLayer


def can_drop_rows(past: Any) -> bool:
    """Return whether rows can be taken out of the cache."""
    return hasattr(past, "reorder_cache")


def can_drop_tokens(past: Any) -> bool:
    """Return whether single tokens can be taken out: every layer holds the keys and values of all tokens, and nothing else.

    A recurrent state cannot forget, a sliding window has forgotten already, and a layer with more than keys and values would be left
    half moved.
    """
    layers = getattr(past, "layers", ())
    return can_drop_rows(past) and bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def drop_tokens(past: Any, kept: Bool[Tensor, "sample token"]) -> Bool[Tensor, "sample width"]:
    """Keep the marked tokens of every row, moved to the right edge; return which columns of the narrower cache hold tokens.

    Keys carry their positions, so moving them changes nothing that attention sees.
    """
    # Stable: unmarked columns first, then the kept tokens in their order.
    order = kept.int().argsort(dim=1, stable=True)[:, -int(kept.sum(1).max()) :]
    for layer in past.layers:
        if layer.is_initialized:
            layer.keys, layer.values = _gathered(layer.keys, order), _gathered(layer.values, order)
    return kept.gather(1, order)


def _gathered(states: Tensor, order: Int[Tensor, "sample width"]) -> Tensor:
    index = order.to(states.device)[:, None, :, None].expand(-1, states.shape[1], -1, states.shape[3])
    return states.gather(2, index)
