"""Residual writers of a checkpoint that is never loaded whole, block by block.

Blocks of one structure have the same writers, so one block of each structure is filled with its own weights and proven; the others take its
writers over under their own names, with their own gains.
"""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import Any

import torch
from torch import Tensor

from resect.errors import UserError
from resect.models.forward import Call, model_inputs, with_first_tensor
from resect.models.skeleton import Skeleton, filled, filled_outside
from resect.models.source import first_line
from resect.models.writers import CANNOT_RUN, Known, Writer, prove_block

_ROWS, _TOKENS = 2, 16


def skeleton_writers(skeleton: Skeleton) -> tuple[Writer, ...]:
    """Return what `find_writers` returns without `every_block` for the loaded model; at most one block is in memory, in float32.

    Raises:
        UserError: whatever `find_writers` raises, and for parameters that the checkpoint lacks.
    """
    blocks = dict(zip(skeleton.block_names, skeleton.blocks, strict=True))
    known = Known(skeleton.network, blocks, d_model=skeleton.d_model, value=lambda name: _value(skeleton, name))
    found: list[Writer] = []
    for layer, ((name, block), call) in enumerate(zip(blocks.items(), _calls(skeleton), strict=True)):
        key = known.key(layer, call)
        writers = known.taken_over(key, layer)
        if writers is None:
            with filled(skeleton, name):
                trace, writers = prove_block(block, call, name=name, layer=layer, d_model=skeleton.d_model)
            known.keep(key, trace, writers)
        found.extend(writers)
    return tuple(found)


def _value(skeleton: Skeleton, name: str) -> Tensor | None:
    """Return the numbers of a parameter or buffer, None for quantised and for absent ones, which tell nothing of a structure."""
    if name not in skeleton.shapes:
        return skeleton.network.get_buffer(name)
    return skeleton.value(name) if skeleton.plain(name) else None


def _calls(skeleton: Skeleton) -> list[Call]:
    """Return how each block is called in a forward pass of the network's own, so that masks and rotations are genuine.

    Only block 0 runs; the others hand their input on. If a later one needs what an earlier one leaves behind (shared keys and values),
    all run, one in memory at a time.
    """
    with filled_outside(skeleton):
        try:
            calls = _pass(skeleton, running={0})
        except CANNOT_RUN:
            try:
                calls = _pass(skeleton, running=set(range(len(skeleton.blocks))))
            except CANNOT_RUN as error:
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
