"""What makes two blocks of a network compute in the same way: of blocks that agree in it, one shows the writers of all.

Everything that a block is made of enters, but for the numbers of its weights: classes, code and hooks of single instances, attributes
however deep, buffers, shapes, dtypes, devices, modules it shares with others. Of the weights enters what could hide a writer or a gain: a
tensor of zeros, a single number, a vector that is constant.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from resect.digests import tensor_digest
from resect.models.forward import Call, is_plain_linear

Values = Callable[[str], Tensor | None]
"""From the name of a parameter or buffer of the network to its numbers; None where there are none to compute with (quantised)."""

POSITION = ("layer_idx", "layer_id", "layer_index", "layer_number")  # names of a block's place, no part of its structure where they are it
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_TORCHS = frozenset(vars(nn.Module())) - {"training"}
_PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_CODE = (type, FunctionType, BuiltinFunctionType, ModuleType)
_FEW = 3  # a tensor of no more numbers weighs something as a whole
_CONSTANT = 1e-3  # relative spread under which a vector may pass for a constant; the search for gains calls 1e-5 one
_SAMPLE = 64  # numbers that show, nearly always, that a tensor is not all zeros; where they do not, all are read


def structures(network: nn.Module, blocks: Mapping[str, nn.Module], *, d_model: int, value: Values) -> list[Hashable]:
    """Return the structure of each block (by its name in the network), equal for blocks that compute alike."""
    parents = _parents(network)
    configs: dict[int, Any] = {}
    return [_Block(name, block, layer, d_model, parents, value, configs).described() for layer, (name, block) in enumerate(blocks.items())]


def form(call: Call, *, layer: int) -> Hashable:
    """Return how a block is called: names, simple values, shapes and dtypes of all arguments, but for the block's own number."""
    kwargs = {name: value for name, value in call.kwargs.items() if not _is_position(name, value, layer)}
    return _shape_of([call.args, kwargs])


@dataclass(frozen=True, eq=False)
class _Block:
    name: str
    block: nn.Module
    layer: int
    d_model: int
    parents: Counter[int]
    value: Values
    configs: dict[int, Any]  # by identity, so that one which all modules hold is read once
    open: set[int] = field(default_factory=set)

    @cached_property
    def inside(self) -> dict[int, str]:
        return {id(module): name for name, module in self.block.named_modules()}

    def described(self) -> Hashable:
        modules = [(name, self._module(name, module)) for name, module in self.block.named_modules(remove_duplicate=False)]
        return tuple(modules), tuple(self._tensors())

    def _module(self, name: str, module: nn.Module) -> Hashable:
        held = vars(module)
        own = tuple((k, self._attribute(v)) for k, v in held.items() if k not in _TORCHS and not _is_position(k, v, self.layer))
        hooks = tuple(self._attribute(hook) for kind in _HOOKS for hook in (*held[kind].values(), kind))
        # One that hangs in several places is edited in all of them.
        shared = id(module) if name and self.parents[id(module)] > 1 else None
        return type(module), self.inside[id(module)], shared, own, hooks

    def _tensors(self) -> Iterator[Hashable]:
        for name, parameter in self.block.named_parameters(remove_duplicate=False):
            shared = id(parameter) if self.parents[id(parameter)] > 1 else None
            yield name, type(parameter), _kind_of(parameter), shared, self._telling(name, parameter)
        for name, buffer in self.block.named_buffers(remove_duplicate=False):
            known = self.value(f"{self.name}.{name}")
            yield name, _kind_of(buffer), None if known is None else tensor_digest(known)

    def _telling(self, name: str, parameter: Tensor) -> Hashable:
        """Return what of a parameter's numbers could hide a writer or a gain, None for most."""
        if parameter.numel() > _FEW and (parameter.numel() != self.d_model or self._is_bias(name)):
            return None if parameter.is_meta else _is_zero(parameter)
        known = self.value(f"{self.name}.{name}")
        if known is None:
            return "unknown"
        return tensor_digest(known) if known.numel() <= _FEW or _may_pass_for_constant(known) else None

    def _is_bias(self, name: str) -> bool:
        owner, _, own = name.rpartition(".")
        return own == "bias" and is_plain_linear(self.block.get_submodule(owner))

    def _attribute(self, value: Any) -> Hashable:
        """Return a value by what it holds where that is known, by its identity where not: then no two are alike."""
        kind = type(value)
        if value is None or isinstance(value, _PLAIN):
            return kind, repr(value)
        if isinstance(value, Tensor):
            return kind, _kind_of(value), id(value) if value.is_meta else tensor_digest(value)
        if isinstance(value, nn.Module):
            return self.inside.get(id(value), id(value))
        if isinstance(value, _CODE):
            return id(value)
        if isinstance(value, PreTrainedConfig):
            if id(value) not in self.configs:
                self.configs[id(value)] = self._composite(value)
            return self.configs[id(value)]
        return self._composite(value)

    def _composite(self, value: Any) -> Hashable:
        if id(value) in self.open:
            return "itself"
        self.open.add(id(value))
        try:
            return type(value), tuple((named, self._attribute(part)) for named, part in _parts(value))
        except _Opaque:
            return type(value), id(value)
        finally:
            self.open.remove(id(value))


class _Opaque(Exception):
    """What an object holds cannot be looked at."""


def _parts(value: Any) -> list[tuple[str | None, Any]]:
    """Return all that an object holds, with names where they count."""
    if isinstance(value, MethodType):
        return [(None, value.__func__), (None, value.__self__)]
    if isinstance(value, partial):
        return [(None, value.func), (None, value.args), (None, value.keywords)]
    if isinstance(value, Mapping):
        held: list[tuple[str | None, Any]] = [(None, part) for item in value.items() for part in item]
    elif isinstance(value, list | tuple):
        held = [(None, part) for part in value]
    elif isinstance(value, set | frozenset):
        held = [(None, repr(part)) for part in sorted(value, key=repr)]
    elif hasattr(value, "__dict__") and type(value).__basicsize__ <= _Empty.__basicsize__:
        held = []
    else:  # slots, or memory of an extension's own
        raise _Opaque
    return held + [(name, part) for name, part in getattr(value, "__dict__", {}).items()]


class _Empty:
    pass


def _parents(network: nn.Module) -> Counter[int]:
    """Return in how many places of a network each module and parameter hangs, by identity."""
    held = Counter[int]()
    for module in network.modules():
        held.update(id(child) for child in [*module._modules.values(), *module._parameters.values()] if child is not None)
    return held


def _kind_of(tensor: Tensor) -> Hashable:
    return tuple(tensor.shape), tensor.dtype, str(tensor.device)


def _is_position(name: str, value: Any, layer: int) -> bool:
    return name in POSITION and type(value) is int and value == layer


def _is_zero(parameter: Tensor) -> bool:
    flat = parameter.detach().reshape(-1)
    return not bool(flat[:: max(1, flat.numel() // _SAMPLE)].any()) and not bool(flat.any())


def _may_pass_for_constant(vector: Tensor) -> bool:
    """Return whether a vector, or 1 + it, might be taken for one number in all features."""
    found = vector.detach().double().flatten()
    return any(float(v.max() - v.min()) <= _CONSTANT * float(v.abs().max()) for v in (found, 1 + found))


def _shape_of(value: Any) -> Hashable:
    if isinstance(value, Tensor):
        return _kind_of(value)
    if value is None or isinstance(value, _PLAIN):
        return type(value), repr(value)
    if isinstance(value, Mapping):
        return type(value), tuple((repr(name), _shape_of(value[name])) for name in sorted(value, key=repr))
    if isinstance(value, list | tuple):
        return type(value), tuple(map(_shape_of, value))
    return type(value)
