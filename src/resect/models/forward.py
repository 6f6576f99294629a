"""Forward passes that stop at a block, and replays of single modules in float32: what capture and writer discovery stand on."""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeGuard

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel

from resect.errors import UserError

_HALF = (torch.float16, torch.bfloat16)
_CACHES = ("cache", "past_key_values")


class _Stop(Exception):
    pass


@dataclass(frozen=True, eq=False)
class Call:
    """The arguments of one call of a module."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def hidden(self) -> Tensor:
        """The first floating-point tensor among the arguments: by the convention of transformers the hidden states."""
        values = [*self.args, *[self.kwargs[k] for k in sorted(self.kwargs, key=lambda k: k != "hidden_states")]]
        return next(v for v in values if isinstance(v, Tensor) and v.is_floating_point())

    def with_hidden(self, value: Tensor) -> "Call":
        """Return the call with `hidden()` replaced."""
        old = self.hidden()
        args = tuple(value if a is old else a for a in self.args)
        return Call(args, {k: value if v is old else v for k, v in self.kwargs.items()})


def first_tensor(output: Any) -> Tensor:
    """Return a module's main output: itself, or the first entry of a tuple."""
    return output[0] if isinstance(output, tuple | list) else output


def with_first_tensor(output: Any, value: Tensor) -> Any:
    """Return `output` with its main tensor replaced, tuples kept as tuples."""
    if isinstance(output, tuple):
        rest = output[1:]
        return type(output)(value, *rest) if hasattr(output, "_fields") else (value, *rest)
    return [value, *output[1:]] if isinstance(output, list) else value


def model_inputs(network: nn.Module, *, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> dict[str, Any]:
    """Return the keyword arguments of one forward pass without a cache; positions only if the network takes them."""
    inputs: dict[str, Any] = {"input_ids": input_ids, "attention_mask": attention_mask, "use_cache": False}
    # Networks count positions from the left edge, padding included; that is wrong for learned absolute positions under left padding.
    if accepts(network, "position_ids"):
        inputs["position_ids"] = position_ids
    return inputs


def accepts(network: nn.Module, argument: str) -> bool:
    """Return whether the network's forward pass takes `argument` by name."""
    return argument in _arguments(type(network))


def cache_argument(network: nn.Module) -> str:
    """Return under which name the network takes and returns its cache of keys and values: `cache`, or `past_key_values` before 5.24.

    Raises:
        UserError: if it takes none; leaving the cache out in silence would decode other tokens.
    """
    for name in _CACHES:
        if accepts(network, name):
            return name
    raise UserError(f"{type(network).__name__} takes no cache of keys and values, so its responses cannot be decoded here.")


def has_cache(network: nn.Module) -> bool:
    """Return whether the network takes a cache of keys and values."""
    return any(accepts(network, name) for name in _CACHES)


@functools.cache
def _arguments(kind: type[nn.Module]) -> frozenset[str]:
    return frozenset(inspect.signature(kind.forward).parameters)


def run_until(
    network: PreTrainedModel, last: nn.Module, inputs: Mapping[str, Any], *, hooks: Mapping[nn.Module, Callable[[Tensor], None]]
) -> None:
    """Run the network up to and including block `last`; each hook gets the output of its block. No logits are computed.

    Of a block with several residual streams hooks get the mean of the streams, [row, token, d_model].
    """
    shape = inputs["input_ids"].shape

    def observer(act: Callable[[Tensor], None]) -> Callable[..., None]:
        width = network.config.get_text_config(decoder=True).hidden_size
        return lambda _module, _args, output: act(_mean_stream(first_tensor(output), width, shape))

    def stop(_module: nn.Module, _args: Any, _output: Any) -> None:
        raise _Stop

    with ExitStack() as stack, torch.no_grad():
        for module, act in hooks.items():
            stack.callback(module.register_forward_hook(observer(act)).remove)
        stack.callback(last.register_forward_hook(stop).remove)
        try:
            network(**inputs)
        except _Stop:
            return


def run_instead(network: nn.Module, blocks: Sequence[nn.Module], inputs: Mapping[str, Any], act: Callable[[int, Call], Any]) -> None:
    """Run the network up to and including its last block, with `act` in the place of each block's own code, which it can still call."""

    def forward(own: Callable[..., Any], layer: int) -> Callable[..., Any]:
        def standing_in(*args: Any, **kwargs: Any) -> Any:
            with stand_in(blocks[layer], own):
                output = act(layer, Call(args, kwargs))
            if layer == len(blocks) - 1:
                raise _Stop
            return output

        return standing_in

    with ExitStack() as stack, torch.no_grad():
        for layer, block in enumerate(blocks):
            stack.enter_context(stand_in(block, forward(block.forward, layer)))
        try:
            network(**inputs)
        except _Stop:
            return


@contextmanager
def recorded_calls(modules: Mapping[str, nn.Module]) -> Iterator[dict[str, list[tuple[Call, Any]]]]:
    """Record every call of `modules`, by name: its arguments (main tensor copied) and its output (main tensor copied).

    Copies, because some modules add to their inputs or outputs in place.
    """
    record: dict[str, list[tuple[Call, Any]]] = {name: [] for name in modules}
    pending: dict[str, list[Call]] = {name: [] for name in modules}

    def before(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            pending[name].append(_copied(Call(args, kwargs)))

        return hook

    def after(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            main = first_tensor(output)
            copied = main.clone() if isinstance(main, Tensor) else main
            record[name].append((pending[name].pop(), copied))

        return hook

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(before(name), with_kwargs=True).remove)
            stack.callback(module.register_forward_hook(after(name)).remove)
        yield record


def replay(module: nn.Module, call: Call, *, state: Mapping[str, Tensor] | None = None) -> Tensor:
    """Return the main output of `module` for `call`, computed in float32 whatever the dtype of the checkpoint.

    `state` (by default `float_state(module)`) stands in for the module's own tensors, which are never written to.
    """
    return first_tensor(rerun(module, call, state=float_state(module) if state is None else state))


def rerun(module: nn.Module, call: Call, *, state: Mapping[str, Tensor]) -> Any:
    """Return all that `module` puts out for `call`, with float32 arguments and `state` in the place of its own tensors."""
    call = _copied(call)
    args, kwargs = _floated(call.args), _floated(dict(call.kwargs))
    with torch.no_grad():
        return functional_call(module, dict(state), args, kwargs)


@contextmanager
def stand_in(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let `forward` run in place of the module's own code for the `with` block."""
    own = vars(module).get("forward")  # of this one instance: a test's, or accelerate's
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


@contextmanager
def half_products(layers: Iterable[nn.Linear]) -> Iterator[None]:
    """Let linear layers in half precision multiply in it, but take and give float32: their weights need not be widened then."""

    def product(layer: nn.Linear, x: Tensor) -> Tensor:
        return nn.functional.linear(x.to(layer.weight.dtype), layer.weight, layer.bias).float()

    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(stand_in(layer, functools.partial(product, layer)))
        yield


def half_linears(module: nn.Module) -> dict[str, nn.Linear]:
    """Return the plain linear layers in half precision, by name."""
    return {n: m for n, m in module.named_modules() if is_plain_linear(m) and m.weight.dtype in _HALF}


def is_plain_linear(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Return whether a module computes W x + b by its class: torch's own, with no code of the instance and no hooks."""
    return type(module) is nn.Linear and "forward" not in vars(module) and not module._forward_hooks and not module._forward_pre_hooks


def streams(hidden: Tensor, width: int, shape: Sequence[int]) -> Float[Tensor, "stream *rest width"]:
    """Return hidden states as one or several residual streams; `shape` is that of the tokens, or its first number.

    Several are an axis before the rows or after the tokens, or lie side by side in the features.
    """
    if hidden.ndim == 3 and hidden.shape[2] > width and hidden.shape[2] % width == 0:
        hidden = hidden.unflatten(2, (-1, width))
    if hidden.ndim < 4:
        return hidden[None]
    return hidden if hidden.shape[1 : 1 + len(shape)] == tuple(shape) else hidden.movedim(2, 0)


def _mean_stream(hidden: Tensor, width: int, shape: Sequence[int]) -> Tensor:
    found = streams(hidden, width, shape)
    return found[0] if len(found) == 1 else found.mean(0)


def float_state(module: nn.Module, *, without: Iterable[str] = ()) -> dict[str, Tensor]:
    """Return the parameters and buffers of a module by name, half precision widened to float32; `without` names modules to leave out."""
    left = tuple(f"{name}." for name in without)
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return {name: as_float32(value) for name, value in tensors if not name.startswith(left)}


def as_float32(value: Tensor) -> Tensor:
    """Return half-precision tensors as float32, others as they are."""
    return value.detach().float() if value.dtype in _HALF else value.detach()


def _copied(call: Call) -> Call:
    try:
        return call.with_hidden(call.hidden().clone())
    except StopIteration:
        return call


def _floated(value: Any) -> Any:
    """Widen the tensors in nested arguments; a container without such is handed on itself, since blocks leave things in it for others."""
    if isinstance(value, Tensor):
        return as_float32(value) if value.dtype in _HALF else value
    if isinstance(value, dict):
        wide = {k: _floated(v) for k, v in value.items()}
        return wide if any(wide[k] is not v for k, v in value.items()) else value
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        items = [_floated(v) for v in value]
        return type(value)(items) if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value
