"""Names on disk and names in the network: transformers renames, stacks and transposes tensors when it loads them. Here the same rules are
read backwards, to find the stored tensors behind a parameter and which axis of each holds the outputs.
"""

from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    Concatenate,
    MergeModulelist,
    Transpose,
    WeightConverter,
    WeightRenaming,
    dot_natural_key,
    rename_source_key,
)

from resect.errors import UserError
from resect.layout import LAYOUT_OF, OUTPUT_AXIS, Layout

Shape = tuple[int, ...]


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

    def make(self, name: str, network: PreTrainedModel, read: Callable[[str], Tensor]) -> Tensor:
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


def _outcomes(rule: WeightConverter, first: str) -> list[str]:
    start = rule.target_patterns[0]
    return [first.replace(start, target, 1) for target in rule.target_patterns]


def stored_layout(origin: Origin, layout: Layout, *, name: str, shape: Shape, stored: Mapping[str, Shape]) -> Layout:
    """Return the layout of the stored tensors behind parameter `name` of a layout and shape; `stored` are their shapes.

    Raises:
        UserError: for a rule that does more than stack, join along another axis or transpose.
    """
    axis, d_model = OUTPUT_AXIS[layout], shape[OUTPUT_AXIS[layout]]
    first = stored[origin.keys[0]]
    for operation in reversed(origin.rule.operations if origin.rule else []):
        axis = _axis_before(operation, axis, name=name, same_shape=first == shape)
    found = LAYOUT_OF.get((len(first), axis))
    if found is None or any(len(s) != len(first) or s[axis] != d_model for s in stored.values()):
        shapes = ", ".join(sorted({str(s) for s in stored.values()})[:3])
        raise UserError(
            f"Parameter {name} has {d_model} outputs, and they are not found in its stored tensors of shape {shapes}; save the "
            "checkpoint again with a current transformers first, as it lies it cannot be edited."
        )
    return found


def _axis_before(operation: object, axis: int, *, name: str, same_shape: bool) -> int:
    """Return where the axis was before one operation of a loading rule."""
    if isinstance(operation, MergeModulelist) and axis != operation.dim:
        return axis - (axis > operation.dim)
    if isinstance(operation, Concatenate) and axis != operation.dim:
        return axis
    if isinstance(operation, Transpose):
        if operation.check_dims and same_shape:
            return axis
        return {operation.dim0: operation.dim1, operation.dim1: operation.dim0}.get(axis, axis)
    raise UserError(
        f"Parameter {name} is made by {type(operation).__name__} when the checkpoint is loaded, and an edit cannot be traced back through "
        "that; save the checkpoint again with a current transformers first."
    )
