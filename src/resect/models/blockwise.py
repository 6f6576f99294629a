"""Residual writers of a checkpoint that is never loaded whole, block by block.

Blocks of one structure (classes, shapes, settings) have the same writers, so one block of each structure is filled with its own weights and
proven; the others take its writers over under their own names, with their own gains.
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from resect.errors import UserError
from resect.models.forward import Call, model_inputs, with_first_tensor
from resect.models.skeleton import Skeleton, filled, filled_outside
from resect.models.source import first_line
from resect.models.trace import same
from resect.models.writers import Writer, block_writers

_ROWS, _TOKENS = 2, 16
_CANNOT_RUN = (KeyError, IndexError, AttributeError, TypeError, ValueError, RuntimeError)
_POSITION = ("layer_idx", "layer_id", "layer_index", "layer_number")  # of a block among its like: no part of its structure


@dataclass(frozen=True)
class _Gain:
    """Which parameter of the block a gain is: its value, or 1 + its value."""

    parameter: str
    offset: float


def skeleton_writers(skeleton: Skeleton) -> tuple[Writer, ...]:
    """Return what `find_writers` returns for the loaded model; at most one block is in memory, in float32.

    Raises:
        UserError: whatever `find_writers` raises, and for parameters that the checkpoint lacks.
    """
    calls = _calls(skeleton)
    found: dict[Any, tuple[str, tuple[Writer, ...], dict[str, _Gain | None]]] = {}
    writers: list[Writer] = []
    for layer, (name, block) in enumerate(zip(skeleton.block_names, skeleton.blocks, strict=True)):
        structure = _structure(block)
        if structure not in found:
            found[structure] = (name, *_discover(skeleton, layer, calls[layer]))
        first, known, gains = found[structure]
        if name != first and None in gains.values():
            # A gain that no parameter explains belongs to that block alone.
            known, first = _discover(skeleton, layer, calls[layer])[0], name
        writers += [_moved(skeleton, w, first, name, layer, gains.get(w.name)) for w in known]
    return tuple(writers)


def _discover(skeleton: Skeleton, layer: int, call: Call) -> tuple[tuple[Writer, ...], dict[str, _Gain | None]]:
    """Return the writers of one block, proven with its own weights, and which parameters their gains are."""
    name, block, d_model = skeleton.block_names[layer], skeleton.blocks[layer], skeleton.d_model
    with filled(skeleton, name):
        writers = block_writers(name, block, call, layer=layer, d_model=d_model)
        # Norms of one block may hold the same numbers, or a constant that looks like no gain at all; random ones tell them apart, and
        # only the structure is asked for here.
        vectors = {n: p for n, p in block.named_parameters() if p.shape == (d_model,)}
        generator = torch.Generator().manual_seed(0)
        for vector in vectors.values():
            vector.data = 1 + 0.2 * torch.rand(d_model, generator=generator)
        again = block_writers(name, block, call, layer=layer, d_model=d_model)
        return writers, {w.name: _rule(w.gain, vectors) for w in again if w.gain is not None}


def _rule(gain: Tensor, vectors: Mapping[str, Tensor]) -> _Gain | None:
    """Return the parameter that is the gain, None if it is none of them (a product of two, say)."""
    for name, vector in vectors.items():
        for offset in (0.0, 1.0):
            if torch.equal(gain, (offset + vector.double()).float()):
                return _Gain(name, offset)
    return None


def _moved(skeleton: Skeleton, writer: Writer, first: str, name: str, layer: int, gain: _Gain | None) -> Writer:
    """Return the writer of block `first` as the writer of block `name`."""
    if name == first:
        return writer

    def rename(old: str) -> str:
        return name + old.removeprefix(first)

    own = None
    if gain is not None:
        value = gain.offset + skeleton.value(f"{name}.{gain.parameter}").double()
        # As in `trace`: a constant gain is no gain, for it turns no direction.
        own = None if same(value, value.mean().expand_as(value), tolerance=1e-5) else value.float()
    parameters = tuple(replace(p, name=rename(p.name)) for p in writer.parameters)
    return replace(writer, name=rename(writer.name), module=rename(writer.module), layer=layer, parameters=parameters, gain=own)


def _structure(block: nn.Module) -> tuple[Any, ...]:
    modules = []
    for name, module in block.named_modules():
        simple = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str | None) and k not in _POSITION}
        modules.append((name, type(module), tuple(sorted(simple.items(), key=lambda item: item[0]))))
    return tuple(modules), tuple((name, tuple(value.shape)) for name, value in block.state_dict().items())


def _calls(skeleton: Skeleton) -> list[Call]:
    """Return how each block is called in a forward pass of the network's own, so that masks and rotations are genuine.

    Only block 0 runs; the others hand their input on. If a later one needs what an earlier one leaves behind (shared keys and values),
    all run, one in memory at a time.
    """
    with filled_outside(skeleton):
        try:
            calls = _pass(skeleton, running={0})
        except _CANNOT_RUN:
            try:
                calls = _pass(skeleton, running=set(range(len(skeleton.blocks))))
            except _CANNOT_RUN as error:
                raise UserError(
                    f"The network of {skeleton.name} cannot be run on text block by block ({first_line(error)}), so its writers cannot be "
                    "proven without loading it; load the whole model instead."
                ) from error
    for name, runs in zip(skeleton.block_names, calls, strict=True):
        if len(runs) != 1:
            raise UserError(f"Block {name} runs {len(runs)} times in one forward pass; only blocks that run once can be edited exactly.")
    return [runs[0] for runs in calls]


class _Stop(Exception):
    pass


def _pass(skeleton: Skeleton, *, running: set[int]) -> list[list[Call]]:
    calls: list[list[Call]] = [[] for _ in skeleton.blocks]
    shown: list[Any] = []

    def stand_in(layer: int, own: Callable[..., Any]) -> Callable[..., Any]:
        def forward(*args: Any, **kwargs: Any) -> Any:
            call = Call(args, kwargs)
            calls[layer].append(call.with_hidden(call.hidden().clone()))
            if layer in running:
                with filled(skeleton, skeleton.block_names[layer]):
                    shown[:] = [own(*args, **kwargs)]
            output = shown[0] if len(running) > 1 else with_first_tensor(shown[0], call.hidden())
            if layer == len(skeleton.blocks) - 1:
                raise _Stop
            return output

        return forward

    ids = _probe_ids(skeleton)
    ones = torch.ones_like(ids)
    with ExitStack() as stack, torch.no_grad():
        for layer, block in enumerate(skeleton.blocks):
            own = block.forward
            block.forward = stand_in(layer, own)
            stack.callback(delattr, block, "forward")
        with suppress(_Stop):
            skeleton.network(**model_inputs(skeleton.network, input_ids=ids, attention_mask=ones, position_ids=ones.cumsum(1) - 1))
    return calls


def _probe_ids(skeleton: Skeleton) -> Tensor:
    """Random tokens of the first rows of the table, none of them with a role."""
    config = skeleton.network.config.to_dict()
    listed = [v for k, v in config.items() if k.endswith(("token_id", "token_index"))]
    roles = {i for v in listed for i in (v if isinstance(v, list | tuple) else [v])}
    rows: Any = skeleton.network.get_input_embeddings()
    allowed = torch.tensor([i for i in range(rows.weight.shape[0]) if i not in roles])
    return allowed[torch.randint(len(allowed), (_ROWS, _TOKENS), generator=torch.Generator().manual_seed(0))]
