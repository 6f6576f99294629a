"""Names on disk and names in the network: transformers renames, stacks and transposes tensors when it loads them. Here the same rules are
read backwards, to find the stored tensors behind a parameter and which axis of each holds the outputs.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from resect.errors import UserError
from resect.layout import LAYOUT_OF, OUTPUT_AXIS, Layout

Shape = tuple[int, ...]

_SMALL = (2, 3, 5, 7)  # axes that can be told apart by their lengths


@dataclass(frozen=True)
class Origin:
    """The stored tensors that one loading rule makes parameters from: (pattern, key) in the order in which the rule takes them.

    `rule` is None where a tensor is only renamed. `first` is the first parameter that comes out.
    """

    rule: WeightConverter | None
    first: str
    sources: tuple[tuple[str, str], ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """Return the keys on disk."""
        return tuple(key for _, key in self.sources)

    def make(self, name: str, network: "PreTrainedModel | _StandIn", read: Callable[[str], Tensor]) -> Tensor:
        """Return parameter `name`, made as transformers makes it from the tensors that `read` returns."""
        if self.rule is None:
            return read(self.keys[0])
        rule = deepcopy(self.rule)
        for pattern, key in self.sources:
            # A callable, as in loading one after another: `convert` calls it.
            rule.add_tensor(self.first, key, pattern, _Later(read, key))  # pyright: ignore[reportArgumentType]
        made: Mapping[str, Any] = rule.convert(self.first, model=network, config=network.config)
        value = made[name]
        return value[0] if isinstance(value, list) else value


@dataclass(frozen=True)
class _StandIn:
    """What a loading rule may ask a network for."""

    config: Any
    parameter: Tensor

    def get_parameter(self, _name: str) -> Tensor:
        return self.parameter


@dataclass(frozen=True)
class _Later:
    read: Callable[[str], Tensor]
    key: str

    def __call__(self) -> Tensor:
        return self.read(self.key)


def origins(network: PreTrainedModel, keys: Iterable[str]) -> dict[str, Origin]:
    """Return, for every parameter and buffer of the network that is stored, where it comes from; keys that fit nothing are left out."""
    # The network's own rules; those for older checkpoints come with them.
    mapping = get_model_conversion_mapping(network)
    renamings = [rule for rule in mapping if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in mapping if isinstance(rule, WeightConverter)]
    rules = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    names: dict[str, Any] = network.state_dict()
    prefix = network.base_model_prefix
    sources: dict[tuple[str, str | None], list[tuple[str, str]]] = {}
    for key in sorted(keys, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, prefix, names)
        if name not in names and key in names:
            name, pattern = rename_source_key(key, [], [], base_model_prefix=prefix, meta_state_dict=names)
        # The patterns of one rule belong together, whichever of them is met first.
        owner = None if pattern is None else rules[pattern].source_patterns[0]
        sources.setdefault((name, owner), []).append((pattern or key, key))
    found: dict[str, Origin] = {}
    for (first, owner), parts in sources.items():
        rule = None if owner is None else rules[owner]
        origin = Origin(rule, first, tuple(parts))
        for name in [first] if rule is None else _outcomes(rule, first):
            if name in names:
                found[name] = origin
    return found


def unmade(network: PreTrainedModel, keys: Iterable[str]) -> list[str]:
    """Return the parameters that no stored tensor would be read into; of tied ones one is enough."""
    found, named = origins(network, keys), list(network.named_parameters(remove_duplicate=False))
    made = {id(parameter) for name, parameter in named if name in found}
    return [name for name, parameter in named if id(parameter) not in made]


def _outcomes(rule: WeightConverter, first: str) -> list[str]:
    start = rule.target_patterns[0]
    return [first.replace(start, target, 1) for target in rule.target_patterns]


def stored_parts(
    origin: Origin, layout: Layout, *, name: str, shape: Shape, stored: Mapping[str, Shape], config: Any
) -> tuple[Layout, tuple[str, ...]]:
    """Return the layout of the stored tensors that parameter `name` of a layout and shape is made of, and which of the origin's they are.

    `stored` are the shapes of the origin's tensors. A loading rule is followed by running it on numbers that say where they come from.

    Raises:
        UserError: if the outputs lie along no one axis of the stored tensors, or if one of these goes into other parameters as well.
    """
    axis, d_model = OUTPUT_AXIS[layout], shape[OUTPUT_AXIS[layout]]
    first = stored[origin.keys[0]]
    for stored_axis, length in enumerate(first):
        found = LAYOUT_OF.get((len(first), stored_axis))
        if length != d_model or found is None:
            continue
        if origin.rule is None:
            keys = origin.keys if stored_axis == axis else ()
        else:
            keys = _traced(origin, stored_axis, axis, name=name, shape=shape, stored=stored, config=config)
        if keys:
            return found, keys
    rule = " + ".join(type(operation).__name__ for operation in origin.rule.operations) if origin.rule else "renaming"
    raise UserError(
        f"Parameter {name} has {d_model} outputs, and they are not found in its stored tensors of shape "
        f"{', '.join(sorted({str(s) for s in stored.values()})[:3])} (loaded by {rule}); save the checkpoint again with a current "
        "transformers first, as it lies it cannot be edited."
    )


def _traced(
    origin: Origin, stored_axis: int, axis: int, *, name: str, shape: Shape, stored: Mapping[str, Shape], config: Any
) -> tuple[str, ...]:
    """Return the keys that a parameter is made of if `stored_axis` of each becomes its `axis` and nothing of them goes elsewhere."""
    small = {key: _SMALL[: len(size)] for key, size in stored.items()}
    if len(set(small.values())) > 1:
        return ()
    like = small[origin.keys[0]]
    # Some rules turn a tensor only if it has not the shape of the parameter.
    network = _StandIn(config, torch.empty(like if stored[origin.keys[0]] == shape else ()))
    length = like[stored_axis]
    places = torch.arange(length).view([length if k == stored_axis else 1 for k in range(len(like))]).expand(like)
    try:
        made = origin.make(name, network, lambda key: origin.keys.index(key) * length + places).movedim(axis, -1)
    except (RuntimeError, ValueError, KeyError, IndexError):
        return ()
    if made.shape[-1] != length or not torch.equal(made % length, torch.arange(length).expand(made.shape)):
        return ()
    used = tuple(origin.keys[i] for i in (made[..., 0] // length).unique().tolist())
    return used if made.numel() == len(used) * prod(like) else ()
