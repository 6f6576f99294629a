"""SHA-256 of values: equal only for values that are the same to the last bit. A type without a rule here is refused, never guessed at."""

import hashlib
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

Special = Mapping[type, Callable[[Any], object]]
NONE: Special = MappingProxyType({})
_SIMPLE = (str, int, type(None))


def digest(value: object, special: Special = NONE, memo: MutableMapping[object, str] | None = None) -> str:
    """Return the hash of a value made of None, booleans, numbers, texts, bytes, tensors, mappings, sequences, sets and dataclasses.

    Order counts but in sets. A list and a tuple of the same items are the same, since JSON knows only one of them. Fields of a dataclass
    with `compare=False` are no part of it. `special` says, by type, which value stands for another; such a value has no other rule.
    `memo` remembers dataclasses that are equal to themselves alone (`eq=False`), which have to be as frozen as they say.

    Raises:
        TypeError: a value of any other type: two different ones might look the same.
    """
    if type(value) in _SIMPLE:  # nearly all of the values that a study's keys are made of
        return _hash(type(value).__name__, repr(value))
    for kind, stand_in in special.items():
        if isinstance(value, kind):
            return _hash(kind.__qualname__, digest(stand_in(value), special, memo))
    if isinstance(value, Tensor):
        return tensor_digest(value)
    if isinstance(value, float):
        return _hash("float", float(value).hex())
    if isinstance(value, bytes):
        return _hash("bytes", value.hex())
    if isinstance(value, _SIMPLE):
        return _hash(type(value).__name__, repr(value))
    if memo is None or type(value).__hash__ is not object.__hash__ or not is_dataclass(value):
        return _composite(value, special, memo)
    if value not in memo:
        memo[value] = _composite(value, special, memo)
    return memo[value]


def _composite(value: object, special: Special, memo: MutableMapping[object, str] | None) -> str:
    if isinstance(value, list | tuple):
        # Token ids come in thousands, and one hash for all is a hundred times faster than one for each.
        plain = all(type(item) is int for item in value)
        return _hash("integers", repr(list(value))) if plain else _hash("sequence", *(digest(item, special, memo) for item in value))
    if isinstance(value, Mapping):
        return _hash("mapping", *(digest(part, special, memo) for item in value.items() for part in item))
    if isinstance(value, set | frozenset):
        return _hash("set", *sorted(digest(item, special, memo) for item in value))
    if is_dataclass(value) and not isinstance(value, type):
        kind, compared = type(value), [f.name for f in fields(value) if f.compare]
        return _hash(f"{kind.__module__}.{kind.__qualname__}", *(digest([name, getattr(value, name)], special, memo) for name in compared))
    raise TypeError(f"there is no rule for the digest of {type(value).__module__}.{type(value).__qualname__}")


def tensor_digest(tensor: Tensor) -> str:
    """Return the hash of a tensor's dtype, shape and bytes; where it is and how it is laid out do not enter."""
    found = hashlib.sha256(f"tensor {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def _hash(kind: str, *parts: str) -> str:
    # No part holds a zero byte (they are hashes or `repr`), so no two lists of parts join to one text.
    return hashlib.sha256("\0".join((kind, *parts)).encode("utf-8", "surrogatepass")).hexdigest()
